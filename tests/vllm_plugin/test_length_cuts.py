"""Two requests in an engine that drops one's drafts for the other's list: the law of both stays p.

A's list may need a cache block; if it has any drafts, B is preempted, and B's drafts, which the
block rule judges by those behind them, come one step later and shorter. So A's length must not
depend on B's drafts (`LengthControl.cut`, ``apart``). Exact, by enumeration.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from proposers import Drafts
from proposers.length.policy import LengthPolicy
from proposers.length.predictor import AcceptancePredictor
from proposers.length.threshold import Threshold
from proposers.replay.lengths import GivenTimes
from tests.proposers.length.exact_steps import (
    Request,
    distance,
    joint_law,
    random_request,
    target_law,
)
from vllm_plugin.length_control import Batch, LengthControl

V, K = 2, 3
A, B = 0, 1
TIMES = GivenTimes(list(range(1, 9)), [1.0, 1.0, 1.1, 1.25, 1.45, 1.7, 2.0, 2.4])
RATE = 2.0  # tokens cost .2, .3, .4, .5, .6, .8 of survival
SEEDS = (17, 86, 88)  # here what stands behind B's second draft decides whether A has one
Text = tuple[int, ...]


def judged(r: Request, begin: Text, drafts: Text, bonus: bool) -> Iterator[tuple[Text, float]]:
    """What the block rule emits (arXiv 2403.10444): r_i = min(1, r_(i-1) p/q), then backwards."""
    weights = [1.0]
    for i, x in enumerate(drafts):
        u = begin + drafts[:i]
        weights.append(min(1.0, weights[-1] * r.p[u][x] / r.q[u][x]))
    alive = 1.0
    for i in range(len(drafts), -1, -1):
        kept = begin + drafts[:i]
        if i == len(drafts):
            keep, law = weights[i], r.p[kept]
        else:
            left = np.maximum(weights[i] * r.p[kept] - r.q[kept], 0.0)
            total = left.sum()
            keep = total / (total + 1 - weights[i]) if i else 1.0
            law = left / total if total > 0 else r.p[kept]
        if i == len(drafts) and not bonus:
            yield kept, alive * keep
        else:
            yield from (((*kept, y), alive * keep * mass) for y, mass in enumerate(law))
        alive *= 1 - keep


def completed(r: Request, parts: Iterator[tuple[Text, float]]) -> dict[Text, float]:
    found: dict[Text, float] = {}
    for text, mass in parts:
        if mass > 0:
            r._complete(text[: K + 1], mass, K + 1, found)
    return found


class Behind(Request):
    """B: its drafts are cut off when A's list is long."""

    pushed_out = False

    def emitted(self, x: Text, length: int) -> dict[Text, float]:
        def parts() -> Iterator[tuple[Text, float]]:
            if not self.pushed_out or not length:
                yield from judged(self, (), x[:length], bonus=True)
                return
            for text, mass in judged(self, (), x[:1], bonus=length == 0):
                if text == x[:1] and length > 1:  # accepted: the rest waits, and is judged next
                    after = judged(self, text, x[1:length], bonus=True)
                    yield from ((more, mass * chance) for more, chance in after)
                else:
                    yield text, mass

        return completed(self, parts())


class Known(AcceptancePredictor):
    """A predictor that knows."""

    def __init__(self, acceptance: Any) -> None:
        super().__init__()
        self.acceptance = acceptance

    def predict_drafts(self, features: Any) -> Any:
        return self.acceptance.copy()


def lengths(policy: LengthPolicy, seen: Any, apart: Any) -> Any:
    control = LengthControl(policy, K, predictor=Known(seen))
    batch = Batch(np.arange(2), np.full(2, K))
    tokens = np.zeros((2, K), np.int32)
    drafts = Drafts(tokens, np.full(2, K), tokens[:, :, None], np.ones((2, K, 1)))
    return control.cut(batch, np.arange(2), drafts, np.ones(2), apart)


def off(apart: bool, push: bool, requests: list[Request]) -> float:
    """How far the joint law of both is from that of p."""

    def choose(seen: Any, xs: tuple[Text, ...]) -> Any:
        found = lengths(Threshold(TIMES, rate=RATE, lookahead=0), seen, np.array([apart, False]))
        requests[B].pushed_out = push and found[A] > 0  # type: ignore[attr-defined]
        return found

    made = joint_law(requests, V, K, choose)
    return distance(made, target_law(requests, V, K + 1))


def pair(seed: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    a, b = (random_request(rng, V, K) for _ in range(2))
    return [a, Behind(b.p, b.q)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_list_that_pushes_out_another_does_not_know_it(seed: int) -> None:
    assert off(apart=True, push=True, requests=pair(seed)) < 1e-12


def test_one_that_does_bends_the_law() -> None:
    """Though its policy is adapted: while nobody is pushed out, the law is right."""
    found = [off(apart=False, push=True, requests=pair(seed)) for seed in SEEDS]
    assert min(found) > 0.004
    assert max(found) > 0.05
    for seed in SEEDS:
        assert off(apart=False, push=False, requests=pair(seed)) < 1e-12


class ByItsLength(LengthControl):
    """Wrong: whether a list is verified depends on how long its tokens made it."""

    def _apart(self, batch: Batch, places: Any, *words: Any) -> Any:
        lengths = words[1]
        return np.zeros_like(lengths) if batch.room < lengths.sum() else lengths


@pytest.mark.parametrize("kind", [LengthControl, ByItsLength])
def test_a_list_is_weighed_against_the_room_by_what_it_may_have(kind: type[LengthControl]) -> None:
    """Chains end behind token 0, and the step has room for two drafts: the first token's law."""
    control = kind(Threshold(TIMES, rate=RATE), K, predictor=Known(np.ones((1, K))))
    p, q = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    law = np.zeros(V)
    for chain in [(0,), (1, 0), (1, 1, 0), (1, 1, 1)]:
        tokens = np.zeros((1, K), np.int32)
        drafts = Drafts(tokens, np.array([len(chain)]), tokens[:, :, None], np.ones((1, K, 1)))
        batch = Batch(np.arange(1), np.full(1, K), room=2)
        (verified,) = control.cut(batch, np.arange(1), drafts, np.ones(1), np.array([True]))
        own, chance = chain[0], 0.5 ** len(chain)
        if verified == 0:
            law += chance * p
            continue
        kept = min(1.0, p[own] / q[own])
        residual = np.maximum(p - q, 0)
        law[own] += chance * kept
        law += chance * (1 - kept) * residual / residual.sum()
    assert np.allclose(law, p, atol=1e-12) is (kind is LengthControl)
