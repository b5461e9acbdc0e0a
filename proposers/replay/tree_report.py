"""What tree shapes are worth on prompts: expected tokens per step, with intervals by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from proposers.replay.scoring import Score, expected_course
from proposers.replay.tree_chances import RankChances
from proposers.replay.tree_limits import Limits, forward_tokens
from proposers.shape import TreeShape
from theory.cluster_ratio import Interval, difference_interval, ratio_interval
from theory.traces import Trace


@dataclass(frozen=True, slots=True)
class Verdict:
    """One shape on the held-out prompts.

    ``block_efficiency`` is tokens per decode step over the steps that a decoder with this shape is
    expected to make (:func:`proposers.replay.scoring.expected_course`); ``gain`` its difference to
    the first shape's, paired by prompt, None for that one. ``per_place`` is 1 + the sum of reach
    over the nodes, a mean over all places alike.
    """

    name: str
    shape: TreeShape
    score: Score
    block_efficiency: Interval
    gain: Interval | None
    per_place: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON: nan is null."""
        return {
            "name": self.name,
            "nodes": len(self.shape.nodes),
            "paths": self.shape.paths,
            "depth": self.shape.depth,
            "forward_tokens": forward_tokens(self.shape),
            "block_efficiency": self.block_efficiency.as_dict(),
            "gain": None if self.gain is None else self.gain.as_dict(),
            "per_place": None if np.isnan(self.per_place) else self.per_place,
        }


def judge(
    trace: Trace, chances: RankChances, shapes: Sequence[tuple[str, TreeShape]]
) -> list[Verdict]:
    """Each named shape on a trace, whose chances they are; differences are to the first."""
    scores = [_score(trace, chances, shape) for _, shape in shapes]
    return [
        Verdict(
            name,
            shape,
            score,
            ratio_interval(score.tokens, score.steps),
            None if score is scores[0] else difference(scores[0], score),
            1.0 + chances.accepted(shape),
        )
        for (name, shape), score in zip(shapes, scores, strict=True)
    ]


def difference(first: Score, second: Score) -> Interval:
    """Block efficiency of the second minus that of the first, paired by prompt."""
    return difference_interval((first.tokens, first.steps), (second.tokens, second.steps))


def best_root_branching(chances: RankChances, limits: Limits) -> TreeShape | None:
    """The best shape with one branching, at the root, and chains of one length behind it.

    None where the limits allow only a part of any.
    """
    found: tuple[float, TreeShape] | None = None
    for candidates in range(1, chances.branching + 1):
        for length in range(1, chances.depth + 1):
            shape = TreeShape.root_branching(candidates, length)
            if not limits.allow(shape):
                break
            value = chances.accepted(shape)
            if found is None or value > found[0]:
                found = value, shape
    return None if found is None else found[1]


def _score(trace: Trace, chances: RankChances, shape: TreeShape) -> Score:
    kept = chances.kept(shape)
    whole = np.full(len(trace), shape.depth, np.int64)
    return expected_course(trace, kept, whole, np.full(len(trace), len(shape.nodes), np.int64))
