"""Scores as a person wants them: ratios with intervals, and differences to the first drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from proposers.batch import Doubles
from proposers.replay.scoring import Score
from proposers.replay.simulation import Setting
from theory.cluster_ratio import Interval, difference_interval, ratio_interval


@dataclass(frozen=True, slots=True)
class Line:
    """One setting: block efficiency, tokens per second, and both minus the first drafter's.

    ``gain`` and ``rate_gain`` are None for the first drafter, and where it has no line with the
    same K, k and rule; ``rate`` is None without step times.
    """

    setting: Setting
    score: Score
    block_efficiency: Interval
    gain: Interval | None
    rate: Interval | None
    rate_gain: Interval | None

    @property
    def drafted(self) -> float:
        """Drafted tokens per step."""
        return _per_step(self.score, self.score.drafted)

    @property
    def wasted(self) -> float:
        """Drafted tokens per step that did not become text."""
        return _per_step(self.score, self.score.wasted)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: nan is null."""
        score = self.score
        return {
            "drafter": self.setting.drafter,
            "draft_length": self.setting.draft_length,
            "candidates": self.setting.candidates,
            "rule": self.setting.rule,
            "drafts": self.setting.drafts,
            "block_efficiency": self.block_efficiency.as_dict(),
            "difference": None if self.gain is None else self.gain.as_dict(),
            "tokens_per_second": None if self.rate is None else self.rate.as_dict(),
            "tokens_per_second_difference": (
                None if self.rate_gain is None else self.rate_gain.as_dict()
            ),
            "tokens": int(score.tokens.sum()),
            "steps": float(score.steps.sum()),
            "drafted": float(score.drafted.sum()),
            "wasted": float(score.wasted.sum()),
            "acceptance": _numbers(score.acceptance),
            "acceptance_when_reached": _numbers(score.acceptance_when_reached),
        }


def compare(scored: Sequence[tuple[Setting, Score]]) -> list[Line]:
    """A line for every setting, in the order given; the first drafter is that of the first one."""
    if not scored:
        return []
    first = {
        setting.how: score for setting, score in scored if setting.drafter == scored[0][0].drafter
    }
    return [_line(setting, score, first, scored[0][0].drafter) for setting, score in scored]


def _line(setting: Setting, score: Score, first: dict[Any, Score], name: str) -> Line:
    base = None if setting.drafter == name else first.get(setting.how)
    gain = rate = rate_gain = None
    if base is not None:
        gain = difference_interval((base.tokens, base.steps), (score.tokens, score.steps))
    if score.seconds is not None:
        rate = ratio_interval(score.tokens, score.seconds)
        if base is not None and base.seconds is not None:
            rate_gain = difference_interval(
                (base.tokens, base.seconds), (score.tokens, score.seconds)
            )
    return Line(setting, score, ratio_interval(score.tokens, score.steps), gain, rate, rate_gain)


def _per_step(score: Score, sums: Doubles) -> float:
    steps = score.steps.sum()
    return float(sums.sum() / steps) if steps > 0 else float("nan")


def _numbers(values: Doubles) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
