"""An exact node rule as a runnable sampler with its own drafting: one description, two forms."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from theory.laws import Floats, Ints
from theory.testing.draws import distinct_rows, inverse_cdf
from theory.testing.schemes import Scheme
from theory.testing.verifier import Verifier
from theory.wrong_rules import WrongRule

Numbers = tuple[float, ...]
Drawn = tuple[int, ...]


def verifier_of(rule: WrongRule) -> Verifier:
    """The sampler and the drafting of a rule given as (p, q, k) -> node law, for float laws.

    Candidates follow the node law's own margin. Given them, coin 0 says which candidate, if any, is
    accepted, and the last uniform chooses among the tokens emitted otherwise: the conditional law
    of (emitted, accepted), by inverse transform.
    """

    @lru_cache(maxsize=4096)
    def given(p: Numbers, q: Numbers, k: int) -> dict[Drawn, tuple[Floats, Floats]]:
        laws: dict[Drawn, tuple[Floats, Floats]] = {}
        for (drawn, token, accepted), mass in rule(p, q, k).items():  # type: ignore[arg-type]
            parts = laws.setdefault(drawn, (np.zeros(len(p)), np.zeros(len(p))))
            parts[0 if accepted else 1][token] += float(mass)
        return laws

    @lru_cache(maxsize=4096)
    def drafted(q: Numbers, k: int) -> dict[Drawn, float]:
        margin: dict[Drawn, float] = {}
        for (drawn, _, _), mass in rule(q, q, k).items():  # type: ignore[arg-type]
            margin[drawn] = margin.get(drawn, 0.0) + float(mass)
        return margin

    def law(q: Floats, k: int) -> dict[Drawn, float]:
        return {drawn: mass for drawn, mass in drafted(tuple(q.tolist()), k).items() if mass > 0}

    def draw(q: Floats, noise: Floats) -> Ints:
        k = noise.shape[1]
        result = np.full(noise.shape, -1, dtype=np.int64)
        first, inverse = distinct_rows(q)
        for row, at in enumerate(first):
            here = np.flatnonzero(inverse == row)
            offers = law(q[at], k)
            weights = np.tile(list(offers.values()), (here.size, 1))
            chosen = inverse_cdf(weights, noise[here, 0])
            tuples = np.array([drawn + (-1,) * (k - len(drawn)) for drawn in offers])
            result[here] = tuples[chosen]
        return result

    def sampler(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
        k = candidates.shape[1]
        first, inverse = distinct_rows(p, q, candidates)
        accept, refuse = np.zeros((2, first.size, p.shape[1]))
        for row, at in enumerate(first):
            drawn = tuple(x for x in candidates[at].tolist() if x >= 0)
            parts = given(tuple(p[at].tolist()), tuple(q[at].tolist()), k)[drawn]
            whole = float(parts[0].sum() + parts[1].sum())
            accept[row], refuse[row] = parts[0] / whole, parts[1] / whole
        chance = accept.sum(axis=1)[inverse]
        taken = uniforms[:, 0] < chance
        level = np.where(taken, uniforms[:, 0] / np.where(chance > 0, chance, 1.0), 0.0)
        return np.where(
            taken,
            inverse_cdf(accept[inverse], np.minimum(level, 1 - 2**-53)),
            inverse_cdf(refuse[inverse], uniforms[:, -1]),
        )

    half = (0.5, 0.5)
    repeats = any(len(set(drawn)) < len(drawn) for drawn in drafted(half, 2))
    several = any(len(drawn) == 2 for drawn in drafted(half, 2))
    name = rule.__name__
    about = (rule.__doc__ or "").strip().split("\n\n")[0]
    scheme = Scheme(f"of {name}", draw, law, distinct=several and not repeats)
    return Verifier(name, " ".join(about.split()), sampler, "node", scheme)
