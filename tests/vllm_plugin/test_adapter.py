"""What waits between drafting and verifying, and what a drafter is told of a step."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from proposers import VerifiedRows
from vllm_plugin.adapter_v1 import V1Adapter
from vllm_plugin.backends import backend
from vllm_plugin.lessons import laws_of
from vllm_plugin.pending import NO_DRAFTS, Chain
from vllm_plugin.verifier import Request, Verifier

HELD = np.array([11, 12, 13], np.int32)


def tokens(*given: int) -> NDArray[np.int32]:
    return np.array(given, np.int32)


class Listener:
    """A drafter that keeps what it is told."""

    wants_rows = True
    has_groups = True

    def __init__(self, wants_emitted: bool) -> None:
        self.wants_emitted = wants_emitted
        self.told: list[VerifiedRows] = []

    def start(self, handle: int, prompt: NDArray[np.int32], group: int = 0) -> None:
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
    for request_id in ("a", "b", "c"):
        adapter.served.admit(request_id, SimpleNamespace(sampling_params=None))
        adapter.served[request_id].started = True
    none = tokens()
    requests = [
        Request(0, 5, 0, HELD, 0, False, NO_DRAFTS),
        Request(1, 5, 4, none, 0, True, NO_DRAFTS),
        Request(2, 2, 5, none, 0, False, NO_DRAFTS),
    ]
    heard = [r for r in requests if not r.discarded]
    stretches = [s for r in heard for s in adapter.stretches(r)]
    laws = laws_of(torch.randn(6, 50), stretches, entries=2)
    emitted = [tokens(11, 40), tokens(33), tokens(41)]
    batch = adapter.runner.input_batch
    adapter.teacher.teach(drafter, adapter.control, batch, heard, stretches, laws, emitted)


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


@pytest.mark.parametrize("sizes", [(16,), (32, 48), (128,)])
def test_a_rule_that_looks_ahead_stays_away_from_block_borders(sizes: tuple[int, ...]) -> None:
    """Where the number of blocks a list needs depends on its length, drafts are judged singly."""
    adapter = V1Adapter(
        Listener(False), rule="block", order=3, entries=2, draft_length=5, max_model_len=999
    )
    tables = [SimpleNamespace(block_size=size) for size in sizes]
    adapter.runner = SimpleNamespace(
        input_batch=SimpleNamespace(block_table=SimpleNamespace(block_tables=tables))
    )
    for text_length in range(1, 300):
        # the cache holds all but the text's last token, which is an input with the drafts
        needs = {tuple(-(-(text_length + drafts) // size) for size in sizes) for drafts in range(6)}
        assert adapter._may_need_a_block(text_length) == (len(needs) > 1)


def test_requests_near_a_border_are_judged_by_the_token_rule() -> None:
    """The two rules differ on these drafts: u keeps both under block, none under token."""
    p = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.5, 0.5]])
    tokens_ = tokens(0, 0)
    chain = Chain(tokens_, np.array([[0, 1]] * 2, np.int32), np.full((2, 2), 0.5), has_bonus=True)
    verifier = object.__new__(Verifier)
    chains = backend("cpu").chains
    verifier.__dict__ |= {
        "rule": chains["block"], "stepwise": chains["token"], "_modules": {}, "runner": None,
    }  # fmt: skip
    sampling = SimpleNamespace(all_greedy=False, all_random=True)
    found = []
    for stepwise in (False, True):
        request = Request(0, 4, 0, tokens_, 0, False, chain, stepwise=stepwise)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                torch, "rand", lambda shape, **kind: torch.tensor([[0.9, 0.3, 0.2]], **kind)
            )
            found.append(verifier._emit([request], None, p.log(), sampling, 3)[0].tolist())
    assert found == [[0, 0, 0], [1, -1, -1]]
