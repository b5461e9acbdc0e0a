"""Where STAND's drafts come from, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from small_traces import GivenDrafter, trace

from proposers import StandDrafter, StandTable
from proposers.replay import profile
from proposers.replay.origins import by_count, by_order, origins

V = 4


def stand() -> StandDrafter:
    return StandDrafter(
        StandTable(order=3, budget_bytes=2**20, decay=1.0), draft_length=2, prompt_visits=False,
        interpolation=0.0,
    )  # fmt: skip


def test_orders_and_counts_are_those_of_the_table_before_the_step() -> None:
    law = np.array([0.1, 0.2, 0.3, 0.4])
    recorded = trace(lambda text: law, [(0, [1, 2, 1, 2, 1, 3])], [[0]], max_tokens=99)
    found = origins(recorded, stand, draft_length=2)
    # after 0 1 2 1 the context 1 is known, from one visit; after 0 1 2 1 2, 1 2 is; then 2 1 2 ..
    assert found.orders.tolist() == [0, 0, 0, 1, 2, 3]
    assert found.counts.tolist() == [0, 0, 0, 1, 1, 1]
    q = profile(recorded, stand, draft_length=2).q
    assert (q[:, 0] >= 0).tolist() == (found.orders > 0).tolist()
    assert found.acceptance[3:].tolist() == pytest.approx([1, 1, 1])  # the law is known exactly
    assert [(o, round(mean, 6), n) for o, mean, n in by_order(found)] == [
        (1, 1.0, 1), (2, 1.0, 1), (3, 1.0, 1),
    ]  # fmt: skip


def test_groups_of_counts_keep_equal_ones_together_and_lose_none() -> None:
    rng = np.random.default_rng(0)
    laws = rng.dirichlet(np.ones(V), V)
    text = [0]
    for _ in range(300):
        text.append(int(rng.choice(V, p=laws[text[-1]])))
    recorded = trace(lambda t: laws[t[-1]], [(0, text[1:])], [text[:1]], max_tokens=400)
    found = origins(recorded, stand, draft_length=2)
    for order, mean, count in by_order(found):
        groups = by_count(found, order)
        assert sum(n for _, _, n in groups) == count
        assert sum(a * n for _, a, n in groups) == pytest.approx(mean * count)
        assert [c for c, _, _ in groups] == sorted(c for c, _, _ in groups)
    assert by_count(found, 7) == []


def test_a_drafter_without_contexts_is_refused() -> None:
    recorded = trace(lambda text: np.ones(2) / 2, [(0, [0, 1, 0])], [[0]], max_tokens=9)
    with pytest.raises(ValueError, match="GivenDrafter has no table of contexts"):
        origins(
            recorded,
            lambda: GivenDrafter(lambda t: np.ones(2) / 2, draft_length=1),
            draft_length=1,
        )
