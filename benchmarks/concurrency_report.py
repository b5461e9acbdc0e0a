"""How ``concurrency.py`` shows its result: a table for each temperature, JSON, and a picture."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from slices import Slice

from vllm_plugin.measurement import pooled

OURS_IN_BOLD = "stand"


@dataclass(frozen=True)
class Cell:
    """One method at one point; ``ratios`` are its speed over the baseline's of the same round."""

    temperature: float
    concurrency: int
    method: str
    slices: tuple[Slice, ...]
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median over rounds."""
        return statistics.median(self.ratios)

    @property
    def speed(self) -> float:
        """Tokens per second with all in flight, the median over rounds."""
        return statistics.median(one.speed for one in self.slices)

    def as_json(self, baseline: str) -> dict[str, Any]:
        """The ratios, sums over whole slices, and every slice."""
        return {
            "temperature": self.temperature,
            "concurrency": self.concurrency,
            "window_tokens_per_second": self.speed,
            "speed_ratio": {
                "baseline": baseline,
                "median": self.ratio,
                "lowest": min(self.ratios),
                "highest": max(self.ratios),
                "rounds": list(self.ratios),
            },
            "whole_slices": pooled([one.measured for one in self.slices]).as_json(),
            "rounds": [one.as_json() for one in self.slices],
        }


def cells(
    temperature: float, concurrency: int, rounds: Mapping[str, Sequence[Slice]], baseline: str
) -> list[Cell]:
    """The cells of a point, from every method's slices, the same round at the same place."""
    made = []
    for method, mine in rounds.items():
        pairs = zip(mine, rounds[baseline], strict=True)
        ratios = tuple(one.speed / base.speed for one, base in pairs)
        made.append(Cell(temperature, concurrency, method, tuple(mine), ratios))
    return made


def tables(all_cells: Sequence[Cell], baseline: str, heading: str) -> Group:
    """A table for each temperature, methods down, concurrencies across."""
    shown = []
    for temperature in dict.fromkeys(one.temperature for one in all_cells):
        here = [one for one in all_cells if one.temperature == temperature]
        title = f"{heading}, T = {temperature:g}: tokens/s x {baseline}, median and range of rounds"
        table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
        table.add_column("in flight", no_wrap=True)
        for concurrency in dict.fromkeys(one.concurrency for one in here):
            table.add_column(str(concurrency), justify="right", no_wrap=True)
        for method in dict.fromkeys(one.method for one in here):
            row = [_text(one, baseline) for one in here if one.method == method]
            table.add_row(method, *row, style="bold" if method == OURS_IN_BOLD else "")
        shown.append(table)
    return Group(*shown)


def _text(cell: Cell, baseline: str) -> str:
    if cell.method == baseline:
        return f"{cell.speed:.1f} tok/s"
    return f"{cell.ratio:.3f}\n{min(cell.ratios):.3f}-{max(cell.ratios):.3f}"


def draw(path: Path, all_cells: Sequence[Cell], baseline: str, heading: str) -> None:
    """A panel for each temperature: ratio against concurrency, whiskers over the rounds."""
    from theory.figures import load_pyplot, save_picture

    pyplot = load_pyplot()
    temperatures = list(dict.fromkeys(one.temperature for one in all_cells))
    figure, panels = pyplot.subplots(
        1, len(temperatures), figsize=(1 + 5 * len(temperatures), 4.5),
        sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    methods = [one for one in dict.fromkeys(one.method for one in all_cells) if one != baseline]
    for axes, temperature in zip(panels[0], temperatures, strict=True):
        for number, method in enumerate(methods):
            line = [
                one for one in all_cells
                if one.method == method and one.temperature == temperature
            ]  # fmt: skip
            ours = method == OURS_IN_BOLD
            # A step to the side, or the whiskers of two methods hide each other.
            aside = 2 ** (0.06 * (number - (len(methods) - 1) / 2))
            axes.errorbar(
                [one.concurrency * aside for one in line],
                [one.ratio for one in line],
                yerr=[
                    [one.ratio - min(one.ratios) for one in line],
                    [max(one.ratios) - one.ratio for one in line],
                ],
                marker="o", markersize=6 if ours else 4, capsize=3,
                linewidth=2.8 if ours else 1.0, zorder=3 if ours else 2, label=method,
            )  # fmt: skip
        sizes = sorted({one.concurrency for one in all_cells})
        axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--", label=baseline)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set(xlabel="requests in flight", title=f"{heading}, T = {temperature:g}")
    panels[0][0].set_ylabel(f"tokens/s over those of {baseline}")
    panels[0][0].legend(fontsize="small")
    save_picture(figure, path)
    pyplot.close(figure)
