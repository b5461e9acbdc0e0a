"""Drafts travel with a step's output, so that no second message is waited for between two steps.

Without asynchronous scheduling, vLLM's engine core asks the worker for its drafts after every step
(``take_draft_token_ids``) and waits. The drafts are ready long before; but while the core waits,
front ends that share its CPU begin to send out the step's tokens, and the model stands still until
the core is given the CPU again: 5 to 7 ms of a step of 100 with 32 requests on two cores. Here the
worker puts what it would have answered into the output of the same step.

Where a seam does not fit, or a scheduler of somebody else's drops the drafts, vLLM asks as before.
"""

from __future__ import annotations

import functools
from typing import Any

from vllm_plugin import hooks

_DRAFTS = "specproof_drafts"  # on a step's output, and on the scheduler until the step's end


def install_in_worker() -> None:
    """Let this process's workers send drafts along, if the engine core can take them."""
    if _fits():
        hooks.install(hooks.WORKER_SAMPLE, _sending)


def install_in_core() -> None:
    """Let engine cores of this process, or forked from it, take drafts that were sent along."""
    if _fits():
        hooks.install(hooks.TAKE_OUTPUT, _keeping)
        hooks.install(hooks.POST_STEP, _delivering)


def install_where_core_is() -> None:
    """The same in a process that has the engine core's module already, and nothing in others."""
    if hooks.loaded(hooks.POST_STEP):
        install_in_core()


def _fits() -> bool:
    return all(hooks.problem(hook) is None for hook in hooks.DELIVERY)


def _sending(stock: Any) -> Any:
    @functools.wraps(stock)
    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        output = stock(self, grammar_output)
        runner = self.model_runner
        # Outputs that steps share, and those that are not finished yet, carry nothing.
        if getattr(output, "req_ids", None) and not runner.use_async_scheduling:
            setattr(output, _DRAFTS, runner.take_draft_token_ids())
        return output

    return sample_tokens


def _keeping(stock: Any) -> Any:
    @functools.wraps(stock)
    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        made = stock(self, scheduler_output, model_runner_output)
        if _DRAFTS in vars(model_runner_output):
            setattr(self, _DRAFTS, getattr(model_runner_output, _DRAFTS))
        return made

    return update_from_output


def _delivering(stock: Any) -> Any:
    @functools.wraps(stock)
    def post_step(self: Any, model_executed: bool) -> None:
        kept = vars(self.scheduler)
        if _DRAFTS not in kept:
            stock(self, model_executed)
            return
        drafts = kept.pop(_DRAFTS)
        if drafts is not None:
            self.scheduler.update_draft_token_ids(drafts)

    return post_step
