"""The certificate is checked by the function: wrong answers of the solver do not get out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_laws import float_pairs, support

from theory import transport, transport_plan


@settings(max_examples=50, deadline=None)
@given(
    pair=float_pairs(max_size=5),
    k=st.integers(1, 3),
    drafts=st.sampled_from(["iid", "without_replacement", "top_plus_one"]),
)
def test_certificate(pair, k, drafts):
    p, q = pair
    if drafts != "iid" and k > support(q):
        return
    found = transport_plan(p, q, k, drafts=drafts)
    u, v = found.dual
    assert np.all(found.plan >= 0)
    assert np.all(u >= 0)
    assert np.all(v >= 0)
    assert np.all(found.plan.sum(axis=1) <= p + 1e-12)
    assert np.all(found.plan.sum(axis=0) <= found.set_probabilities + 1e-12)
    for t, members in enumerate(found.sets):
        outside = np.setdiff1d(np.arange(p.size), members)
        assert not found.plan[outside, t].any()
        assert all(u[i] + v[t] >= 1 - 1e-12 for i in members)
    assert found.primal_value == pytest.approx(found.plan.sum())
    assert found.dual_value == pytest.approx(p @ u + found.set_probabilities @ v)
    assert -1e-12 <= found.gap <= 1e-8
    assert found.slackness <= 1e-8


@pytest.mark.parametrize("fault", ["plan", "prices", "nothing"])
def test_a_wrong_solver_is_caught(monkeypatch, fault):
    def wrong(p, chances, token, owner):
        mass, price = solve(p, chances, token, owner)
        if fault == "plan":
            return 0.9 * mass, price
        if fault == "prices":
            return mass, price + 0.1
        return 0 * mass, 0 * price

    solve = transport._solve
    monkeypatch.setattr(transport, "_solve", wrong)
    with pytest.raises(RuntimeError, match="certificate failed"):
        transport_plan([0.1, 0.4, 0.5], [0.5, 0.3, 0.2], 2)


def test_infeasible_answers_are_repaired_or_refused(monkeypatch):
    """A plan a little over its margins is scaled back; the gap then decides."""
    solve = transport._solve
    monkeypatch.setattr(transport, "_solve", lambda *a: tuple(x * (1 + 1e-10) for x in solve(*a)))
    found = transport_plan([0.1, 0.4, 0.5], [0.5, 0.3, 0.2], 2)
    assert np.all(found.plan.sum(axis=1) <= np.array([0.1, 0.4, 0.5]) + 1e-15)


def test_only_one_pair_of_laws():
    with pytest.raises(ValueError, match=r"shape \(V,\)"):
        transport_plan(np.full((2, 2), 0.5), np.full((2, 2), 0.5), 1)


def test_too_many_tuples_are_refused():
    with pytest.raises(ValueError, match="smaller vocabulary"):
        transport_plan(np.full(400, 1 / 400), np.full(400, 1 / 400), 3)
