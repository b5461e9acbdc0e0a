"""Exact laws of one speculative step of several requests under a length policy, by enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proposers.length.policy import Candidates, LengthPolicy

Law = NDArray[np.float64]
Chooser = Callable[[NDArray[np.float64], tuple[tuple[int, ...], ...]], NDArray[np.int64]]
"""(acceptance (B, K) along the drafts, the drafts themselves) -> lengths; only a mutant reads x."""


@dataclass(frozen=True)
class Request:
    """p and q after every prefix of fewer than K + 1 tokens, as arrays over V."""

    p: dict[tuple[int, ...], Law]
    q: dict[tuple[int, ...], Law]

    def drafted(self, x: tuple[int, ...]) -> float:
        """P(these drafts)."""
        return float(np.prod([self.q[x[:i]][x[i]] for i in range(len(x))]))

    def acceptance(self, x: tuple[int, ...]) -> list[float]:
        """P(draft i is accepted | x_<i), which is all that a policy may see."""
        prefixes = [x[:i] for i in range(len(x))]
        return [float(np.minimum(self.p[u], self.q[u]).sum()) for u in prefixes]

    def emitted(self, x: tuple[int, ...], length: int) -> dict[tuple[int, ...], float]:
        """Law of the first K + 1 tokens if so many drafts are verified by the token rule.

        What the step itself does not emit follows from p.
        """
        found: dict[tuple[int, ...], float] = {}
        reached = 1.0
        for i in range(length):
            p, q = self.p[x[:i]], self.q[x[:i]]
            kept = min(1.0, p[x[i]] / q[x[i]])
            residual = np.maximum(p - q, 0.0)
            if kept < 1:
                for y, mass in enumerate(residual / residual.sum()):
                    self._complete((*x[:i], y), reached * (1 - kept) * mass, len(x) + 1, found)
            reached *= kept
        for y, mass in enumerate(self.p[x[:length]]):
            self._complete((*x[:length], y), reached * mass, len(x) + 1, found)
        return found

    def _complete(
        self, text: tuple[int, ...], mass: float, size: int, found: dict[tuple[int, ...], float]
    ) -> None:
        if mass == 0:
            return
        if len(text) == size:
            found[text] = found.get(text, 0.0) + mass
            return
        for y, chance in enumerate(self.p[text]):
            self._complete((*text, y), mass * chance, size, found)


def random_request(rng: np.random.Generator, vocabulary: int, drafts: int) -> Request:
    """A target and a draft law after every prefix."""
    prefixes = [
        u for n in range(drafts + 1) for u in itertools.product(range(vocabulary), repeat=n)
    ]
    return Request(
        {u: rng.dirichlet(np.ones(vocabulary)) for u in prefixes},
        {u: rng.dirichlet(np.ones(vocabulary)) for u in prefixes},
    )


def joint_law(
    requests: list[Request], vocabulary: int, drafts: int, choose: Chooser
) -> dict[tuple[tuple[int, ...], ...], float]:
    """Law of all requests' first K + 1 tokens together."""
    found: dict[tuple[tuple[int, ...], ...], float] = {}
    chains = list(itertools.product(range(vocabulary), repeat=drafts))
    for xs in itertools.product(chains, repeat=len(requests)):
        mass = np.prod([r.drafted(x) for r, x in zip(requests, xs, strict=True)])
        seen = np.array([r.acceptance(x) for r, x in zip(requests, xs, strict=True)])
        lengths = choose(seen, xs)
        laws = [r.emitted(x, int(n)).items() for r, x, n in zip(requests, xs, lengths, strict=True)]
        for parts in itertools.product(*laws):
            texts = tuple(text for text, _ in parts)
            chance = mass * np.prod([part for _, part in parts])
            found[texts] = found.get(texts, 0.0) + float(chance)
    return found


def target_law(
    requests: list[Request], vocabulary: int, size: int
) -> dict[tuple[tuple[int, ...], ...], float]:
    """What it must be: independent answers of p."""
    texts = list(itertools.product(range(vocabulary), repeat=size))

    def alone(r: Request, text: tuple[int, ...]) -> float:
        return float(np.prod([r.p[text[:i]][text[i]] for i in range(size)]))

    return {
        each: float(np.prod([alone(r, text) for r, text in zip(requests, each, strict=True)]))
        for each in itertools.product(texts, repeat=len(requests))
    }


def distance(
    a: dict[tuple[tuple[int, ...], ...], float], b: dict[tuple[tuple[int, ...], ...], float]
) -> float:
    """Total variation."""
    return 0.5 * sum(abs(a.get(key, 0.0) - b.get(key, 0.0)) for key in a.keys() | b.keys())


def chooser(policy: LengthPolicy, budget: int = 1000) -> Chooser:
    """A policy, shown acceptances (and q features that are functions of them) only."""

    def choose(
        acceptance: NDArray[np.float64], xs: tuple[tuple[int, ...], ...]
    ) -> NDArray[np.int64]:
        batch, drafts = acceptance.shape
        features = np.repeat(acceptance[:, :, None], 8, axis=2).astype(np.float32)
        return policy.lengths(
            Candidates(
                np.arange(batch), acceptance, np.full(batch, drafts, np.int64), features, budget
            )
        )

    return choose
