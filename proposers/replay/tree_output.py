"""The outcome of `specproof tune-tree` as a person and as a program read it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proposers.replay.drafters import DRAFTERS
from proposers.replay.tree_limits import forward_tokens
from proposers.replay.tree_report import Verdict, difference
from proposers.shape import TreeShape
from theory.cluster_ratio import Interval
from theory.traces import Trace

NO_FILE = "FILE"


def configuration(out: Path | None, scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What --additional-config takes."""
    return {
        "specproof": {
            "shape": NO_FILE if out is None else str(out.resolve()),
            "drafting": scheme,
            **options,
        }
    }


def speculation(depth: int) -> dict[str, Any]:
    """What --speculative-config takes."""
    return {
        "method": "custom_class",
        "model": DRAFTERS["stand"].engine_class,
        "num_speculative_tokens": depth,
    }


def command(config: Mapping[str, Any], depth: int) -> str:
    """The whole command line; MODEL stands for what the trace was recorded with."""
    return " \\\n  ".join(
        (
            "vllm serve MODEL",
            f"--speculative-config {shlex.quote(json.dumps(speculation(depth)))}",
            f"--additional-config {shlex.quote(json.dumps(config))}",
        )
    )


def as_dict(
    shape: TreeShape,
    verdicts: Sequence[Verdict],
    training: Trace,
    held_out: Trace,
    about: Mapping[str, Any],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """For JSON."""
    return {
        **about,
        "training": _size(training),
        "held_out": _size(held_out),
        "nodes": [list(node) for node in shape.nodes],
        "interval": "95 %, ratio linearised, clustered by prompt; differences paired",
        "verdicts": [verdict.as_dict() for verdict in verdicts],
        "found_minus_root_branching": _against_root(verdicts),
        "additional_config": config,
        "speculative_config": speculation(shape.depth),
        "command": command(config, shape.depth),
    }


def show(
    verdicts: Sequence[Verdict], training: Trace, held_out: Trace, about: Mapping[str, Any]
) -> None:
    """A table on standard output, and in words what it says."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"{about['method']} for {about['budget']} {about['cost']}"
        f" and {about['paths']} paths, {about['scheme']}, T = {held_out.sampling.temperature:g};\n"
        f"searched on {training.prompts} prompts, judged on {held_out.prompts} others:"
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("shape", no_wrap=True)
    for name in ("nodes", "paths", "depth", "forward", "tokens/step", "to chain"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in verdicts:
        table.add_row(
            line.name,
            str(len(line.shape.nodes)),
            str(line.shape.paths),
            str(line.shape.depth),
            str(forward_tokens(line.shape)),
            _plus_minus(line.block_efficiency),
            "" if line.gain is None else _plus_minus(line.gain, signed=True),
        )
    console.print(table)
    for name, gap in _against_root(verdicts).items():
        interval = Interval(gap["value"], gap["low"], gap["high"])
        console.print(f"Found against {name}: {_plus_minus(interval, signed=True)} tokens/step.")
    console.print("± is 95 % by prompt, differences paired; forward counts tokens path by path.")


def _against_root(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The found shape minus each of those between the chain and it."""
    found = verdicts[-1]
    return {line.name: difference(line.score, found.score).as_dict() for line in verdicts[1:-1]}


def _size(trace: Trace) -> dict[str, int]:
    return {"prompts": trace.prompts, "answers": trace.answers, "tokens": len(trace)}


def _plus_minus(interval: Interval, signed: bool = False) -> str:
    value = f"{interval.value:{'+' if signed else ''}.3f}"
    return value if interval.high is None else f"{value} ± {interval.high - interval.value:.3f}"
