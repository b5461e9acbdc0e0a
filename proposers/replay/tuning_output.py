"""The outcome of `specproof tune` as a person and as a program read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from proposers.replay.tuning import Search, Workload
from proposers.replay.tuning_report import Verdict, difference
from theory.cluster_ratio import Interval

TRAFFIC = {
    "all": "one table for all prompts",
    "prompt": "a table for each prompt",
    "none": "a table for each answer",
}


def as_dict(
    work: Workload, held_out: Workload, found: Search, verdicts: Mapping[str, Sequence[Verdict]]
) -> dict[str, Any]:
    """For JSON; ``verdicts`` are by ``share``."""
    best = found.best
    return {
        "temperature": work.trace.sampling.temperature,
        "rule": work.rule,
        "share": work.share,
        "order": work.order,
        "seed": work.seed,
        "interrupted": found.interrupted,
        "training": _size(work),
        "held_out": _size(held_out),
        "best": {
            "trial": best.number,
            "options": dict(best.options),
            "draft_length": best.draft_length,
            "training_rate": best.rate,
        },
        "interval": "95 %, ratio linearised, clustered by prompt; differences paired",
        "verdicts": {
            share: {
                "settings": [line.as_dict() for line in lines],
                "found_minus_by_hand": _against_hand(lines).as_dict(),
            }
            for share, lines in verdicts.items()
        },
        "trials": [
            {
                "number": trial.number,
                "options": dict(trial.options),
                "draft_length": trial.draft_length,
                "rate": trial.rate,
                "state": trial.state,
                "seconds": round(trial.seconds, 3),
            }
            for trial in found.trials
        ],
    }


def show(
    work: Workload,
    held_out: Workload,
    found: Search,
    verdicts: Mapping[str, Sequence[Verdict]],
    unit: str,
) -> None:
    """A table for each traffic on standard output, and in words what it says."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    states = [trial.state for trial in found.trials]
    done = states.count("complete")
    console.print(
        f"{len(states)} settings tried on {work.trace.prompts} prompts, {done} of them on all"
        + (", interrupted." if found.interrupted else ".")
        + f" T = {work.trace.sampling.temperature:g}, rule {work.rule}, {work.order}."
    )
    for share, lines in verdicts.items():
        table = Table(
            title=f"On {held_out.trace.prompts} held-out prompts, {TRAFFIC[share]}"
            + ("" if share == work.share else " (not what was searched on)"),
            box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False,
        )  # fmt: skip
        table.add_column("setting", no_wrap=True)
        for name in ("K", unit, "to defaults", "tokens/step", "drafted/step"):
            table.add_column(name, justify="right", no_wrap=True)
        for line in lines:
            table.add_row(
                line.name,
                str(line.draft_length),
                _plus_minus(line.rate),
                "" if line.gain is None else _plus_minus(line.gain, signed=True),
                _plus_minus(line.block_efficiency),
                f"{line.drafted:.2f}",
            )
        console.print(table)
    lines = verdicts[work.share]
    console.print(_sentence(lines, unit))
    console.print(
        f"Against the setting by hand: {_plus_minus(_against_hand(lines), signed=True)} "
        f"({unit}, paired). ± is 95 % by prompt."
    )


def _sentence(lines: Sequence[Verdict], unit: str) -> str:
    gain, base = lines[-1].gain, lines[0].rate.value
    assert gain is not None
    share = f"{100 * gain.value / base:+.1f} % {unit}"
    if gain.low is None or gain.high is None:
        return f"Found against the defaults: {share}, with too few prompts for an interval."
    if gain.low > 0:
        return f"Found beats the defaults on prompts it never saw: {share}."
    if gain.high < 0:
        return f"Found is worse than the defaults on prompts it never saw: {share}. Keep those."
    return (
        f"Found against the defaults: {share}, which may be chance: the interval holds 0. More "
        "prompts, or a longer search, would tell."
    )


def _against_hand(lines: Sequence[Verdict]) -> Interval:
    hand = next(line for line in lines if line.name == "by hand")
    return difference(hand.score, lines[-1].score)


def _size(work: Workload) -> dict[str, int]:
    trace = work.trace
    return {"prompts": trace.prompts, "answers": trace.answers, "tokens": len(trace)}


def _plus_minus(interval: Interval, signed: bool = False) -> str:
    digits = 1 if abs(interval.value) >= 10 else 3
    value = f"{interval.value:{'+' if signed else ''}.{digits}f}"
    if interval.high is None:
        return value
    return f"{value} ± {interval.high - interval.value:.{digits}f}"
