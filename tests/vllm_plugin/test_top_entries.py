"""The ten most probable tokens of a row against torch's softmax and topk."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proposers import ENTRIES
from vllm_plugin.top_entries import top_entries


def assert_right(logits: torch.Tensor, rows: list[int]) -> None:
    ids, probabilities = top_entries(logits, np.array(rows, np.int64))
    assert (ids.dtype, probabilities.dtype) == (np.int32, np.float32)
    assert ids.shape == probabilities.shape == (len(rows), ENTRIES)
    for r, row in enumerate(rows):
        finite = int(torch.isfinite(logits[row]).sum())
        n = min(ENTRIES, finite)
        assert (ids[r, n:] == -1).all()
        assert (probabilities[r, n:] == 0).all()
        if n == 0:
            continue
        law = logits[row].double().softmax(dim=-1)
        expected = law.topk(n).values.numpy()
        np.testing.assert_allclose(probabilities[r, :n], expected, rtol=1e-5, atol=1e-30)
        # Which of equal tokens is listed is free, but each is listed once, with its own mass.
        assert len(set(ids[r, :n].tolist())) == n
        np.testing.assert_allclose(law[ids[r, :n].tolist()], expected, rtol=1e-5, atol=1e-30)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    vocabulary=st.integers(1, 5000),
    scale=st.sampled_from([0.0, 0.1, 3.0, 40.0]),
    masked=st.sampled_from([0.0, 0.5, 0.999, 1.0]),
    shift=st.sampled_from([0.0, 1e4, -1e4]),
)
@example(0, 64, 3.0, 0.0, 0.0)
@example(0, 65, 3.0, 0.0, 0.0)
@example(0, 2049, 3.0, 0.0, 0.0)
@example(0, 7, 3.0, 0.0, 0.0)
@example(0, 10, 3.0, 0.5, 0.0)
def test_any_row(seed: int, vocabulary: int, scale: float, masked: float, shift: float) -> None:
    """Any vocabulary, multiples of 64 or not; masks as top-k, top-p and grammars leave them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((3, vocabulary), generator=generator) * scale + shift
    logits[torch.rand(logits.shape, generator=generator) < masked] = -torch.inf
    assert_right(logits, [2, 0, 2])


def test_ties_are_listed_once_each() -> None:
    logits = torch.randint(0, 3, (4, 300), generator=torch.Generator().manual_seed(0)).float()
    assert_right(logits, [0, 1, 2, 3])
    assert_right(torch.zeros((1, 100)), [0])


@pytest.mark.parametrize("place", [0, 63, 64, 2047, 2048, 49_151])
def test_a_lone_token_anywhere_in_a_real_vocabulary(place: int) -> None:
    logits = torch.full((1, 49_152), -torch.inf)
    logits[0, place] = -3.0
    ids, probabilities = top_entries(logits, np.zeros(1, np.int64))
    assert ids[0].tolist() == [place] + [-1] * (ENTRIES - 1)
    assert probabilities[0] == pytest.approx([1.0] + [0.0] * (ENTRIES - 1), abs=1e-6)


def test_a_sharp_and_a_flat_row_of_a_real_vocabulary() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((2, 49_152), generator=generator)
    logits[0] *= 20
    assert_right(logits, [0, 1])


def test_no_rows() -> None:
    ids, probabilities = top_entries(torch.zeros((2, 20)), np.zeros(0, np.int64))
    assert ids.shape == probabilities.shape == (0, ENTRIES)


def test_logits_are_left_alone_and_may_be_a_view() -> None:
    whole = torch.randn((4, 60), generator=torch.Generator().manual_seed(2))
    before = whole.clone()
    assert_right(whole[:, :30], [0, 3])
    assert_right(whole[::2], [1])
    assert torch.equal(whole, before)
