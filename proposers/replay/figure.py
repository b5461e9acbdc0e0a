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
        _by_order(axes[0, 1], origins)
        _by_count(axes[0, 2], origins)
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


def _by_order(axes: Any, found: Origins) -> None:
    """Bars with the number of positions on each."""
    orders = by_order(found)
    drawn = axes.bar([order for order, _, _ in orders], [mean for _, mean, _ in orders])
    axes.bar_label(drawn, labels=[f"{n:,}" for _, _, n in orders], fontsize="x-small")
    axes.set(xlabel="matched order", ylabel="acceptance of STAND's first draft", ylim=(0, 1.05))
    axes.set_xticks([order for order, _, _ in orders])


def _by_count(axes: Any, found: Origins) -> None:
    """A line for each order: a long context that was seen once is not yet a sure one."""
    for order, _, _ in by_order(found):
        groups = by_count(found, order)
        axes.plot(
            [count for count, _, _ in groups], [mean for _, mean, _ in groups],
            marker="o", label=f"order {order}",
        )  # fmt: skip
    axes.set(xlabel="visits of the context, after decay", ylim=(0, 1.05))
    axes.legend(fontsize="small")
