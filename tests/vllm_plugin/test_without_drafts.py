"""Which requests go without drafts: told from the processors a server loads and from parameters."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.sample.logits_processor import (
    AdapterLogitsProcessor,
    BatchUpdate,
    LogitBiasLogitsProcessor,
    LogitsProcessors,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)

from tests.engine.processors import ByRequest, ByRow
from vllm_plugin.without_drafts import REASONS, WithoutDrafts

CONFIG: Any = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=4))


class Overridden(ByRequest):
    """An adapter that does more than vLLM's: nothing is known about its requests."""

    def apply(self, logits: Any) -> Any:
        return super().apply(logits)


def without(
    *kinds: type, reasoning_parser: str = "", enable_in_reasoning: bool = False
) -> tuple[WithoutDrafts, list[Any]]:
    processors: Any = [kind(CONFIG, "cpu", False) for kind in kinds]
    outputs = SimpleNamespace(
        reasoning_parser=reasoning_parser, enable_in_reasoning=enable_in_reasoning
    )
    runner = SimpleNamespace(
        input_batch=SimpleNamespace(logitsprocs=LogitsProcessors(processors)),
        vllm_config=SimpleNamespace(structured_outputs_config=outputs),
    )
    return WithoutDrafts(runner), processors


def grammar(backend: str) -> Any:
    made = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"))
    assert made.structured_outputs is not None
    made.structured_outputs._backend = backend
    return made


def test_vllms_own_processors_leave_drafts_alone() -> None:
    judge, _ = without(MinTokensLogitsProcessor, LogitBiasLogitsProcessor, MinPLogitsProcessor)
    assert judge.reason(0, SamplingParams(min_p=0.1, logit_bias={3: 1.0}, min_tokens=2)) is None
    assert judge.reason(1, None) is None


def test_an_adapter_concerns_its_own_requests_only() -> None:
    judge, (adapter,) = without(ByRequest)
    asked = SamplingParams(extra_args={"force_every": 2})
    added = [(0, SamplingParams(), [1], []), (1, asked, [1], [])]
    adapter.update_state(BatchUpdate(batch_size=2, removed=(), added=added, moved=()))
    assert judge.reason(0, SamplingParams()) is None
    assert judge.reason(1, asked) == "custom_logits_processor"
    adapter.update_state(BatchUpdate(batch_size=1, removed=[1], added=(), moved=()))
    assert judge.reason(1, SamplingParams()) is None


@pytest.mark.parametrize("kind", [ByRow, Overridden])
def test_any_other_processor_concerns_everybody(kind: type) -> None:
    judge, _ = without(MinPLogitsProcessor, ByRequest, kind)
    assert judge.reason(0, SamplingParams()) == "custom_logits_processor"
    assert issubclass(Overridden, AdapterLogitsProcessor)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (SamplingParams(thinking_token_budget=3), "thinking_token_budget"),
        (SamplingParams(thinking_token_budget=-1), None),  # vLLM's word for no budget
        (grammar("xgrammar"), None),
        (grammar("guidance"), "structured_output_backend"),
        (grammar("outlines"), "structured_output_backend"),
    ],
)
def test_parameters_of_one_request(parameters: Any, reason: str | None) -> None:
    judge, _ = without(MinPLogitsProcessor)
    assert judge.reason(0, parameters) == reason
    assert reason is None or reason in REASONS


def test_a_grammar_that_begins_after_reasoning() -> None:
    judge, _ = without(reasoning_parser="some")
    assert judge.reason(0, grammar("xgrammar")) == "structured_output_after_reasoning"
    assert judge.reason(0, SamplingParams()) is None
    judge, _ = without(reasoning_parser="some", enable_in_reasoning=True)
    assert judge.reason(0, grammar("xgrammar")) is None
