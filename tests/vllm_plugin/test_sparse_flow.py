"""The optimal coupling: law of the sets, feasibility, and the optimum that theory knows."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import theory
from theory.candidates import set_law
from vllm_plugin.sparse_flow import couple


@settings(max_examples=80)
@given(
    size=st.integers(1, 10),
    k=st.integers(1, 5),
    spread=st.sampled_from([0.05, 0.4, 2.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_coupling_is_feasible_and_optimal(size: int, k: int, spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(size + 3, spread))
    q = rng.dirichlet(np.full(size, spread))
    assume((q > 0).all() and k <= size)
    sets, chances, flow, left = couple(p[:size], q, k)
    members = [tuple(i for i in range(size) if mask >> i & 1) for mask in sets]
    assert list(sets) == sorted(set(sets))
    if size**k <= 3000:
        law = set_law(q.tolist(), k, "without_replacement")
        assert set(law) == set(members)
        assert chances == pytest.approx([law[m] for m in members], rel=1e-9, abs=1e-15)
    assert chances.sum() == pytest.approx(1, abs=1e-12)
    assert (flow >= 0).all()
    assert (left >= 0).all()
    assert (flow.sum(1) <= chances + 1e-14).all()
    assert flow.sum(0) + left == pytest.approx(p[:size], abs=1e-14)
    for mask, row in zip(sets, flow, strict=True):
        assert all(row[i] == 0 for i in range(size) if not mask >> i & 1)
    target, draft = p, np.pad(q, (0, 3))
    best = float(theory.acceptance_rate(target, draft, k, rule="sparse_optimal"))
    assert flow.sum() == pytest.approx(best, abs=1e-6)  # theory's quadrature has error 5e-7


def test_a_greedy_flow_is_not_enough() -> None:
    """Sets that serve their token with the most p for its q first may starve a later one."""
    rng = np.random.default_rng(0)
    lost = 0
    for _ in range(200):
        p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(4))
        sets, chances, flow, _ = couple(p[:4], q, 2)
        room, served = p[:4].copy(), 0.0
        for mask, chance in zip(sets, chances, strict=True):
            for i in np.argsort(-p[:4] / q):
                if mask >> i & 1:
                    amount = min(chance, room[i])
                    room[i] -= amount
                    chance -= amount
                    served += amount
        assert served <= flow.sum() + 1e-12
        lost += served < flow.sum() - 1e-6
    assert lost > 0
