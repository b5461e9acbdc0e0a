"""The picture of a profile: every step, the medians, and the curve through them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from proposers.length.step_times import StepTimes
from vllm_plugin.profile import Point, Recording


def draw(
    path: Path, recording: Recording, times: StepTimes, shown: Sequence[Point], model: str
) -> None:
    """Write the picture; the command ends with a sentence where that cannot be done."""
    from theory.figures import load_pyplot, save_picture

    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, requests in enumerate(sorted({point.requests for point in shown})):
        colour, label = f"C{number}", "1 request" if requests == 1 else f"{requests} requests"
        steps = [step for step in recording.steps if step.requests == requests]
        axes.scatter(
            [step.tokens for step in steps], [1000 * step.seconds for step in steps],
            s=5, alpha=0.25, color=colour, linewidths=0,
        )  # fmt: skip
        medians = [point for point in shown if point.requests == requests]
        axes.plot(
            [point.tokens for point in medians], [1000 * point.seconds for point in medians],
            linestyle="", marker="o", color=colour, label=f"{label}, median",
        )  # fmt: skip
    most = max(step.tokens for step in recording.steps)
    n = np.arange(1, most + 1)
    axes.plot(n, 1000 * times.seconds(n), color="black", linewidth=1, label="T(n)")
    # Pauses lie far above: they are in the data, but need no room.
    axes.set_ylim(0, 1.2e3 * max([point.high for point in shown] + [float(times.seconds(most))]))
    axes.set(xlabel="tokens in the step", ylabel="milliseconds", title=f"decode steps of {model}")
    axes.legend(fontsize="small")
    save_picture(figure, path)
    pyplot.close(figure)
