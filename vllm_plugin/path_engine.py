"""Engine arguments for several paths: what the plugin sets by itself, and what it has to refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm_plugin.config import ConfigurationError, read_options
from vllm_plugin.path_settings import PathSettings, asks_for_several, resolve

SCHEDULER = "vllm_plugin.path_scheduler.PathScheduler"


def settings_of(vllm_config: Any) -> PathSettings | None:
    """The settings of an engine whose arguments were :func:`prepared`; None for one candidate.

    Raises
    ------
    ConfigurationError
        If no draft length gives that many tokens a step.
    """
    speculative = vllm_config.speculative_config
    options = read_options(vllm_config.additional_config)
    proposer = speculative.model.rpartition(".")[2]
    if not asks_for_several(proposer, options):
        return None
    for depth in range(1, speculative.num_speculative_tokens + 1):
        try:
            settings = resolve(proposer, options, depth)
        except ConfigurationError:
            continue  # a shape of another depth
        if settings is None:
            return None  # a shape of one path
        if settings.tokens == speculative.num_speculative_tokens:
            return settings
    raise ConfigurationError(
        f"{speculative.num_speculative_tokens} tokens a step are not what any draft length gives "
        "here; the engine's configuration was changed after specproof prepared it"
    )


@contextmanager
def prepared(arguments: Any, settings: PathSettings | None) -> Iterator[None]:
    """In the block, vLLM's engine arguments are those that several paths need.

    ``num_speculative_tokens`` becomes the length of the flat list of all paths, and the scheduler
    one that leaves scratch blocks alone.

    Raises
    ------
    ConfigurationError
        If the arguments name a scheduler of their own, or a KV connector.
    """
    if settings is None:
        yield
        return
    _refuse_arguments(arguments)
    given = arguments.speculative_config, arguments.scheduler_cls
    speculative = json.loads(given[0]) if isinstance(given[0], str) else given[0]
    arguments.speculative_config = {**speculative, "num_speculative_tokens": settings.tokens}
    arguments.scheduler_cls = SCHEDULER
    try:
        yield
    finally:
        arguments.speculative_config, arguments.scheduler_cls = given


def _refuse_arguments(arguments: Any) -> None:
    refused = {
        "scheduler_cls": "a scheduler of your own",
        "kv_transfer_config": "KV connectors",
        "enable_dbo": "dual-batch overlap",
        "kv_sharing_fast_prefill": "KV sharing with fast prefill",
    }
    for name, what in refused.items():
        if getattr(arguments, name, None):
            raise _without(f"{what} (--{name.replace('_', '-')})")
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if (getattr(arguments, name, None) or 1) > 1:
            raise _without(f"context parallelism (--{name.replace('_', '-')})")


def refuse_model(config: Any) -> None:
    """Refuse models whose keys and values are not kept in one group of ordinary paged blocks.

    ``config`` is vLLM's, before a model is loaded.

    Raises
    ------
    ConfigurationError
        One sentence that says what the model has and what to do.
    """
    model = config.model_config
    if model.is_hybrid or model.is_attention_free:
        raise _without("state-space layers (Mamba and its kin)")
    if model.use_mla:
        raise _without("multi-head latent attention")
    if model.is_encoder_decoder:
        raise _without("encoder-decoder models")
    if model.uses_mrope:
        raise _without("multi-dimensional rotary positions")
    kinds = set(getattr(model.hf_text_config, "layer_types", None) or ())
    if len(kinds) > 1 and not config.scheduler_config.disable_hybrid_kv_cache_manager:
        raise ConfigurationError(
            f"several candidates need one KV cache group, but the model's layers are of the kinds "
            f"{', '.join(sorted(kinds))}; start with --disable-hybrid-kv-cache-manager, or set "
            "candidates to 1"
        )


def adapt(config: Any) -> None:
    """Settings of a finished configuration that the rows of several paths need on a GPU.

    A full CUDA graph fixes the number of attention rows, and cascade attention takes the rows for
    requests with a common prefix.
    """
    config.model_config.disable_cascade_attn = True
    mode = config.compilation_config.cudagraph_mode
    if mode is not None and mode.has_full_cudagraphs():
        config.compilation_config.cudagraph_mode = type(mode).PIECEWISE


def cache_problem(kv_cache_config: Any) -> str | None:
    """One sentence when a cache cannot hold several paths; None when it can."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        return (
            f"several candidates need one KV cache group, but this model has {len(groups)}; "
            "use vllm_plugin.Stand with candidates 1"
        )
    spec = groups[0].kv_cache_spec
    if type(spec) not in (FullAttentionSpec, SlidingWindowSpec):  # their children: MLA, sinks
        return (
            f"several candidates need ordinary attention blocks, but this model's are "
            f"{type(spec).__name__}; use vllm_plugin.Stand with candidates 1"
        )
    return None


def _without(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"several candidates cannot be verified with {what}; leave it out, or use "
        "vllm_plugin.Stand with candidates 1"
    )
