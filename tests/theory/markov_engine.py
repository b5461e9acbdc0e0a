"""A small engine to audit: exact next-token laws, and a sampler that follows them or does not."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from theory.audit_statistics import SequentialAudit
from theory.exact import Law, emitted_token
from theory.head_law import HeadLaw, tempered_head
from theory.wrong_rules import WrongRule

Laws = NDArray[np.float64]
VOCABULARY = 6
PROMPTS = ([0, 1, 2, 0, 1, 2], [3, 4, 3, 4, 3], [5, 0, 5, 0])


def target(seed: int = 0) -> Laws:
    """The law after each token, (V, V); every entry positive."""
    rng = np.random.default_rng(seed)
    return 0.95 * rng.dirichlet(np.full(VOCABULARY, 0.7), VOCABULARY) + 0.05 / VOCABULARY


def under_a_grammar(p: Laws) -> Laws:
    """The laws when the two most probable tokens after each token are forbidden."""
    left = p.copy()
    np.put_along_axis(left, np.argsort(-p, axis=1)[:, :2], 0.0, axis=1)
    return left / left.sum(axis=1, keepdims=True)


def drafts(p: Laws) -> tuple[Laws, Laws]:
    """Two draft laws: one far from p and sharp, one near and flat; each hides some faults."""
    rng = np.random.default_rng(1)
    far = 0.97 * rng.dirichlet(np.full(VOCABULARY, 0.3), VOCABULARY) + 0.03 / VOCABULARY
    near = 0.3 * p + 0.7 * rng.dirichlet(np.full(VOCABULARY, 3.0), VOCABULARY)
    return far, near


def distance(p: Laws, other: Laws) -> float:
    """Total variation, averaged over the laws."""
    return float(np.abs(p - other).sum(axis=1).mean()) / 2


def wrong_law(rule: WrongRule, p: Laws) -> Laws:
    """What a wrong rule emits after each token, (V, V); the drafts show its fault best."""
    return max((_emitted(rule, p, q) for q in drafts(p)), key=lambda law: distance(p, law))


def _emitted(rule: WrongRule, p: Laws, q: Laws) -> Laws:
    rows = []
    for target_row, draft_row in zip(p, q, strict=True):
        joint = rule(_fractions(target_row), _fractions(draft_row), 3)
        row = np.array([float(mass) for mass in emitted_token(joint, VOCABULARY)])
        rows.append(row / row.sum())  # some wrong rules do not even emit a token every time
    return np.array(rows)


def _fractions(row: Laws) -> Law:
    whole = np.round(row * 1e4).astype(int).tolist()
    return tuple(Fraction(x, sum(whole)) for x in whole)


def heads(p: Laws) -> list[HeadLaw]:
    """The exact laws as an engine would report them."""
    ids = np.arange(VOCABULARY)
    with np.errstate(divide="ignore"):
        return [tempered_head(ids, np.log(row), 1.0, vocabulary=VOCABULARY) for row in p]


def texts(
    emission: Laws, prompt: Sequence[int], count: int, length: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(count, length) tokens sampled after the prompt."""
    cumulative = np.cumsum(emission, axis=1)
    last = np.full(count, prompt[-1])
    found = np.empty((count, length), np.int64)
    for t in range(length):
        u = rng.random((count, 1))
        last = np.minimum((u > cumulative[last]).sum(axis=1), len(emission) - 1)
        found[:, t] = last
    return found


def audit(
    p: Laws,
    emission: Laws,
    *,
    most: int,
    seed: int = 0,
    length: int = 25,
    clear: bool = True,
    **settings: float,
) -> SequentialAudit:
    """Audit a sampler of law ``emission`` against p until it is decided, or ``most`` tokens."""
    rng = np.random.default_rng(seed)
    statistics = SequentialAudit(**settings)
    laws = heads(p)
    while statistics.tested < most:
        for prompt in PROMPTS:
            for text in texts(emission, prompt, 4, length, rng):
                before = [prompt[-1], *text[:-1]]
                statistics.observe(prompt, text.tolist(), [laws[x] for x in before])
        statistics.look()
        if statistics.refuted or (clear and statistics.cleared):
            break
    return statistics
