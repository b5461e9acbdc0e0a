"""Rows as requests: each row of a step is shaped as vLLM shapes a plain step with that text."""

from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams

from tests.vllm_plugin.plain_batch import V, batch, shaped
from vllm_plugin.row_requests import HeadRows, Row, rows_as_requests

PARAMETERS = [
    SamplingParams(temperature=0.7, min_p=0.1, presence_penalty=0.5, logit_bias={3: 2.0}),
    SamplingParams(temperature=0.0, repetition_penalty=1.6),
    SamplingParams(temperature=1.3, min_tokens=4, stop_token_ids=[5, 6], frequency_penalty=1.1),
    SamplingParams(temperature=1.0, allowed_token_ids=[1, 2, 3, 4], top_k=3, top_p=0.9),
    SamplingParams(temperature=1.0, logit_bias={7: -5.0, 8: 4.0}),
]
PARAMETERS[4]._bad_words_token_ids = [[9], [8, 2], [1, 7]]
PROMPTS = [[1, 2, 3], [4, 5], [6], [7, 7], [8, 1, 8]]
OUTPUTS = [[3, 3], [9], [2, 1], [], [1]]
DRAFTS = [[3, 4, 5], [], [1, 1, 9], [2], [7, 8]]


@pytest.mark.parametrize("fillers", [0, 2])
def test_each_row_is_a_plain_step_of_its_own(fillers: int) -> None:
    """Against a plain batch that has one request, with its own text, for each row."""
    runner, metadata = batch(PARAMETERS, PROMPTS, OUTPUTS)
    counts = [len(d) + 1 for d in DRAFTS]
    counts[1] += fillers  # rows of vLLM's placeholders, which are nobody's
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    of_step = [Row(i, DRAFTS[i], j) for i, n in enumerate(counts) for j in range(n)]
    logits = torch.randn((sum(counts), V), generator=torch.Generator().manual_seed(1)) * 3
    rows = rows_as_requests(runner, of_step, torch.tensor(first), metadata)
    ours = shaped(logits.clone(), rows)
    for i, drafts in enumerate(DRAFTS):
        for j in range(len(drafts) + 1):
            text = [*OUTPUTS[i], *drafts[:j]]
            _, alone = batch([PARAMETERS[i]], [PROMPTS[i]], [text])
            at = int(first[i]) + j
            expected = shaped(logits[at : at + 1].clone(), alone)
            assert torch.equal(ours[at : at + 1], expected), (i, j)
    assert rows.top_k is not None
    owners = np.repeat(np.arange(len(counts)), counts)
    assert rows.top_k.tolist() == [PARAMETERS[i].top_k or V for i in owners]


def test_rows_in_any_order_that_share_a_text_or_branch_off_it() -> None:
    """As a walk over several paths asks for them: no first rows, one path's prefix at a time."""
    runner, metadata = batch(PARAMETERS, PROMPTS, OUTPUTS)
    of_step = [Row(4, [7, 8, 9], 2), Row(0, [3], 1), Row(4, [7, 1], 2), Row(2, [1, 1, 9], 0)]
    logits = torch.randn((len(of_step), V), generator=torch.Generator().manual_seed(2)) * 3
    ours = shaped(logits.clone(), rows_as_requests(runner, of_step, None, metadata))
    for r, row in enumerate(of_step):
        text = [*OUTPUTS[row.owner], *row.drafts[: row.behind]]
        _, alone = batch([PARAMETERS[row.owner]], [PROMPTS[row.owner]], [text])
        assert torch.equal(ours[r : r + 1], shaped(logits[r : r + 1].clone(), alone)), row


def test_other_processors_see_the_first_row_of_each_request() -> None:
    class Stamp:
        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            return logits + torch.arange(1, logits.shape[0] + 1)[:, None]

    stamp: Any = Stamp()
    logits = HeadRows(stamp, torch.tensor([0, 1, 4])).apply(torch.zeros((6, 2)))
    assert logits[:, 0].tolist() == [1, 2, 0, 0, 3, 0]
