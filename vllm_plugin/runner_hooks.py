"""Where the V1 model runner's own methods are led through the adapter of its proposer."""

from __future__ import annotations

import functools
from typing import Any

from vllm_plugin import hooks
from vllm_plugin.adapter_v1 import V1Adapter
from vllm_plugin.path_adapter import PathAdapter
from vllm_plugin.path_rows import PathRows


def install(*, paths: bool) -> None:
    """Replace what the adapters need of the runner; with ``paths``, what several paths need too."""
    hooks.install(hooks.SAMPLE, _sampling)
    if paths:
        hooks.install(hooks.PREPARE_INPUTS, _laid_out)
        hooks.install(hooks.ATTENTION_METADATA, _with_rows_at_hand)
        hooks.install(hooks.GROUP_METADATA, _expanded)


def adapter_of(runner: Any) -> V1Adapter | None:
    """The adapter of a runner's proposer; None if that is not one of ours."""
    adapter = getattr(getattr(runner, "drafter", None), "adapter", None)
    return adapter if isinstance(adapter, V1Adapter) else None


def _sampling(stock: Any) -> Any:
    @functools.wraps(stock)
    def _sample(self: Any, logits: Any, spec_decode_metadata: Any) -> Any:
        adapter = adapter_of(self)
        if adapter is None or logits is None:
            return stock(self, logits, spec_decode_metadata)
        return adapter.sample(self, logits, spec_decode_metadata, stock)

    return _sample


def _laid_out(stock: Any) -> Any:
    @functools.wraps(stock)
    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        made = stock(self, scheduler_output, num_scheduled_tokens)
        adapter = adapter_of(self)
        if isinstance(adapter, PathAdapter):
            adapter.prepare(self, scheduler_output, num_scheduled_tokens)
        return made

    return _prepare_inputs


_at_hand: list[PathRows] = []  # of the runner whose attention metadata is being built


def _with_rows_at_hand(stock: Any) -> Any:
    @functools.wraps(stock)
    def _build_attention_metadata(self: Any, *args: Any, **kwargs: Any) -> Any:
        adapter = adapter_of(self)
        rows = adapter.rows if isinstance(adapter, PathAdapter) else None
        if rows is None or rows.plan is None or kwargs.get("for_cudagraph_capture"):
            return stock(self, *args, **kwargs)
        _at_hand.append(rows)
        try:
            return stock(self, *args, **kwargs)
        finally:
            _at_hand.pop()

    return _build_attention_metadata


def _expanded(stock: Any) -> Any:
    @functools.wraps(stock)
    def build_metadata(
        self: Any,
        common_attn_metadata: Any,
        ubatch_idx: int = 0,
        common_prefix_len: int = 0,
        **kwargs: Any,
    ) -> Any:
        if _at_hand:
            common_attn_metadata = _at_hand[-1].expanded(common_attn_metadata)
        return stock(self, common_attn_metadata, ubatch_idx, common_prefix_len, **kwargs)

    return build_metadata
