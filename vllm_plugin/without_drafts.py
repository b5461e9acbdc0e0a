"""Which requests are served without drafts, and why; each reason is logged once and counted.

A request is drafted for when every parameter of it can be applied to a drafted row exactly as to a
plain one (:mod:`vllm_plugin.row_requests`). What is left gets vLLM's own steps, one token each.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, LogitsProcessor

from vllm_plugin import metrics
from vllm_plugin.row_requests import ROW_WISE

REASONS = {
    "custom_logits_processor": "what a custom logits processor keeps or counts is only right when "
    "it sees each emitted token once",
    "thinking_token_budget": "vLLM tracks the budget by emitted tokens",
    "structured_output_backend": "only xgrammar's masks of drafted rows were proved",
    "structured_output_after_reasoning": "a grammar that begins in the middle of a draft was not "
    "proved",
}
_GRAMMARS = ("xgrammar",)


class WithoutDrafts:
    """Says for one runner's requests whether they go without drafts."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        custom = [p for p in runner.input_batch.logitsprocs.all if type(p) not in ROW_WISE]
        self._per_request = [p for p in custom if _attributable(p)]
        self._unattributable = len(self._per_request) < len(custom)
        outputs = runner.vllm_config.structured_outputs_config
        self._late_grammar = bool(outputs.reasoning_parser) and not outputs.enable_in_reasoning

    def reason(self, index: int, parameters: Any) -> str | None:
        """A key of ``REASONS`` for the request at this place of the batch; None: draft for it."""
        if self._unattributable or any(index in p.req_info for p in self._per_request):
            return "custom_logits_processor"
        if parameters is None:
            return None
        if parameters.thinking_token_budget is not None:
            return "thinking_token_budget"
        grammar = parameters.structured_outputs
        if grammar is not None:
            if grammar._backend not in _GRAMMARS:
                return "structured_output_backend"
            if self._late_grammar:
                return "structured_output_after_reasoning"
        return None


def _attributable(processor: LogitsProcessor) -> bool:
    """vLLM's adapter keeps its state by request, unless a subclass replaces how that works."""
    kind = type(processor)
    return isinstance(processor, AdapterLogitsProcessor) and all(
        getattr(kind, name) is getattr(AdapterLogitsProcessor, name)
        for name in ("apply", "update_state")
    )


def count(reason: str) -> None:
    """Count one request that is served without drafts."""
    message = f"requests are served without drafts by {reason}: {REASONS[reason]}"
    metrics.count("requests_without_drafts", reason, message)
