"""Inside the engine's worker: what a step costs by part, and what was decided at first nodes.

Functions for ``LLM.collective_rpc``; :mod:`paths` calls them. Everything hangs on the runner, so a
second engine in the same process starts anew.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vllm_plugin import step_clock
from vllm_plugin.local_engine import runner_of


class Probe:
    """Seconds by part of every step, and p, q and verdict of every first node with candidates."""

    def __init__(self) -> None:
        self.step: dict[str, float] = {}
        self.steps: list[dict[str, float]] = []
        self.nodes: list[tuple[Any, ...]] = []
        self.first = False
        self._inside: list[str] = []

    def timed(self, part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """``original`` with its own time, without that of timed calls in it, added to a part."""

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(part)
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent = time.perf_counter() - began
                self._inside.pop()
                self.step[part] = self.step.get(part, 0.0) + spent
                if self._inside:
                    outer = self._inside[-1]
                    self.step[outer] = self.step.get(outer, 0.0) - spent

        return call


def install(worker: Any) -> None:
    """Start measuring this worker; once for each engine."""
    runner = runner_of(worker)
    probe = runner.specproof_probe = Probe()
    _time_the_step(runner, probe)
    adapter = getattr(getattr(runner, "drafter", None), "adapter", None)
    if adapter is not None:
        _time_ours(runner, adapter, probe)


def _time_the_step(runner: Any, probe: Probe) -> None:
    execute, sample = runner.execute_model, runner.sample_tokens
    runner._model_forward = probe.timed("forward", runner._model_forward)
    runner.model.compute_logits = probe.timed("logits", runner.model.compute_logits)

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        tokens, requests, decoding = step_clock.held(scheduler_output)
        probe.step = {"requests": requests, "tokens": tokens, "decoding": float(decoding)}
        probe.step["began"] = time.perf_counter()
        return execute(scheduler_output, *args, **kwargs)

    def sample_tokens(*args: Any, **kwargs: Any) -> Any:
        output = sample(*args, **kwargs)
        step = probe.step
        step["seconds"] = time.perf_counter() - step.pop("began")
        emitted = [tokens for tokens in output.sampled_token_ids if tokens]
        step["sampling"], step["emitted"] = len(emitted), sum(map(len, emitted))
        probe.steps.append(step)
        probe.step = {}
        return output

    runner.execute_model, runner.sample_tokens = execute_model, sample_tokens


def _time_ours(runner: Any, adapter: Any, probe: Probe) -> None:
    from vllm_plugin import adapter_v1, path_verifier

    adapter.propose = probe.timed("draft", adapter.propose)
    adapter.sample = probe.timed("bookkeeping", adapter.sample)
    adapter.teacher.teach = probe.timed("learn", adapter.teacher.teach)
    adapter_v1.laws_of = probe.timed("learn", adapter_v1.laws_of)
    served = adapter.serve

    def serve(runner: Any) -> None:
        served(runner)
        verifier = adapter.verifier
        if hasattr(verifier, "specproof_timed"):
            return
        verifier.specproof_timed = True
        verifier.tempered = probe.timed("stock", verifier.tempered)
        sampler = verifier.sampler
        sampler.apply_logits_processors = probe.timed("stock", sampler.apply_logits_processors)
        verifier.verify = probe.timed("verdict", verifier.verify)
        if hasattr(verifier, "verify_paths"):
            path_verifier.row_laws = probe.timed("stock", path_verifier.row_laws)
            verifier.decide = _recorded(probe, verifier.decide)
            walk = probe.timed("verdict", verifier.verify_paths)

            def verify_paths(*args: Any, **kwargs: Any) -> Any:
                probe.first = True
                return walk(*args, **kwargs)

            verifier.verify_paths = verify_paths
            adapter.rows.copies.copy = probe.timed("copying", adapter.rows.copies.copy)
            adapter.rows.expanded = probe.timed("layout", adapter.rows.expanded)
            adapter.settle = probe.timed("layout", adapter.settle)

    adapter.serve = serve
    if hasattr(adapter, "prepare"):
        adapter.prepare = probe.timed("layout", adapter.prepare)


def _recorded(probe: Probe, decide: Callable[..., Any]) -> Callable[..., Any]:
    """The decision, with p and q on q's support kept for the first depth of a step."""

    def deciding(rule: str, p: Any, nodes: Any, u_accept: Any, u_emit: Any) -> Any:
        token, accepted = decide(rule, p, nodes, u_accept, u_emit)
        if probe.first:
            probe.first = False
            held = p[nodes.rows[:, None], nodes.law_ids].double().numpy()
            q = nodes.law.numpy()
            held = np.where(q > 0, held, 0.0)
            offered = (nodes.candidates >= 0).sum(dim=1).numpy()
            for b in np.flatnonzero(offered):
                verdict = int(offered[b]), bool(accepted[b] >= 0)
                probe.nodes.append((held[b].tolist(), q[b].tolist(), *verdict))
        return token, accepted

    return deciding


def forget(worker: Any) -> None:
    """Drop what was measured so far: a warm-up."""
    probe = runner_of(worker).specproof_probe
    probe.steps.clear()
    probe.nodes.clear()


def collect(worker: Any) -> tuple[list[dict[str, float]], list[tuple[Any, ...]]]:
    """All steps and first nodes since the last time this was called."""
    probe = runner_of(worker).specproof_probe
    taken = list(probe.steps), list(probe.nodes)
    forget(worker)
    return taken
