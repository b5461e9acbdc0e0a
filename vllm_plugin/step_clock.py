"""How long each step of the engine takes, and what it held: for the cost model of draft lengths.

A step's time runs from ``execute_model`` to the end of ``sample_tokens`` in the runner's process:
layout, forward, verification and the drafting of the next step. The verifier reads its verdict on
the host, so work that a device does asynchronously is waited for within the step. What happens
between two steps (scheduling, answering) is not in it: no draft length changes that.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from vllm_plugin import hooks


class Held(NamedTuple):
    """What a step holds: tokens in its forward, requests, and whether all of them decode."""

    tokens: int
    requests: int
    decoding: bool


NOTHING_HELD = Held(0, 0, False)

Callback = Callable[[int, int, bool, float], None]
"""Called after each step with its tokens, its requests, whether all of them decode, and seconds."""


class StepClock:
    """Times the steps of one runner; ``holding`` is what the last one that began holds."""

    def __init__(self, callback: Callback | None = None) -> None:
        self.callback = callback
        self.holding = NOTHING_HELD
        self._began: float | None = None

    @classmethod
    def install(cls, runner: Any, callback: Callback | None = None) -> StepClock:
        """Time every step of this runner that begins from now on.

        A runner has one clock: a second one takes the place of the first. Raises RuntimeError, with
        one sentence, where the installed vLLM has other seams than those that are hooked.
        """
        wrong = next((found for hook in hooks.STEPS if (found := hooks.problem(hook))), None)
        if wrong:
            raise RuntimeError(f"specproof cannot time steps: {wrong}")
        hooks.install(hooks.EXECUTE_MODEL, _beginning)
        hooks.install(hooks.SAMPLE_TOKENS, _ending)
        clock = cls(callback)
        runner.specproof_step_clock = clock
        return clock

    def begin(self, scheduler_output: Any) -> None:
        """A step begins."""
        self.holding = held(scheduler_output)
        self._began = time.perf_counter()

    def end(self) -> None:
        """It has ended; one without tokens, or whose beginning was not seen, is not told of."""
        began, self._began = self._began, None
        if began is not None and self.holding.tokens and self.callback is not None:
            self.callback(*self.holding, time.perf_counter() - began)


def held(scheduler_output: Any) -> Held:
    """What the scheduler put into a step.

    A request decodes when its tokens are its last one and its drafts. What is left of a prompt can
    be one token too, and is told apart only in a request's first step; it costs the same.
    """
    scheduled = scheduler_output.num_scheduled_tokens
    drafts = scheduler_output.scheduled_spec_decode_tokens
    decoding = not scheduler_output.scheduled_new_reqs and all(
        n == 1 + len(drafts.get(request, ())) for request, n in scheduled.items()
    )
    return Held(sum(scheduled.values()), len(scheduled), decoding)


def _beginning(original: Any) -> Any:
    @functools.wraps(original)
    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        clock = getattr(self, "specproof_step_clock", None)
        if clock is not None:
            clock.begin(scheduler_output)
        return original(self, scheduler_output, *args, **kwargs)

    return execute_model


def _ending(original: Any) -> Any:
    @functools.wraps(original)
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        clock = getattr(self, "specproof_step_clock", None)
        if clock is not None:
            clock.end()
        return output

    return sample_tokens
