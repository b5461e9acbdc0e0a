"""What the settings that a search found are worth on prompts that it never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from proposers.batch import Drafter, VerifiedRows
from proposers.replay.drafters import make_drafter
from proposers.replay.profiling import Share, most_tokens, profile
from proposers.replay.scoring import Score, score
from proposers.replay.tuning import Workload
from proposers.stand import StandDrafter
from theory.cluster_ratio import Interval, difference_interval, ratio_interval

BY_HAND_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Contender:
    """One setting to be judged: its name, a maker of its drafter, and its K."""

    name: str
    make: Callable[[], Drafter]
    draft_length: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """One setting on the held-out prompts; differences are paired by prompt.

    ``rate`` is tokens over the time of their steps, in the units of the step times; ``gain`` its
    difference to the first contender's, None for that one.
    """

    name: str
    draft_length: int
    score: Score
    rate: Interval
    gain: Interval | None
    block_efficiency: Interval

    @property
    def drafted(self) -> float:
        """Drafted tokens per step."""
        steps = self.score.steps.sum()
        return float(self.score.drafted.sum() / steps) if steps > 0 else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: nan is null."""
        return {
            "name": self.name,
            "draft_length": self.draft_length,
            "rate": self.rate.as_dict(),
            "gain": None if self.gain is None else self.gain.as_dict(),
            "block_efficiency": self.block_efficiency.as_dict(),
            "drafted_per_step": None if np.isnan(self.drafted) else self.drafted,
        }


def stand(work: Workload, options: Mapping[str, Any], draft_length: int, name: str) -> Contender:
    """STAND with these options, in the plugin's names."""
    make = make_drafter(
        "stand", options, draft_length=draft_length, seed=work.seed,
        tokens=most_tokens(work.trace, work.share),
    )  # fmt: skip
    return Contender(name, make, draft_length)


def by_hand(work: Workload) -> Contender:
    """The best setting that was found by hand before there was a search: order 6, decay 0.7, ...

    ... the plain back-off, chains of full length, K = 8, and an emitted token that weighs 0.5 at
    every temperature, which the plugin's options, whose weight falls with the temperature, do not
    offer at T = 1.
    """

    options = {
        "order": 6, "decay": 0.7, "emitted_weight": 0.5, "interpolation": 0.0, "min_survival": 0.0
    }  # fmt: skip
    plain = stand(work, options, BY_HAND_LENGTH, "").make

    def make() -> Drafter:
        drafter = plain()
        assert isinstance(drafter, StandDrafter)
        return _Unheated(
            drafter.table, draft_length=BY_HAND_LENGTH, seed=work.seed, min_survival=0.0,
            interpolation=0.0,
        )  # fmt: skip

    return Contender("by hand", make, BY_HAND_LENGTH)


class _Unheated(StandDrafter):
    """Takes every row for one of temperature 0, where an emitted token weighs most."""

    def observe(self, rows: VerifiedRows) -> None:
        super().observe(replace(rows, temperatures=np.zeros(rows.ends.shape[0])))


def judge(work: Workload, contenders: Sequence[Contender]) -> list[Verdict]:
    """Replay each contender along the prompts of ``work``, which should be held-out ones."""
    scores = []
    for each in contenders:
        offered = profile(
            work.trace, each.make, draft_length=each.draft_length, share=work.share,
            order=work.order,
        )  # fmt: skip
        scores.append(
            score(
                offered, work.trace, rule=work.rule, draft_length=each.draft_length,
                step_times=work.step_times,
            )
        )  # fmt: skip
    first = scores[0] if scores else None
    found = []
    for each, scored in zip(contenders, scores, strict=True):
        assert scored.seconds is not None and first is not None
        found.append(
            Verdict(
                each.name,
                each.draft_length,
                scored,
                ratio_interval(scored.tokens, scored.seconds),
                None if scored is first else difference(first, scored),
                ratio_interval(scored.tokens, scored.steps),
            )
        )
    return found


def difference(first: Score, second: Score) -> Interval:
    """Rate of the second minus rate of the first, paired by prompt; both need step times."""
    assert first.seconds is not None and second.seconds is not None
    return difference_interval((first.tokens, first.seconds), (second.tokens, second.seconds))


def other_share(share: Share) -> Share:
    """The traffic to judge by as well: what helps a shared table may not help one prompt's own."""
    return "prompt" if share == "all" else "all"
