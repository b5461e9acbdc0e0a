"""Engines for tests: a real vLLM engine core in its own process, as `vllm serve` runs it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from vllm_plugin.local_engine import runner_of

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # collective_rpc with a function
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # An engine a process, a core each: two that spin on both cores take longer than one by one.
    cores = sorted(os.sched_getaffinity(0))
    core = cores[int(worker.removeprefix("gw")) % len(cores)]
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", str(core))

STAND = "vllm_plugin.Stand"
logging.raiseExceptions = False  # an engine may end when its test's output is closed already


@contextmanager
def engine(
    model: Path,
    *,
    proposer: str | None = None,
    draft_length: int = 4,
    options: dict[str, Any] | None = None,
    speculative: dict[str, Any] | None = None,
    await_end: bool = False,
    **settings: Any,
) -> Iterator[Any]:
    """A vLLM ``LLM`` with one of our proposers, another method, or none; shut down on exit.

    An engine takes 5 s to end, in which it mostly waits. Tests go on meanwhile, unless
    ``await_end``.
    """
    from vllm import LLM

    if proposer is not None:
        speculative = {
            "method": "custom_class",
            "model": proposer,
            "num_speculative_tokens": draft_length,
        }
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 8,
        "enforce_eager": True,
        "seed": 0,
        "disable_log_stats": False,
    }
    llm = LLM(
        str(model),
        speculative_config=speculative,
        # Tests of drafts want them verified, whether that pays on this machine or not.
        additional_config={"specproof": {"length": "fixed"} | (options or {})} if proposer else {},
        **(defaults | settings),
    )
    try:
        yield llm
    finally:
        end = Thread(target=llm.llm_engine.engine_core.shutdown)
        end.start()
        if await_end:
            end.join()


def counters(llm: Any) -> dict[str, Any]:
    """vLLM's own speculative counters, by short name."""
    prefix = "vllm:spec_decode_"
    return {
        m.name.removeprefix(prefix): getattr(m, "value", getattr(m, "values", None))
        for m in llm.get_metrics()
        if m.name.startswith(prefix)
    }


def adapter_sizes(llm: Any) -> dict[str, int]:
    """Sizes of the adapter's maps in the engine process."""
    return llm.collective_rpc(_sizes)[0]


def _sizes(worker: Any) -> dict[str, int]:
    runner = runner_of(worker)
    adapter = runner.drafter.adapter
    return {
        "pending": len(adapter.pending),
        "served": len(adapter.served),
        "live": len(runner.requests),
        "table": adapter.drafter.table.live if hasattr(adapter.drafter, "table") else 0,
    }
