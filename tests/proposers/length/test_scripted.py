"""Drafts by script: every length as often, tokens of the text, and a law that they follow."""

import numpy as np
import pytest

from proposers.batch import DraftRequests, VerifiedRows
from proposers.length.scripted import ScriptedDrafter
from proposers.stand import StandDrafter
from proposers.table import StandTable

TEXT = np.arange(100, 140, dtype=np.int32)


def drafter(lengths, seed=0):
    stand = StandDrafter(StandTable(order=2, budget_bytes=1 << 20), draft_length=4)
    return ScriptedDrafter(stand, lengths, seed)


def requests(*budgets):
    b = len(budgets)
    return DraftRequests(
        tokens=np.tile(TEXT, (b, 1)),
        rows=np.arange(b),
        lengths=np.full(b, 30),
        budgets=np.array(budgets, np.int64),
        temperatures=np.ones(b),
        top_k=np.zeros(b, np.int64),
        top_p=np.ones(b),
        noise_keys=np.zeros(b, np.uint64),
        handles=np.arange(b),
    )


def test_every_length_comes_once_a_round_for_all_requests():
    scripted = drafter((0, 1, 3, 7))
    for _ in range(5):
        seen = []
        for _ in range(4):
            lengths = scripted.draft(requests(9, 9)).lengths
            assert lengths[0] == lengths[1]
            seen.append(int(lengths[0]))
        assert sorted(seen) == [0, 1, 3, 7]
    orders = {tuple(drafter((0, 1, 3, 7), s)._rng.permutation(4).tolist()) for s in range(8)}
    assert len(orders) > 1


def test_budgets_hold_and_the_law_is_a_point_mass_on_a_token_of_the_text():
    drafts = drafter((5,)).draft(requests(2, 9))
    assert drafts.lengths.tolist() == [2, 5]
    for b, n in enumerate(drafts.lengths):
        assert np.isin(drafts.tokens[b, :n], TEXT[:30]).all()
        np.testing.assert_array_equal(drafts.law_ids[b, :n, 0], drafts.tokens[b, :n])
        assert (drafts.law_probabilities[b, :n].sum(axis=-1) == 1).all()
        assert (drafts.tokens[b, n:] == -1).all()
    assert len(set(drafts.tokens[1].tolist())) > 1


def test_stand_works_beside_it():
    """It learns, so that a step costs what a real one does."""
    scripted = drafter((1,))
    scripted.start(0, TEXT[:30])
    before = scripted.stand.table.live
    scripted.observe(
        VerifiedRows(
            TEXT, np.array([0]), np.array([30]), np.array([[7, 8]], np.int32),
            np.array([[0.6, 0.4]], np.float32), np.array([7], np.int32), np.ones(1),
        )
    )  # fmt: skip
    assert scripted.stand.table.live > before
    scripted.finish(0)


@pytest.mark.parametrize("lengths", [(), (1, -1)])
def test_no_lengths_or_one_below_zero_are_refused(lengths):
    with pytest.raises(ValueError, match="from 0 on"):
        drafter(lengths)
