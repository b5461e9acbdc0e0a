"""The audit of a real engine: ours passes, the same one with a q that was not drawn is refuted."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine import tiny
from tests.engine.engines import STAND, engine
from tests.engine.sampled_laws import PROMPT
from tests.engine.test_law import _shift_published_law
from vllm_plugin.audit import AuditReport, audit_engine

pytestmark = [pytest.mark.slow, pytest.mark.engine]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model = tiny.build(tmp_path_factory.mktemp("tiny"), sharpness=2.2)
    with engine(
        model,
        proposer=STAND,
        draft_length=3,
        options={"rule": "token", "order": 1, "table_mib": 1},
        max_num_seqs=256,
        max_model_len=64,
        max_logprobs=-1,
        skip_tokenizer_init=True,
    ) as started:
        yield started


def audit(llm: Any) -> AuditReport:
    """Short texts of one prompt: a random model repeats nothing else, so only there drafts fit."""
    return audit_engine(
        llm, prompts=[PROMPT], temperature=1.0, seconds=400.0, samples=2048, length=5
    )


def test_ours_is_lossless(llm: Any) -> None:
    report = audit(llm)
    assert report.verdict == "lossless", str(report)
    assert report.drafted_share is not None
    assert report.drafted_share > 0.5
    assert report.numerical_gap is not None
    assert report.numerical_gap < 1e-4  # scored by prefill and reported while sampling: one law
    assert report.undetermined_tokens == 0  # all of the vocabulary was reported
    assert report.log_evidence < math.log(1e4)  # a right engine passes it once in 10,000 runs


def test_a_q_that_was_not_drawn_from_is_refuted(llm: Any) -> None:
    """Last in the module: it breaks the engine."""
    llm.collective_rpc(_shift_published_law)
    report = audit(llm)
    assert report.verdict == "refuted", str(report)
