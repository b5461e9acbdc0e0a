"""What waits between drafting and verifying, and what a drafter is told of a step."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from proposers import VerifiedRows
from vllm_plugin.adapter_v1 import V1Adapter
from vllm_plugin.lessons import laws_of
from vllm_plugin.pending import NO_DRAFTS
from vllm_plugin.verifier import Request

HELD = np.array([11, 12, 13], np.int32)


def tokens(*given: int) -> NDArray[np.int32]:
    return np.array(given, np.int32)


class Listener:
    """A drafter that keeps what it is told."""

    wants_rows = True

    def __init__(self, wants_emitted: bool) -> None:
        self.wants_emitted = wants_emitted
        self.told: list[VerifiedRows] = []

    def start(self, handle: int, prompt: NDArray[np.int32]) -> None:
        pass

    def observe(self, rows: VerifiedRows) -> None:
        self.told.append(rows)


def step(drafter: Any) -> None:
    """A request with three drafts, an unfinished prompt, and a request without drafts."""
    adapter = V1Adapter(drafter, rule="token", order=3, entries=2, draft_length=3, max_model_len=99)
    text = np.array([[1, 2, 3, 4, 5], [6, 6, 6, 6, 6], [7, 8, 0, 0, 0]], np.int32)
    adapter.runner = SimpleNamespace(
        input_batch=SimpleNamespace(
            req_ids=["a", "b", "c"],
            token_ids_cpu=text,
            temperature_cpu=np.array([0.5, 0.9, 0.0], np.float32),
        )
    )
    adapter.started |= {"a", "b", "c"}
    none = tokens()
    requests = [
        Request(0, 5, 0, HELD, 0, False, NO_DRAFTS),
        Request(1, 5, 4, none, 0, True, NO_DRAFTS),
        Request(2, 2, 5, none, 0, False, NO_DRAFTS),
    ]
    stretches = [s for r in requests if not r.discarded for s in adapter.stretches(r)]
    laws = laws_of(torch.randn(6, 50), stretches, entries=2)
    adapter._learn(requests, stretches, laws, [tokens(11, 40), tokens(33), tokens(41)])


def test_each_row_is_told_with_its_context_and_what_it_emitted() -> None:
    """The second draft was refused: row 1 emitted another token, rows 2 and 3 none."""
    drafter = Listener(wants_emitted=True)
    step(drafter)
    (rows,) = drafter.told
    contexts = [rows.tokens[i:j].tolist() for i, j in zip(rows.begins, rows.ends, strict=True)]
    assert contexts == [
        [3, 4, 5],
        [3, 4, 5, 11],
        [3, 4, 5, 11, 12],
        [3, 4, 5, 11, 12, 13],
        [7, 8],
    ]
    assert rows.emitted.tolist() == [11, 40, -1, -1, 41]
    assert rows.temperatures.tolist() == [0.5, 0.5, 0.5, 0.5, 0.0]
    assert rows.ids.shape == (5, 2)


def test_a_drafter_that_does_not_ask_is_not_told_what_was_emitted() -> None:
    drafter = Listener(wants_emitted=False)
    step(drafter)
    (rows,) = drafter.told
    assert rows.emitted.size == rows.temperatures.size == 0
    assert rows.ends.size == 5
