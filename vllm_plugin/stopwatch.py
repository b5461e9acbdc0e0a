"""What a step of ours costs, by part, inside a running engine; off unless a file is asked for.

``SPECPROOF_STOPWATCH=FILE vllm serve ...`` makes the engine process write, every hundred steps, a
JSON object: for each step in which drafts were verified, the number of requests and of rows, and
the seconds spent in each part. ``benchmarks/overhead.py`` reads it. Work that vLLM's own sampler
does for the same rows (float32 logits, penalties, temperature, top-k, top-p, softmax) is the part
"stock", and "stock in verify" its share inside ``verify``; "length", the decision and what it is
learned from, lies partly within "learn"; all else inside ``sample`` and
``propose`` is ours, and with several paths a request their "layout" before the forward.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ENVIRONMENT = "SPECPROOF_STOPWATCH"
STOCK = "stock"
LAYOUT = "layout"
_WRITE_EVERY = 100


class Stopwatch:
    """Seconds of the current step by part, and the steps so far."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.current: dict[str, float] = {}
        self.steps: list[dict[str, float]] = []
        self._open: list[str] = []

    def timed(self, part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """``original`` with its time added to a part of the current step; "stock" is a leaf."""

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if STOCK in self._open:
                return original(*args, **kwargs)
            self._open.append(part)
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent = time.perf_counter() - began
                self.current[part] = self.current.get(part, 0.0) + spent
                within = self._open[-2] if len(self._open) > 1 else None
                if part == STOCK and within is not None:
                    key = f"{STOCK} in {within}"
                    self.current[key] = self.current.get(key, 0.0) + spent
                self._open.pop()

        return call

    def step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``V1Adapter.sample``: the step ends with the next ``propose``.

        It begins here, or where several paths are laid out, before the forward.
        """
        timed = self.timed("sample", original)

        @functools.wraps(original)
        def call(adapter: Any, runner: Any, logits: Any, metadata: Any, stock: Any) -> Any:
            self.current = {part: self.current[part] for part in (LAYOUT,) if part in self.current}
            result = timed(adapter, runner, logits, metadata, stock)
            if metadata is not None:
                self.current |= {"requests": runner.input_batch.num_reqs, "rows": logits.shape[0]}
            return result

        return call

    def end(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``V1Adapter.propose``: the step is complete; steps without drafts are not kept."""
        timed = self.timed("propose", original)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = timed(*args, **kwargs)
            if "rows" in self.current:
                self.steps.append(self.current)
                if len(self.steps) % _WRITE_EVERY == 0:
                    self.file.write_text(json.dumps({"steps": self.steps}))
            self.current = {}
            return result

        return call


def parts() -> tuple[tuple[str, Any, str], ...]:
    """What is timed: the part of a step that it counts for, and where the function is held."""
    from vllm.v1.sample.sampler import Sampler

    from vllm_plugin import adapter_v1
    from vllm_plugin.length_control import LengthControl
    from vllm_plugin.path_adapter import PathAdapter
    from vllm_plugin.path_rows import PathRows
    from vllm_plugin.path_verifier import PathVerifier
    from vllm_plugin.teacher import Teacher
    from vllm_plugin.verifier import Verifier

    return (
        (LAYOUT, PathAdapter, "prepare"),
        (LAYOUT, PathRows, "expanded"),
        ("bookkeeping", adapter_v1.V1Adapter, "_requests"),
        ("learn", adapter_v1, "laws_of"),
        ("learn", Teacher, "teach"),
        ("verify", Verifier, "verify"),
        ("verify", PathVerifier, "verify_paths"),
        ("commit", PathAdapter, "settle"),
        *(
            ("length", LengthControl, name)
            for name in ("begin", "ahead", "cut", "end", "verified", "shadow", "follow")
        ),
        (STOCK, Verifier, "_process"),
        (STOCK, Sampler, "apply_logits_processors"),
        (STOCK, Sampler, "greedy_sample"),
        (STOCK, Verifier, "tempered"),
        (STOCK, torch.Tensor, "float"),
        (STOCK, torch.Tensor, "softmax"),
    )


def install_if_asked() -> None:
    """Start measuring this process if the environment names a file; once."""
    from vllm_plugin.adapter_v1 import V1Adapter

    file = os.environ.get(ENVIRONMENT)
    if not file or hasattr(V1Adapter.sample, "__wrapped__"):
        return
    watch = Stopwatch(Path(file))
    for part, owner, name in parts():
        held = inspect.getattr_static(owner, name)
        timed = watch.timed(part, getattr(owner, name))
        setattr(owner, name, staticmethod(timed) if isinstance(held, staticmethod) else timed)
    V1Adapter.sample = watch.step(V1Adapter.sample)  # type: ignore[method-assign]
    V1Adapter.propose = watch.end(V1Adapter.propose)  # type: ignore[method-assign]
