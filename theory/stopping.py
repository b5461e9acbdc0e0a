"""How many tokens to draft: an optimal stopping problem, solved exactly.

One step drafts tokens one by one, stops, and verifies them in one target forward. Token n is of a
class z_n (what a predictor sees: order matched, confidence, ...), a Markov chain; it is accepted
with a(z_n) given that all before it were. With s_n = a(z_1)...a(z_n), a step of n drafts

    emits   1 + s_1 + ... + s_n      tokens in the mean (the last one is the target's own), and
    costs   T(n) + d n + c1 ((1-s_1) + ... + (1-s_n)),

T(n) the time of a forward that verifies n drafts, d the cost of drafting one, c1 the price of a
discarded one (SpecDec++, arXiv 2405.19715: T(n) = c2, d = 0). By renewal-reward the best policy
minimises E[cost]/E[tokens]; its value is lambda, the cost of a token, and 1/lambda are tokens/s.

Threshold theorem (docs/theory.md, statement 13). For every n and class there is a survival below
which it is optimal to stop. Whatever the chain: it is optimal to stop once P(some draft is refused)
= 1 - s_n >= lambda/(c1 + lambda); and lambda <= T(0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from theory.laws import Floats, as_law

Policy = Callable[[int, float, int], bool]
"""(drafts so far, P(all of them are accepted), class of the last one or -1) -> draft one more?"""
MAX_STATES = 2_000_000


@dataclass(frozen=True)
class DraftLengthProblem:
    """acceptance (Z,) in [0, 1]; initial (Z,) and transition (Z, Z) laws of the class chain;
    step_times (K+1,): cost of verifying 0..K drafts, K the longest draft; costs in one unit.

    Arrays or lists; laws within 1e-6 are renormalised. Raises ValueError for anything else.
    """

    acceptance: Floats
    initial: Floats
    transition: Floats
    step_times: Floats
    draft_cost: float = 0.0
    discard_cost: float = 0.0

    def __post_init__(self) -> None:
        for name in ("acceptance", "initial", "transition", "step_times"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        chances, times = self.acceptance, self.step_times
        if chances.ndim != 1 or not chances.size or not np.all((chances >= 0) & (chances <= 1)):
            raise ValueError(f"acceptance must be one or more numbers in [0, 1]; got {chances}")
        classes = chances.size
        if self.initial.shape != (classes,) or self.transition.shape != (classes, classes):
            raise ValueError(
                f"initial and transition must have {classes} classes, as acceptance has; got "
                f"shapes {self.initial.shape} and {self.transition.shape}"
            )
        for name in ("initial", "transition"):
            object.__setattr__(self, name, as_law(getattr(self, name), name))
        if times.ndim != 1 or times.size < 1 or not np.all((times > 0) & (times < np.inf)):
            raise ValueError(f"step_times must be positive numbers for 0..K drafts; got {times}")
        for name in ("draft_cost", "discard_cost"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be finite and at least 0; got {getattr(self, name)}")

    @property
    def longest(self) -> int:
        """K, the longest draft."""
        return self.step_times.size - 1


def profile_problem(
    acceptance: ArrayLike,
    *,
    verify_cost: float | None = None,
    step_times: ArrayLike | None = None,
    draft_cost: float = 0.0,
    discard_cost: float = 0.0,
) -> DraftLengthProblem:
    """The problem of a known acceptance profile: draft i is accepted with acceptance[i-1].

    Give either `verify_cost` (the same for every n) or `step_times` for 0..K drafts, K at most the
    length of the profile. Raises ValueError otherwise, and for entries outside [0, 1].
    """
    profile = np.atleast_1d(np.asarray(acceptance, dtype=np.float64))
    if profile.ndim != 1 or not profile.size:
        raise ValueError(f"acceptance must be one or more numbers in [0, 1]; got {acceptance!r}")
    if (verify_cost is None) == (step_times is None):
        given = "neither" if verify_cost is None else "both"
        raise ValueError(f"give either verify_cost or step_times; got {given}")
    if verify_cost is not None and not 0 < verify_cost < np.inf:
        raise ValueError(f"verify_cost must be finite and positive; got {verify_cost}")
    times = np.full(profile.size + 1, verify_cost, dtype=np.float64)
    if step_times is not None:
        times = np.asarray(step_times, dtype=np.float64)
        if times.ndim != 1 or not 1 <= times.size <= profile.size + 1:
            raise ValueError(
                f"step_times needs 1 to {profile.size + 1} entries (0..K drafts); got {times.shape}"
            )
    chain = np.eye(profile.size, k=1)
    chain[-1, -1] = 1.0
    first = np.eye(1, profile.size)[0]
    return DraftLengthProblem(profile, first, chain, times, draft_cost, discard_cost)


@dataclass(frozen=True)
class _Level:
    """Reachable states after n drafts: survival, class; edges from the level before."""

    survival: Floats
    kind: NDArray[np.int64]
    source: NDArray[np.int64]
    child: NDArray[np.int64]
    chance: Floats


def _levels(problem: DraftLengthProblem) -> list[_Level]:
    """All reachable states, merged exactly: survival depends only on how often each class came."""
    classes = problem.acceptance.size
    none = np.zeros(0, dtype=np.int64)
    levels = [_Level(np.ones(1), np.array([-1]), none, none, np.zeros(0))]
    counts = np.zeros((1, classes), dtype=np.int64)
    chain = np.vstack([problem.transition, problem.initial])  # row -1: before the first draft
    for _ in range(problem.longest):
        now = levels[-1]
        source, kind = np.nonzero(chain[now.kind])
        grown = counts[source]
        grown[np.arange(kind.size), kind] += 1
        keys = np.column_stack([grown, kind])
        states, child = np.unique(keys, axis=0, return_inverse=True)
        counts = states[:, :-1]
        if counts.shape[0] > MAX_STATES:
            raise ValueError(f"more than {MAX_STATES} states: use fewer classes or a shorter draft")
        survival = np.prod(problem.acceptance**counts, axis=1)
        chance = chain[now.kind[source], kind]
        levels.append(_Level(survival, states[:, -1], source, child.ravel(), chance))
    return levels


@dataclass(frozen=True)
class Solution:
    """cost_per_token (lambda), tokens_per_step, cost_per_step of a policy and, for the optimum,
    `draft`: for each n < K the states (survival, class, draft one more?)."""

    cost_per_token: float
    tokens_per_step: float
    cost_per_step: float
    draft: tuple[tuple[Floats, NDArray[np.int64], NDArray[np.bool_]], ...] = ()

    @property
    def tokens_per_cost(self) -> float:
        """Tokens for a unit of cost: tokens/s when costs are seconds."""
        return 1 / self.cost_per_token


def solve(problem: DraftLengthProblem) -> Solution:
    """The optimal policy: policy iteration on lambda (Dinkelbach 1967) around backward induction.

    V_n(s, z) = max(0, E[(lambda + c1) s a(z') - c1 - (T(n+1) - T(n)) - d + V_{n+1}(s a(z'), z')]).
    States are enumerated and merged exactly, no grid; lambda falls strictly until the policy
    repeats, so the answer is exact up to rounding. Raises ValueError above `MAX_STATES` states.
    """
    levels = _levels(problem)
    best = _evaluate(problem, levels, [np.zeros(level.survival.size, bool) for level in levels])
    while True:
        choices = _best_response(problem, levels, best.cost_per_token)
        found = _evaluate(problem, levels, choices)
        if found.cost_per_token >= best.cost_per_token * (1 - 1e-14):
            break
        best = found
    choices = _best_response(problem, levels, best.cost_per_token)
    table = tuple(
        (level.survival, level.kind, draft)
        for level, draft in zip(levels[:-1], choices[:-1], strict=True)
    )
    return Solution(best.cost_per_token, best.tokens_per_step, best.cost_per_step, table)


def value_iteration(problem: DraftLengthProblem, cost_per_token: float) -> list[Floats]:
    """V_n of every reachable state at a given lambda (see `solve`), n = 0..K.

    T(0) - V_0 - lambda is 0 at the optimal lambda, negative above it.
    """
    levels = _levels(problem)
    return [value for value, _ in _induction(problem, levels, cost_per_token)]


def evaluate(problem: DraftLengthProblem, policy: Policy) -> Solution:
    """Exact cost per token, tokens and cost per step of any policy."""
    levels = _levels(problem)
    choices = [
        np.array(
            [policy(n, float(s), int(z)) for s, z in zip(level.survival, level.kind, strict=True)],
            dtype=bool,
        )
        for n, level in enumerate(levels)
    ]
    return _evaluate(problem, levels, choices)


def fixed_length(length: int) -> Policy:
    """The policy that always drafts `length` tokens."""
    return lambda n, survival, kind: n < length


def threshold_policy(refusal: float) -> Policy:
    """Draft while P(some draft is refused) < `refusal`."""
    return lambda n, survival, kind: 1 - survival < refusal


def best_fixed_length(problem: DraftLengthProblem) -> tuple[int, Solution]:
    """The draft length with the smallest cost per token, and what it achieves."""
    found = [evaluate(problem, fixed_length(n)) for n in range(problem.longest + 1)]
    best = int(np.argmin([solution.cost_per_token for solution in found]))
    return best, found[best]


def refusal_threshold(problem: DraftLengthProblem, cost_per_token: float) -> Floats:
    """h_n = (lambda - (T(n+1) - T(n)) - d)/(lambda + c1), n = 0..K-1: draft n+1 is worth its own
    cost exactly while P(some of the n+1 drafts is refused) < h_n; lambda/(lambda + c1) if T is
    constant and drafts are free."""
    marginal = np.diff(problem.step_times) + problem.draft_cost
    return np.asarray((cost_per_token - marginal) / (cost_per_token + problem.discard_cost))


def thresholds(solution: Solution, classes: int) -> tuple[Floats, bool]:
    """Survival thresholds of a solution, shape (K, classes), and whether the policy has that form.

    Entry [n, z]: the smallest survival at which the optimal policy drafts in class z after n drafts
    (inf: never, or unreachable); row 0 is the start, the same for all classes.
    """
    edge = np.full((len(solution.draft), classes), np.inf)
    ordered = True
    for n, (survival, kind, draft) in enumerate(solution.draft):
        for z in range(classes):
            here = (kind == z) | (kind == -1)
            yes, no = survival[here & draft], survival[here & ~draft]
            if yes.size:
                edge[n, z] = yes.min()
                ordered &= not no.size or bool(no.max() <= yes.min())
    return edge, ordered


def _induction(
    problem: DraftLengthProblem, levels: Sequence[_Level], price: float
) -> list[tuple[Floats, Floats]]:
    """(V_n, value of drafting one more) on every level, by backward induction."""
    last = levels[-1].survival.size
    result = [(np.zeros(last), np.full(last, -np.inf))]
    for n in range(problem.longest - 1, -1, -1):
        after = levels[n + 1]
        marginal = problem.step_times[n + 1] - problem.step_times[n] + problem.draft_cost
        gain = (price + problem.discard_cost) * after.survival - problem.discard_cost - marginal
        worth = after.chance * (gain + result[-1][0])[after.child]
        draft = np.bincount(after.source, worth, levels[n].survival.size)
        result.append((np.maximum(draft, 0.0), draft))
    return result[::-1]


def _best_response(
    problem: DraftLengthProblem, levels: Sequence[_Level], price: float
) -> list[NDArray[np.bool_]]:
    return [draft > 0 for _, draft in _induction(problem, levels, price)]


def _evaluate(
    problem: DraftLengthProblem, levels: Sequence[_Level], choices: Sequence[NDArray[np.bool_]]
) -> Solution:
    reach: Floats = np.ones(1)
    tokens, cost = 1.0, float(problem.step_times[0])
    for n in range(problem.longest):
        after = levels[n + 1]
        going = np.where(choices[n], reach, 0.0)
        moved = after.chance * going[after.source]
        reach = np.bincount(after.child, moved, after.survival.size).astype(np.float64)
        drafted, kept = float(reach.sum()), float(reach @ after.survival)
        marginal = problem.step_times[n + 1] - problem.step_times[n] + problem.draft_cost
        tokens += kept
        cost += drafted * float(marginal) + problem.discard_cost * (drafted - kept)
    return Solution(cost / tokens, tokens, cost)
