"""The picture of a search: trials against time, and what was found on the held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proposers.replay.tuning import Search
from proposers.replay.tuning_report import Verdict


def draw(path: Path, found: Search, verdicts: Sequence[Verdict], unit: str) -> None:
    """Write the picture; ends the command with a sentence where the path cannot be written."""
    from theory.figures import load_pyplot, save_picture

    pyplot = load_pyplot()
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 4.5), layout="constrained", gridspec_kw={"width_ratios": [3, 2]}
    )
    _history(left, found, unit)
    _held_out(right, verdicts, unit)
    save_picture(figure, path)
    pyplot.close(figure)


def _history(axes: Any, found: Search, unit: str) -> None:
    """Completed trials, and the best of them so far; given-up ones are not comparable, so faint."""
    for state, marker, alpha in (("pruned", "x", 0.35), ("complete", "o", 0.9)):
        points = [(t.seconds, t.rate) for t in found.trials if t.state == state]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, alpha=alpha, s=18,
                         label=state if state == "complete" else "given up on a part")  # fmt: skip
    done = [trial for trial in found.trials if trial.state == "complete"]
    best = np.maximum.accumulate([trial.rate for trial in done])
    axes.step([t.seconds for t in done], best, where="post", color="black", label="best so far")
    axes.axhline(done[0].rate, color="grey", linestyle=":", label="defaults, best K")
    axes.set(xlabel="seconds", ylabel=f"{unit}, training prompts")
    axes.legend(fontsize="small")


def _held_out(axes: Any, verdicts: Sequence[Verdict], unit: str) -> None:
    """Differences to the defaults, paired by prompt: prompts differ more than settings do."""
    for place, verdict in enumerate(verdicts):
        gain = verdict.gain
        if gain is None:
            continue
        bars = None
        if gain.low is not None and gain.high is not None:
            bars = [[gain.value - gain.low], [gain.high - gain.value]]
        axes.errorbar([place], [gain.value], yerr=bars, fmt="o", capsize=4)
    axes.axhline(0.0, color="grey", linestyle=":")
    axes.set_xticks(
        range(len(verdicts)),
        [f"{v.name}\nK = {v.draft_length}\n{v.rate.value:.4g}" for v in verdicts],
    )
    axes.set_xlim(-0.5, len(verdicts) - 0.5)
    axes.set(ylabel=f"{unit} minus the defaults', held-out prompts (95 %)")
