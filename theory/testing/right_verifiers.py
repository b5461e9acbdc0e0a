"""Reference samplers of every correct rule, in numpy: what `check_sampler` must call lossless."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from theory.acceptance import kseq_rho
from theory.exact_flow import optimal_coupling
from theory.laws import Floats, Ints
from theory.testing.draws import distinct_rows, inverse_cdf, mass_of, per_distinct_row, residual
from theory.testing.schemes import TOP_PLUS_ONE, WITHOUT_REPLACEMENT
from theory.testing.verifier import Verifier


def token(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
    """Accept the first candidate with min(1, p/q), else emit from norm((p-q)+)."""
    x = candidates[:, 0]
    accepted = uniforms[:, 0] * mass_of(q, x) < mass_of(p, x)
    weights = np.where((x >= 0)[:, None], residual(p, q), p)
    return np.where(accepted, x, inverse_cdf(weights, uniforms[:, -1]))


def match(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
    """Emit y ~ p, whatever was drafted."""
    return inverse_cdf(p, uniforms[:, -1])


def kseq(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
    """K-SEQ with rho*: accept each with min(1, p/(rho q)); SpecTr, arXiv 2310.15141, alg. 2."""
    k = candidates.shape[1]
    rho = per_distinct_row(lambda a, b: kseq_rho(a, b, k), p, q)[:, None]
    kept = np.minimum(q, p / rho)
    beta = np.clip(kept.sum(axis=1, keepdims=True), 0.0, 1.0)
    offers = sum((1 - beta) ** j for j in range(k))
    result = inverse_cdf(residual(p, offers * kept), uniforms[:, -1])
    for j in reversed(range(k)):
        x = candidates[:, j]
        accepted = uniforms[:, j] * mass_of(q, x) < mass_of(kept, x)
        result = np.where(accepted, x, result)
    return result


def rrs(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
    """Recursive rejection, iid candidates: r becomes norm((r-q)+) after each refusal."""
    return _recursive(p, q, candidates, uniforms, with_replacement=True)


def rrs_without_replacement(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
    """Recursive rejection, different candidates: the refused one leaves q, q is renormalised."""
    return _recursive(p, q, candidates, uniforms, with_replacement=False)


def top_plus_one(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
    """A token step of the last candidate against q restricted to the others."""
    rest = q.copy()
    np.put_along_axis(rest, candidates[:, :-1], 0.0, axis=1)
    whole = rest.sum(axis=1, keepdims=True)
    rest = np.divide(rest, whole, out=rest, where=whole > 0)
    return token(p, rest, candidates[:, -1:], uniforms[:, -2:])


def sparse_optimal(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
    """The optimal coupling of the candidate sets with p, by an exact max-flow for each (p, q)."""
    k = candidates.shape[1]
    first, inverse = distinct_rows(p, q, candidates)
    chances = np.empty((first.size, k))
    left = np.empty((first.size, p.shape[1]))
    for row, at in enumerate(first):
        coupling, weights = _coupling(tuple(p[at].tolist()), tuple(q[at].tolist()), k)
        members = tuple(sorted(candidates[at].tolist()))
        alive, left[row] = coupling[members, -1], weights
        for j, x in enumerate(candidates[at].tolist()):
            mass = coupling.get((members, x), 0.0)
            chances[row, j] = mass / alive if alive > 0 else 0.0
            alive -= mass
    result = inverse_cdf(left[inverse], uniforms[:, -1])
    for j in reversed(range(k)):
        result = np.where(uniforms[:, j] < chances[inverse, j], candidates[:, j], result)
    return result


@lru_cache(maxsize=4096)
def _coupling(
    p: tuple[float, ...], q: tuple[float, ...], k: int
) -> tuple[dict[tuple[tuple[int, ...], int], float], list[float]]:
    """S[t, i], with P(t) under key (t, -1), and the residual weights p - sum_t S."""
    from fractions import Fraction

    exact_p, exact_q = [Fraction(m) for m in p], [Fraction(m) for m in q]
    exact_q = [m / sum(exact_q) for m in exact_q]
    flow, chances = optimal_coupling(exact_p, exact_q, k, "without_replacement")
    coupling = {(members, -1): float(chance) for members, chance in chances.items()}
    left = list(exact_p)
    for (i, members), mass in flow.items():
        coupling[members, i] = float(mass)
        left[i] -= mass
    weights = [float(m) for m in left]
    return coupling, weights if sum(weights) > 0 else list(p)


def token_chain(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
    """The token rule along a chain: up to the first refusal, or with a bonus token from p."""
    batch, steps = candidates.shape
    x = np.maximum(candidates, 0)[:, :, None]
    p_x = np.take_along_axis(p[:, :steps], x, axis=2)[:, :, 0]
    q_x = np.take_along_axis(q, x, axis=2)[:, :, 0]
    accepted = (uniforms[:, :steps] * q_x < p_x) & (candidates >= 0)
    kept = np.cumprod(accepted, axis=1).sum(axis=1)
    return finish(p, q, candidates, kept, np.ones(batch), uniforms[:, -1])


def block(p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
    """Keep the largest i with u_i < h_i; Sun et al., arXiv 2403.10444, algorithm 2."""
    reach, thresholds = block_thresholds(p, q, candidates)
    depth = np.arange(1, candidates.shape[1] + 1)
    kept = np.max((uniforms[:, :-1] < thresholds) * depth, axis=1)
    scale = np.take_along_axis(reach, kept[:, None], axis=1)[:, 0]
    return finish(p, q, candidates, kept, scale, uniforms[:, -1])


def block_thresholds(p: Floats, q: Floats, candidates: Ints) -> tuple[Floats, Floats]:
    """r_0..r_K, shape (B, K + 1), and h_1..h_K, shape (B, K).

    r_i = min(1, r_{i-1} p(x_i)/q(x_i)), Z_i = sum (r_i p - q)+, h_i = Z_i/(Z_i + 1 - r_i), and
    h_i = r_i for the last draft of a chain.
    """
    batch, steps = candidates.shape
    reach, thresholds = np.ones((batch, steps + 1)), np.zeros((batch, steps))
    lengths = (candidates >= 0).sum(axis=1)
    for i in range(1, steps + 1):
        x = candidates[:, i - 1]
        q_x = mass_of(q[:, i - 1], x)
        ratio = np.divide(mass_of(p[:, i - 1], x), q_x, out=np.zeros(batch), where=q_x > 0)
        reach[:, i] = np.minimum(1.0, reach[:, i - 1] * ratio)
        last = lengths == i
        thresholds[:, i - 1] = np.where(last, reach[:, i], 0.0)
        if i < steps:
            excess = np.maximum(reach[:, i, None] * p[:, i] - q[:, i], 0.0).sum(axis=1)
            slack = excess + 1 - reach[:, i]
            h = np.divide(excess, slack, out=np.ones(batch), where=slack > 0)
            thresholds[:, i - 1] = np.where(lengths > i, h, thresholds[:, i - 1])
    return reach, thresholds


def _recursive(
    p: Floats, q: Floats, candidates: Ints, uniforms: Floats, *, with_replacement: bool
) -> Ints:
    target, draft = p, q
    done = np.zeros(p.shape[0], dtype=bool)
    result = np.zeros(p.shape[0], dtype=np.int64)
    for j in range(candidates.shape[1]):
        x = candidates[:, j]
        offered = x >= 0
        taken = offered & ~done & (uniforms[:, j] * mass_of(draft, x) < mass_of(target, x))
        result = np.where(taken, x, result)
        done = done | taken
        left = residual(target, draft)
        left = left / left.sum(axis=1, keepdims=True)
        target = np.where(offered[:, None], left, target)
        if not with_replacement:
            draft = draft.copy()
            draft[np.arange(x.size), np.maximum(x, 0)] *= ~offered
            whole = draft.sum(axis=1, keepdims=True)
            draft = np.divide(draft, whole, out=np.zeros_like(draft), where=whole > 0)
    return np.where(done, result, inverse_cdf(target, uniforms[:, -1]))


def finish(p: Floats, q: Floats, candidates: Ints, kept: Ints, scale: Floats, u: Floats) -> Ints:
    """The kept drafts, then one token from norm((scale p - q)+), or from p after a whole chain."""
    batch, steps = candidates.shape
    each = np.arange(batch)
    whole = kept == (candidates >= 0).sum(axis=1)
    here = p[each, kept]
    left = residual(scale[:, None] * here, q[each, np.minimum(kept, steps - 1)])
    last = inverse_cdf(np.where(whole[:, None], here, left), u)
    places = np.arange(steps + 1)
    drafts = np.concatenate([candidates, last[:, None]], axis=1)
    tokens = np.where(places == kept[:, None], last[:, None], drafts)
    return np.where(places <= kept[:, None], tokens, -1)


RIGHT: dict[str, Verifier] = {
    verifier.name: verifier
    for verifier in (
        Verifier("token", "Leviathan et al., arXiv 2211.17192", token),
        Verifier("match", "draws of the target itself", match),
        Verifier("kseq", "SpecTr, arXiv 2310.15141", kseq),
        Verifier("rrs", "SpecInfer, arXiv 2305.09781", rrs),
        Verifier(
            "rrs_without_replacement",
            "Sequoia, arXiv 2402.12374",
            rrs_without_replacement,
            drafts=WITHOUT_REPLACEMENT,
        ),
        Verifier("top_plus_one", "Hu et al., arXiv 2502.18779", top_plus_one, drafts=TOP_PLUS_ONE),
        Verifier(
            "sparse_optimal", "the optimal coupling", sparse_optimal, drafts=WITHOUT_REPLACEMENT
        ),
        Verifier("token_chain", "the token rule along a chain", token_chain, "chain"),
        Verifier("block", "Sun et al., arXiv 2403.10444", block, "chain"),
    )
}
"""Every correct rule by name."""

__all__ = ["RIGHT"]
