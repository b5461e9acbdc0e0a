"""The picture of a simulation: block efficiency against K, and where STAND's acceptance lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proposers.replay.origins import Origins, by_count, by_order
from proposers.replay.report import Line


def draw(path: Path, lines: Sequence[Line], origins: Origins | None = None) -> None:
    """Write the picture; with origins two panels more, acceptance by matched order and by count.

    Ends the command with a sentence where matplotlib is missing or the path cannot be written.
    """
    from theory.figures import load_pyplot, save_picture

    pyplot = load_pyplot()
    panels = 1 if origins is None else 3
    widths = [5.0] if origins is None else [5.0, 2.5, 4.0]
    figure, axes = pyplot.subplots(
        1, panels, figsize=(sum(widths) + 1.5, 4.5), layout="constrained",
        gridspec_kw={"width_ratios": widths}, squeeze=False,
    )  # fmt: skip
    _efficiency(axes[0, 0], lines)
    if origins is not None:
        orders = by_order(origins)
        _bars(
            axes[0, 1], "matched order", [str(o) for o, _, _ in orders],
            [a for _, a, _ in orders], [n for _, _, n in orders],
        )  # fmt: skip
        counts = by_count(origins)
        _bars(
            axes[0, 2], "visits of the context",
            [_span(low, high) for low, high, _, _ in counts],
            [a for _, _, a, _ in counts], [n for *_, n in counts],
        )  # fmt: skip
        axes[0, 1].set_ylabel("acceptance of STAND's first draft")
    save_picture(figure, path)
    pyplot.close(figure)


def _efficiency(axes: Any, lines: Sequence[Line]) -> None:
    several = len({(line.setting.candidates, line.setting.rule) for line in lines}) > 1
    for name in dict.fromkeys(_name(line, several) for line in lines):
        here = sorted(
            (line for line in lines if _name(line, several) == name),
            key=lambda line: line.setting.draft_length,
        )
        values = [line.block_efficiency.value for line in here]
        bars = [
            (0.0, 0.0)
            if line.block_efficiency.low is None or line.block_efficiency.high is None
            else (
                line.block_efficiency.value - line.block_efficiency.low,
                line.block_efficiency.high - line.block_efficiency.value,
            )
            for line in here
        ]
        axes.errorbar(
            [line.setting.draft_length for line in here], values,
            yerr=[[low for low, _ in bars], [high for _, high in bars]],
            marker="o", capsize=3, label=name,
        )  # fmt: skip
    axes.axhline(1.0, color="grey", linestyle=":", label="no speculation")
    axes.set(xlabel="draft length K", ylabel="block efficiency (95 %, by prompt)")
    axes.set_xticks(sorted({line.setting.draft_length for line in lines}))
    axes.legend(fontsize="small")


def _name(line: Line, several: bool) -> str:
    setting = line.setting
    return (
        f"{setting.drafter}, k={setting.candidates}, {setting.rule}"
        if several
        else (setting.drafter)
    )


def _bars(
    axes: Any, label: str, names: list[str], heights: list[float], positions: list[int]
) -> None:
    """Bars with the number of positions on each."""
    drawn = axes.bar(names, heights, color="C0")
    axes.bar_label(drawn, labels=[f"{n:,}" for n in positions], fontsize="x-small")
    axes.set(xlabel=label, ylim=(0, 1.05))
    axes.tick_params(axis="x", labelsize="small")


def _span(low: float, high: float) -> str:
    return f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g}–{high:.2g}"
