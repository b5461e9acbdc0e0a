"""What STAND shows of a place: as the published laws say, and nothing of the token drawn there."""

from __future__ import annotations

import numpy as np
import pytest

from proposers import (
    ENTRIES,
    ChooserDrafter,
    PromptLookupDrafter,
    StandDrafter,
    StandTable,
    VerifiedRows,
)
from proposers.length.features import (
    COUNT,
    DEPTH,
    ENTROPY,
    KEPT,
    MATCHED,
    MEAN_TOP,
    NAMES,
    TEMPERATURE,
    TOP,
    bare_features,
)
from tests.proposers.batches import requests

V, K = 12, 4


def taught(seed: int) -> StandTable:
    """A table that knows some contexts of up to three tokens over V tokens."""
    rng = np.random.default_rng(seed)
    table = StandTable(order=3, budget_bytes=2**20)
    tokens = rng.integers(0, V, 4 * 150).astype(np.int32)
    ends = np.arange(4, tokens.size + 1, 4)
    ids = np.stack([rng.permutation(V)[:ENTRIES] for _ in ends]).astype(np.int32)
    law = -np.sort(-rng.dirichlet(np.full(V, 0.7), ends.size), axis=1)[:, :ENTRIES]
    table.observe(VerifiedRows(tokens, ends - 4, ends, ids, law.astype(np.float32)))
    return table


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_they_are_those_of_the_published_law(temperature: float) -> None:
    table = taught(1)
    drafter = StandDrafter(table, draft_length=K, seed=3, interpolation=0.0)
    rng = np.random.default_rng(2)
    texts = [rng.integers(0, V, 5).tolist() for _ in range(20)]
    made = drafter.draft(requests(texts, [K, 2] * 10, temperature=temperature))
    assert made.features is not None and made.features.shape == (20, K, len(NAMES))
    drafted = np.arange(K) < made.lengths[:, None]
    assert drafted.sum() > 40 and not drafted.all()
    assert np.isnan(made.features[~drafted]).all()
    for b, i in np.argwhere(drafted):
        shown = made.features[b, i]
        q = made.law_probabilities[b, i]
        q = q[q > 0]
        text = np.array(texts[b] + made.tokens[b, :i].tolist(), np.int32)
        known = table.look_up(text)
        assert known is not None
        assert shown[TOP] == pytest.approx(q.max(), rel=1e-6)
        assert shown[ENTROPY] == pytest.approx(-(q * np.log(q)).sum(), rel=1e-5, abs=1e-6)
        assert shown[MATCHED] == known[3] and shown[COUNT] == pytest.approx(known[2], rel=1e-6)
        assert shown[MEAN_TOP] == pytest.approx(known[1].max(), rel=1e-5)
        assert shown[KEPT] == pytest.approx(known[1].sum(), rel=1e-5)
        assert shown[DEPTH] == i and shown[TEMPERATURE] == pytest.approx(temperature)


def test_following_shows_what_drafting_showed() -> None:
    drafter = StandDrafter(taught(4), draft_length=K, seed=3)
    asked = requests([[1, 2, 3], [4, 5, 6], [7, 8, 9]], [K] * 3)
    made = drafter.draft(asked)
    seen = drafter.follow(asked, made.tokens)
    np.testing.assert_array_equal(seen.features, made.features)


def test_nothing_of_the_token_drawn_at_a_place_shows_there() -> None:
    """Change x_i and all behind: features 0..i stay, bit for bit."""
    drafter = StandDrafter(taught(5), draft_length=K, seed=3)
    rng = np.random.default_rng(6)
    for _ in range(50):
        text = rng.integers(0, V, 5).tolist()
        asked = requests([text], [K])
        one, other = rng.integers(0, V, (2, K)).astype(np.int32)
        i = int(rng.integers(0, K))
        other[:i] = one[:i]
        a = drafter.follow(asked, one[None]).features
        b = drafter.follow(asked, other[None]).features
        assert a is not None and b is not None
        np.testing.assert_array_equal(a[0, : i + 1], b[0, : i + 1])


def test_without_a_table_only_the_depth_is_known() -> None:
    shown = bare_features(np.array([2, 0]), 3, np.array([0.7, 1.0]))
    assert np.isnan(shown[0, 2]).all() and np.isnan(shown[1]).all()
    assert shown[0, :2, DEPTH].tolist() == [0, 1]
    assert (shown[0, :2, MATCHED] == 0).all() and (shown[0, :2, TOP] == 1).all()


@pytest.mark.parametrize("choices", [[0, 1], [0, 0], [1, 1]])
def test_the_chooser_shows_what_its_drawing_member_shows(
    choices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = StandDrafter(taught(7), draft_length=K, seed=3)
    chooser = ChooserDrafter(
        {"stand": drafter, "prompt_lookup": PromptLookupDrafter(draft_length=K)}, draft_length=K
    )
    asked = requests([[1, 2, 3], [4, 5, 6]], [K] * 2)
    chains = np.array([[-1] * K, [7, 8, -1, -1]], np.int32)
    monkeypatch.setattr(
        chooser, "_choose", lambda asked: (np.array(choices), chains.copy(), np.array([0, 2]))
    )
    ahead = np.array([[1, 2, 3, 4], [7, 8, 4, 5]], np.int32)
    alone = drafter.follow(asked, ahead).features
    assert alone is not None
    for made in (chooser.draft(asked), chooser.follow(asked, ahead)):
        if choices == [1, 1]:
            assert made.features is None
            continue
        assert made.features is not None
        np.testing.assert_array_equal(made.features[0, 0], alone[0, 0])
        if choices[1] == 0:
            np.testing.assert_array_equal(made.features[1, 0], alone[1, 0])
        else:
            assert np.isnan(made.features[1, :, TOP]).tolist() == [False, False, True, True]
            assert (made.features[1, :2, MATCHED] == 0).all()
