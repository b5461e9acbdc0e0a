"""Suffix decoding: the package driven as vLLM drives it, learning from texts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proposers import SuffixDrafter
from proposers.suffix import MISSING
from tests.proposers.batches import requests
from tests.test_layers import BLOCKER, FORBIDDEN

ROOT = Path(__file__).parents[2]
suffix_decoding = pytest.importorskip(
    "arctic_inference.suffix_decoding", reason="arctic-inference is optional"
)


def array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_drafts_equal_the_package_told_token_by_token(data: Any) -> None:
    """Texts of several requests grow in turn; some finish, and are remembered."""
    token = st.integers(0, 3)
    depth, factor, least = data.draw(st.tuples(
        st.integers(2, 8), st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([0.0, 0.1, 0.6])
    ))  # fmt: skip
    cached = data.draw(st.sampled_from([0, 1, 100]))
    drafter = SuffixDrafter(
        draft_length=5,
        max_tree_depth=depth,
        max_spec_factor=factor,
        min_token_prob=least,
        max_cached_requests=cached,
    )
    cache = suffix_decoding.SuffixDecodingCache(max_tree_depth=depth, max_cached_requests=cached)
    texts: dict[int, list[int]] = {}
    waiting: dict[int, list[int]] = {}
    for step in range(data.draw(st.integers(1, 12))):
        if len(texts) < 2:
            texts[step] = data.draw(st.lists(token, min_size=1, max_size=12))
            drafter.start(step, array(texts[step]))
            waiting[step] = texts[step]
        handle = data.draw(st.sampled_from(sorted(texts)))
        new = data.draw(st.lists(token, min_size=1, max_size=4))
        texts[handle] = texts[handle] + new
        budget = data.draw(st.integers(0, 6))
        asked = requests([texts[handle]], [budget], handles=[handle])
        if handle in waiting:  # the first draft starts the request
            cache.start_request(handle, array(waiting.pop(handle)))
        cache.add_active_response(handle, new)
        expected = []
        if budget:
            expected = cache.speculate(
                handle,
                texts[handle][-depth:],
                max_spec_tokens=min(5, budget),
                max_spec_factor=factor,
                min_token_prob=least,
            ).token_ids
        if data.draw(st.booleans()):  # only learns the text
            drafter.follow(asked, array([[0] * 5]))
        drafts = drafter.draft(asked)
        assert drafts.tokens[0, : drafts.lengths[0]].tolist() == expected
        assert (drafts.tokens[0, drafts.lengths[0] :] == -1).all()
        assert drafts.law_probabilities[0, :, 0].sum() == len(expected)
        if data.draw(st.integers(0, 3)) == 0:
            drafter.finish(handle)
            cache.stop_request(handle)
            del texts[handle]


def test_a_finished_answer_serves_other_requests() -> None:
    drafter = SuffixDrafter(draft_length=4)
    drafter.start(0, array([1, 2]))
    drafter.draft(requests([[1, 2, 11, 12, 13, 14, 15]], [4], handles=[0]))
    drafter.finish(0)
    drafter.start(1, array([7]))
    drafts, matched = drafter.propose(requests([[7, 11, 12]], [4], handles=[1]))
    assert drafts.tokens[0, : drafts.lengths[0]].tolist() == [13, 14]
    assert matched.tolist() == [2]


def test_requests_without_a_prompt_get_no_drafts() -> None:
    drafter = SuffixDrafter(draft_length=4)
    assert drafter.draft(requests([[1, 2, 1, 2, 1]], [4], handles=[3])).lengths.tolist() == [0]
    drafter.finish(3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"draft_length": 0}, "draft_length is 0"),
        ({"max_tree_depth": 0}, "max_tree_depth is 0"),
        ({"max_spec_factor": -1.0}, "max_spec_factor is -1.0"),
        ({"min_token_prob": 1.5}, "min_token_prob is 1.5"),
        ({"max_cached_requests": -1}, "max_cached_requests is -1"),
    ],
)
def test_bad_parameters_are_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SuffixDrafter(**{"draft_length": 4} | options)


def test_without_the_package_one_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "arctic_inference.suffix_decoding", None)
    with pytest.raises(ImportError) as refused:
        SuffixDrafter(draft_length=4)
    assert str(refused.value) == MISSING
    assert "pip install arctic-inference" in MISSING


def test_the_package_drags_in_no_engine() -> None:
    """proposers may import neither torch nor vllm, nor have them imported."""
    source = BLOCKER + "\nimport proposers\nproposers.SuffixDrafter(draft_length=1)"
    run = subprocess.run(
        [sys.executable, "-c", source, "proposers", *sorted(FORBIDDEN["proposers"])],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
