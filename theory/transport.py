"""The optimal coupling itself, by linear programming, with a certificate that is checked here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from theory.candidates import incidence, set_law
from theory.laws import Floats, Ints, as_pair, check_candidates
from theory.optimum import Drafts

GAP_TOLERANCE = 1e-8


@dataclass(frozen=True)
class TransportPlan:
    """An optimal coupling of the target with the candidate sets, and the proof that it is optimal.

    sets: the T candidate sets (sorted tuples); set_probabilities (T,); plan (V, T): P(emit i and
    candidates are t), non-zero only for i in t; dual = (u (V,), v (T,)) with u_i + v_t >= 1 for i
    in t, u, v >= 0; primal_value = sum of plan; dual_value = p.u + P.v; gap = dual - primal, which
    bounds the distance of both from the optimum; slackness: largest complementary product.
    """

    sets: tuple[tuple[int, ...], ...]
    set_probabilities: Floats
    plan: Floats
    dual: tuple[Floats, Floats]
    primal_value: float
    dual_value: float
    gap: float
    slackness: float


def transport_plan(p: ArrayLike, q: ArrayLike, k: int, *, drafts: Drafts = "iid") -> TransportPlan:
    """Solve max sum S[i,t], sum_t S[i,t] <= p_i, sum_i S[i,t] <= P(t), S >= 0, i in t, by HiGHS.

    The solver's answer is not trusted: S is scaled into the constraints and the dual is lifted to
    v_t = max(0, 1 - min_{i in t} u_i), so that both are feasible as stored; what is left is `gap`,
    checked together with complementary slackness against 1e-8. p, q: shape (V,), V small (at most
    2,000,000 multisets or tuples of candidates). Raises ValueError for bad input, RuntimeError if
    the certificate fails.
    Optimal transport form: Sun et al. 2023, arXiv 2310.15141, section 3.
    """
    if drafts not in get_args(Drafts):
        raise ValueError(f"drafts must be one of {get_args(Drafts)}; got {drafts!r}")
    target, draft = as_pair(p, q)
    if target.ndim != 1:
        raise ValueError(f"transport_plan takes laws of shape (V,); got {target.shape}")
    check_candidates(k, None if drafts == "iid" else draft)
    law = set_law(draft.tolist(), k, drafts)
    sets = tuple(law)
    chances = np.array([law[members] for members in sets], dtype=np.float64)
    token, owner = incidence(sets)
    mass, price = _solve(target, chances, token, owner)
    return _certify(target, sets, chances, token, owner, mass, price)


def emitted_by_plan(p: Floats, q: Floats, k: int) -> Floats:
    """Law of the emitted token under the optimal coupling of k draws without replacement.

    Candidates t are offered with P(t); token i in t is accepted with S[i,t]/P(t); otherwise the
    token comes from the residual p - sum_t S[i,t], normalised.
    """
    solved = transport_plan(p, q, k, drafts="without_replacement")
    accepted = solved.plan.sum(axis=1)
    refused = float(np.sum(solved.set_probabilities - solved.plan.sum(axis=0)))
    left = np.maximum(p - accepted, 0.0)
    return np.asarray(accepted + (refused * left / left.sum() if left.sum() > 0 else 0.0))


def _solve(p: Floats, chances: Floats, token: Ints, owner: Ints) -> tuple[Floats, Floats]:
    """Edge masses and token prices from HiGHS, unchecked."""
    from importlib import import_module

    from scipy.sparse import csr_matrix

    cp = import_module("cvxpy")  # slow to import, only needed here, and without types

    edges = np.arange(token.size)
    ones = np.ones(token.size)
    by_token = csr_matrix((ones, (token, edges)), shape=(p.size, token.size))
    by_set = csr_matrix((ones, (owner, edges)), shape=(chances.size, token.size))
    flow = cp.Variable(token.size, nonneg=True)
    supply = by_token @ flow <= p
    problem = cp.Problem(cp.Maximize(cp.sum(flow)), [supply, by_set @ flow <= chances])
    tight = {
        "primal_feasibility_tolerance": 1e-10,
        "dual_feasibility_tolerance": 1e-10,
    }
    problem.solve(solver=cp.HIGHS, highs_options=tight)
    if problem.status != cp.OPTIMAL:
        raise RuntimeError(f"HiGHS answered {problem.status!r} to a transport problem")
    return np.asarray(flow.value, dtype=np.float64), np.asarray(supply.dual_value, dtype=np.float64)


def _certify(
    p: Floats,
    sets: tuple[tuple[int, ...], ...],
    chances: Floats,
    token: Ints,
    owner: Ints,
    mass: Floats,
    price: Floats,
) -> TransportPlan:
    plan = np.zeros((p.size, chances.size))
    plan[token, owner] = np.maximum(mass, 0.0)
    for axis, bound in ((1, p), (0, chances)):
        used = plan.sum(axis=axis)
        scale = np.where(used > bound, bound / np.where(used > 0, used, 1.0), 1.0)
        plan *= scale[:, None] if axis == 1 else scale[None, :]
    u = np.clip(price, 0.0, 1.0)
    v = np.array([max(0.0, 1.0 - min(u[i] for i in members)) for members in sets])
    primal, dual = float(plan.sum()), float(p @ u + chances @ v)
    slackness = max(
        float(np.max(u * (p - plan.sum(axis=1)))),
        float(np.max(v * (chances - plan.sum(axis=0)))),
        float(np.max(plan[token, owner] * (u[token] + v[owner] - 1))),
    )
    feasible = (
        np.all(plan.sum(axis=1) <= p + 1e-12)
        and np.all(plan.sum(axis=0) <= chances + 1e-12)
        and np.all(u[token] + v[owner] >= 1 - 1e-12)
    )
    if not feasible or dual - primal > GAP_TOLERANCE or slackness > GAP_TOLERANCE:
        raise RuntimeError(
            f"transport certificate failed: feasible {bool(feasible)}, gap {dual - primal:.3g}, "
            f"slackness {slackness:.3g}, allowed {GAP_TOLERANCE}"
        )
    return TransportPlan(sets, chances, plan, (u, v), primal, dual, dual - primal, slackness)
