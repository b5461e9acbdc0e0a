"""The scheduler where several paths are drafted: it leaves scratch blocks alone and counts right.

The plugin names this class as ``scheduler_cls`` itself (:mod:`vllm_plugin.path_engine`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from vllm_plugin.config import ConfigurationError
from vllm_plugin.flat_drafts import FlatDrafts
from vllm_plugin.path_engine import cache_problem, settings_of


class PathScheduler(Scheduler):
    """vLLM's scheduler on a cache whose last blocks it does not know of."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        wrong = cache_problem(kv_cache_config)
        if wrong:
            raise ConfigurationError(wrong)
        settings = settings_of(vllm_config)
        assert settings is not None
        block_size = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        hidden = settings.hidden_blocks(vllm_config, kv_cache_config.num_blocks, block_size)
        seen = replace(kv_cache_config, num_blocks=kv_cache_config.num_blocks - hidden)
        super().__init__(vllm_config, seen, *args, **kwargs)
        self._distinct: dict[str, list[int]] = {}

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Take new drafts, and how many different ones stand among the first of each list."""
        for request_id, drafts in zip(
            draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True
        ):
            if isinstance(drafts, FlatDrafts):
                self._distinct[request_id] = drafts.distinct
        if len(self._distinct) > len(self.requests):
            self._distinct = {r: d for r, d in self._distinct.items() if r in self.requests}
        super().update_draft_token_ids(draft_token_ids)

    def make_spec_decoding_stats(
        self,
        spec_decoding_stats: Any,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> Any:
        """vLLM's statistics, with a draft that several paths share counted once."""
        distinct = self._distinct.pop(request_id, None)
        if distinct is not None and num_draft_tokens < len(distinct):
            num_draft_tokens = distinct[num_draft_tokens]
        return super().make_spec_decoding_stats(
            spec_decoding_stats,
            num_draft_tokens=num_draft_tokens,
            num_accepted_tokens=num_accepted_tokens,
            num_invalid_spec_tokens=num_invalid_spec_tokens,
            request_id=request_id,
        )
