"""What is kept of paths that were not judged: all of it or nothing, whatever stands in it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vllm_plugin.path_adapter import PathAdapter
from vllm_plugin.path_drafts import PendingPaths
from vllm_plugin.path_verifier import PathRequest


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("inputs", [1, 4])
def test_nothing_is_kept_behind_a_refusal(accepted: bool, inputs: int) -> None:
    """K-SEQ may draw a token that equals a draft it refused.

    Were the drafts behind it kept when their row is missing, but not when it is there, then what is
    kept would depend on them: two different ones make a longer list, which may be cut.
    """
    tokens = np.array([[7, 1], [7, 2]], np.int32)
    pending = PendingPaths.of(
        5, tokens, np.array([2, 2]), tokens[..., None], np.ones((2, 2, 1)), most=2
    )
    request = PathRequest(
        index=0, text_length=5, first_row=0, key=0, discarded=False, tokens=tokens,
        lengths=pending.lengths, law_ids=pending.law_ids, laws=pending.laws,
        rows=pending.rows(inputs), pending=pending, inputs=inputs,
    )  # fmt: skip
    request.take(7, accepted)
    adapter: Any = SimpleNamespace(
        runner=SimpleNamespace(input_batch=SimpleNamespace(req_ids=["a"])),
        rows=SimpleNamespace(commit=lambda emitted: None),
        left_over={},
    )
    PathAdapter.settle(adapter, [request], [np.array([7], np.int32)])
    assert set(adapter.left_over) == ({"a"} if accepted and inputs == 1 else set())
