"""Draft lengths: optimal against brute force over every stopping rule, and of threshold form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.speedup import wall_clock_ratio
from theory.stopping import (
    DraftLengthProblem,
    best_fixed_length,
    evaluate,
    fixed_length,
    profile_problem,
    refusal_threshold,
    solve,
    threshold_policy,
    thresholds,
    value_iteration,
)


@st.composite
def problems(draw, longest=4, classes=2):
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    length = draw(st.integers(1, longest))
    times = 0.3 + np.sort(rng.random(length + 1)) if draw(st.booleans()) else np.ones(length + 1)
    return DraftLengthProblem(
        acceptance=np.round(rng.random(classes), 2),
        initial=rng.dirichlet(np.ones(classes)),
        transition=rng.dirichlet(np.ones(classes), size=classes),
        step_times=times,
        draft_cost=draw(st.sampled_from([0.0, 0.02, 0.3])),
        discard_cost=draw(st.sampled_from([0.0, 0.1, 1.0])),
    )


def all_stopping_rules(problem):
    """(mean tokens, mean cost) of every stopping rule that sees the classes so far."""

    def rules(n, survival, chain):
        stop = np.zeros((1, 2))
        if n == problem.longest:
            return stop
        going = np.zeros((1, 2))
        for z in np.flatnonzero(chain):
            s = survival * problem.acceptance[z]
            cost = problem.step_times[n + 1] - problem.step_times[n] + problem.draft_cost
            after = rules(n + 1, s, problem.transition[z])
            after = after + np.array([s, cost + problem.discard_cost * (1 - s)])
            going = (going[:, None] + chain[z] * after[None]).reshape(-1, 2)
        return np.vstack([stop, going])

    return rules(0, 1.0, problem.initial) + np.array([1.0, problem.step_times[0]])


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_optimum_is_the_best_of_all_stopping_rules(problem):
    every = all_stopping_rules(problem)
    best = (every[:, 1] / every[:, 0]).min()
    assert solve(problem).cost_per_token == pytest.approx(best, rel=1e-12)


def test_optimum_is_the_best_of_458330_rules_at_horizon_5():
    problem = DraftLengthProblem(
        np.array([0.9, 0.4]),
        np.array([0.5, 0.5]),
        np.array([[0.8, 0.2], [0.3, 0.7]]),
        np.array([1, 1.1, 1.25, 1.3, 1.5, 1.6]),
        draft_cost=0.02,
        discard_cost=0.05,
    )
    every = all_stopping_rules(problem)
    assert len(every) == 458_330
    best = (every[:, 1] / every[:, 0]).min()
    assert solve(problem).cost_per_token == pytest.approx(best, rel=1e-13)


@settings(max_examples=100, deadline=None)
@given(problem=problems(longest=6, classes=3))
def test_optimal_policy_has_threshold_form(problem):
    """For each depth and class: draft exactly while survival is above a threshold."""
    solution = solve(problem)
    edge, ordered = thresholds(solution, 3)
    assert ordered
    repeated = evaluate(problem, lambda n, s, z: n < problem.longest and s >= edge[n, max(z, 0)])
    assert repeated.cost_per_token == pytest.approx(solution.cost_per_token, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(problem=problems(longest=6, classes=3))
def test_stopping_is_optimal_beyond_the_refusal_threshold(problem):
    """SpecDec++'s theorem with its constant named: stop once P(refusal) >= lambda/(c1+lambda)."""
    solution = solve(problem)
    price = solution.cost_per_token
    assert price <= problem.step_times[0] + 1e-15
    edge = price / (problem.discard_cost + price)
    for survival, _, draft in solution.draft:
        assert not np.any(draft & (1 - survival >= edge - 1e-15))


@settings(max_examples=100, deadline=None)
@given(
    chance=st.floats(0.05, 0.99),
    discard=st.sampled_from([0.01, 0.1, 1.0]),
    longest=st.integers(1, 30),
)
def test_refusal_threshold_is_exact_for_a_profile(chance, discard, longest):
    """Known acceptance: the optimum drafts n+1 exactly while its refusal is below the threshold."""
    problem = profile_problem([chance] * longest, verify_cost=1.0, discard_cost=discard)
    solution = solve(problem)
    edge = refusal_threshold(problem, solution.cost_per_token)
    assert edge == pytest.approx(
        solution.cost_per_token / (solution.cost_per_token + discard), rel=1e-12
    )
    drafts = sum(bool(draft[0]) for _, _, draft in solution.draft)
    expected = sum(1 - chance ** (n + 1) < edge[n] - 1e-12 for n in range(longest))
    assert abs(drafts - expected) <= sum(
        abs(1 - chance ** (n + 1) - edge[n]) < 1e-11 for n in range(longest)
    )
    repeated = evaluate(problem, lambda n, s, z: n < longest and 1 - s * chance < edge[n])
    assert repeated.cost_per_token == pytest.approx(solution.cost_per_token, rel=1e-12)


def test_marginal_rule_with_a_measured_step_time_curve():
    """One more draft is worth it while survival > lambda dT/dn (convex T)."""
    times = np.array([13, 14, 15.2, 16.6, 18.5, 21, 24, 28]) * 1e-3
    profile = [0.8, 0.75, 0.7, 0.7, 0.6, 0.6, 0.5]
    problem = profile_problem(profile, step_times=times)
    solution = solve(problem)
    rate = solution.tokens_per_cost
    survival = np.cumprod(profile)
    marginal = survival > rate * np.diff(times)
    assert refusal_threshold(problem, 1 / rate) == pytest.approx(1 - rate * np.diff(times))
    length, fixed = best_fixed_length(problem)
    assert length == marginal.sum()
    assert np.all(np.diff(marginal.astype(int)) <= 0)
    assert rate == pytest.approx(fixed.tokens_per_cost)
    assert fixed.tokens_per_step == pytest.approx(1 + survival[:length].sum())
    ratio = wall_clock_ratio(profile[:length], times[: length + 1])
    assert rate * times[0] == pytest.approx(ratio)


def test_a_staircase_curve_can_pass_a_dear_step():
    """T not convex: the one-step rule would stop at 1, the optimum sees the flat part behind."""
    problem = profile_problem([0.9] * 6, step_times=[1, 1.0, 1.6, 1.6, 1.6, 1.6, 1.6])
    assert best_fixed_length(problem)[0] == 6
    assert solve(problem).tokens_per_step == pytest.approx(
        evaluate(problem, fixed_length(6)).tokens_per_step
    )


@settings(max_examples=50, deadline=None)
@given(problem=problems(longest=5, classes=3))
def test_optimum_beats_fixed_lengths_and_thresholds(problem):
    best = solve(problem).cost_per_token
    for n in range(problem.longest + 1):
        assert best <= evaluate(problem, fixed_length(n)).cost_per_token + 1e-12
    for edge in (0.1, 0.5, 0.9):
        assert best <= evaluate(problem, threshold_policy(edge)).cost_per_token + 1e-12


@settings(max_examples=40, deadline=None)
@given(problem=problems(longest=5, classes=3))
def test_value_iteration_vanishes_at_the_optimal_price(problem):
    """Average-cost optimality: T(0) - lambda - V_0 = 0 at lambda*, and falls in lambda."""
    price = solve(problem).cost_per_token

    def excess(at):
        return problem.step_times[0] - at - value_iteration(problem, at)[0][0]

    assert excess(price) == pytest.approx(0, abs=1e-12)
    assert excess(1.1 * price) < 0 < excess(0.9 * price)


def test_adaptive_lengths_gain_where_classes_differ():
    problem = DraftLengthProblem(
        np.array([0.95, 0.2]),
        np.array([0.5, 0.5]),
        np.array([[0.95, 0.05], [0.3, 0.7]]),
        np.linspace(1, 2.2, 13),
    )
    gain = best_fixed_length(problem)[1].cost_per_token / solve(problem).cost_per_token
    assert gain > 1.05


def test_lists_are_taken_and_laws_renormalised():
    problem = DraftLengthProblem([0.9, 0.4], [0.5, 0.5 + 9e-7], [[0.8, 0.2], [0.3, 0.7]], [1, 1.1])
    assert problem.initial.sum() == pytest.approx(1, abs=1e-15)
    with pytest.raises(ValueError, match="initial sums to 1 within"):
        DraftLengthProblem([0.9, 0.4], [0.5, 0.6], np.eye(2), [1, 1.1])


def test_simulated_steps_agree_with_the_evaluation():
    problem = DraftLengthProblem(
        np.array([0.9, 0.4]),
        np.array([0.6, 0.4]),
        np.array([[0.8, 0.2], [0.3, 0.7]]),
        np.array([1, 1.1, 1.2, 1.3]),
        discard_cost=0.2,
    )
    rng = np.random.default_rng(0)
    tokens = cost = 0.0
    policy = threshold_policy(0.5)
    steps = 40_000
    for _ in range(steps):
        n, survival, z, alive, kept = 0, 1.0, -1, True, 0
        while n < 3 and policy(n, survival, z):
            z = int(rng.random() < (problem.initial if z < 0 else problem.transition[z])[1])
            survival *= problem.acceptance[z]
            alive &= rng.random() < problem.acceptance[z]
            kept += alive
            n += 1
        tokens += 1 + kept
        cost += problem.step_times[n] + 0.2 * (n - kept)
    found = evaluate(problem, policy)
    assert tokens / steps == pytest.approx(found.tokens_per_step, abs=0.02)
    assert cost / steps == pytest.approx(found.cost_per_step, abs=0.01)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: profile_problem([0.5]), "either verify_cost or step_times"),
        (lambda: profile_problem([0.5], verify_cost=1, step_times=[1, 1]), "either"),
        (lambda: profile_problem([], verify_cost=1), r"one or more numbers in \[0, 1\]"),
        (lambda: profile_problem([[0.5]], verify_cost=1), r"one or more numbers in \[0, 1\]"),
        (lambda: profile_problem([0.5], verify_cost=float("nan")), "verify_cost must be"),
        (lambda: profile_problem([0.5], verify_cost=1, draft_cost=-1), "draft_cost must.*got -1"),
        (lambda: profile_problem([1.5], verify_cost=1), r"\[0, 1\]"),
        (lambda: profile_problem([float("nan")], verify_cost=1), r"\[0, 1\]"),
        (lambda: profile_problem([0.5], verify_cost=0.0), "positive"),
        (lambda: profile_problem([0.5], step_times=[1, 1, 1]), "1 to 2 entries"),
        (lambda: profile_problem([0.5], verify_cost=1, discard_cost=-1), "at least 0"),
        (
            lambda: DraftLengthProblem(np.array([0.5]), np.ones(2) / 2, np.eye(2), np.ones(2)),
            "1 classes",
        ),
    ],
)
def test_bad_input_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
