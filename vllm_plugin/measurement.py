"""The numbers of one run of a workload, how runs are combined, and how they are shown."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vllm_plugin.scrape import Counters


class MeasurementError(RuntimeError):
    """A run whose numbers cannot be trusted, with the reason in one sentence."""


@dataclass(frozen=True)
class Measurement:
    """One method on one workload: client's clock, server's counters (``scrape`` defines them)."""

    method: str
    tokens: int
    seconds: float
    client_cpu_seconds: float
    counters: Counters
    seconds_per_token: tuple[float, ...]
    first_token_seconds: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of all requests over the wall time of the timed part, prefills included."""
        return self.tokens / self.seconds

    def as_json(self) -> dict[str, Any]:
        """The fields of ``benchmarks/serving.py``'s results; times of tokens in milliseconds."""
        counters = self.counters
        return {
            "method": self.method,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "block_efficiency": counters.block_efficiency,
            "acceptance_rate": counters.acceptance_rate,
            "accepted_per_position": list(counters.accepted_per_position),
            "drafted_tokens": counters.draft_tokens,
            "tpot_ms": _percentiles(self.seconds_per_token),
            "ttft_ms": _percentiles(self.first_token_seconds),
            "drafts": counters.drafts,
            "decode_steps": counters.decode_steps,
            "engine_steps": counters.engine_steps,
            "prompt_tokens": counters.prompt_tokens,
            "preemptions": counters.preemptions,
            "requests": len(self.first_token_seconds),
            "client_cpu_seconds": self.client_cpu_seconds,
        }


def _percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """Median and 99th percentile over requests, in milliseconds."""
    if not seconds:
        return {"p50": None, "p99": None}
    middle, high = np.percentile(np.asarray(seconds) * 1000.0, [50, 99])
    return {"p50": float(middle), "p99": float(high)}


def pooled(runs: Sequence[Measurement]) -> Measurement:
    """Runs of one method as if they were one: sums of tokens, seconds and counters."""
    return Measurement(
        method=runs[0].method,
        tokens=sum(run.tokens for run in runs),
        seconds=sum(run.seconds for run in runs),
        client_cpu_seconds=sum(run.client_cpu_seconds for run in runs),
        counters=reduce(add, (run.counters for run in runs)),
        seconds_per_token=tuple(value for run in runs for value in run.seconds_per_token),
        first_token_seconds=tuple(value for run in runs for value in run.first_token_seconds),
    )


def speed_ratios(runs: Sequence[Measurement], baseline: Sequence[Measurement]) -> list[float]:
    """Tokens per second over the baseline's, round by round: a slow machine cancels."""
    pairs = zip(runs, baseline, strict=True)
    return [mine.tokens_per_second / theirs.tokens_per_second for mine, theirs in pairs]


def table(rounds: Mapping[str, Sequence[Measurement]], baseline: str, title: str) -> Group:
    """One row a method; the ratio is the median over rounds of tokens/s against ``baseline``.

    Acceptance by position stands below, one line a method, so that 80 columns are enough.
    """
    shown = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    shown.add_column("method", no_wrap=True)
    heads = ("tok/s", f"x {baseline}", "ms/tok", "p99", "tok/step", "drafted", "accepted")
    for head in heads:
        shown.add_column(head, justify="right", no_wrap=True)
    lines = []
    for method, runs in rounds.items():
        whole = pooled(runs)
        counters, tpot = whole.counters, _percentiles(whole.seconds_per_token)
        shown.add_row(
            method,
            f"{whole.tokens_per_second:.1f}",
            f"{statistics.median(speed_ratios(runs, rounds[baseline])):.2f}",
            _number(tpot["p50"], ".1f"),
            _number(tpot["p99"], ".1f"),
            _number(counters.block_efficiency, ".2f"),
            f"{counters.draft_tokens:,}",
            _number(counters.acceptance_rate, ".0%"),
        )
        if shares := counters.acceptance_by_position:
            row = " ".join(f"{share:.2f}" for share in shares)
            lines.append(f"{method}: drafts accepted up to position 1, 2, ...: {row}")
    note = (
        "ms/tok: time per output token after the first, median and p99 over requests\n"
        "tok/step: block efficiency, the tokens a request got per forward of the model"
    )
    return Group(shown, Text("\n".join([*lines, note])))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
