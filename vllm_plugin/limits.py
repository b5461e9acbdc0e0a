"""What vLLM leaves for drafts: of a request's length, of a step's tokens, of cache blocks."""

from __future__ import annotations

from typing import Any


def budget_of(request: Any, most: int) -> int:
    """Drafts that can be emitted within the request's own ``max_tokens``, at most ``most``."""
    parameters = request.sampling_params
    if parameters is None or parameters.max_tokens is None:
        return most
    return min(most, parameters.max_tokens - len(request.output_token_ids) - 1)


def room_in_step(runner: Any, sampled: list[list[int]], waiting: int) -> int:
    """Tokens of the next step that the scheduler has left for requests that go on decoding.

    It takes what it schedules from the front, so what is not known to be free may be taken: by
    prompts that are not finished, which sampled nothing, and by ``waiting`` drafted tokens.
    """
    config, batch = runner.scheduler_config, runner.input_batch
    room = config.max_num_batched_tokens
    if config.max_num_scheduled_tokens is not None:
        room = min(room, config.max_num_scheduled_tokens)
    prompts = sum(int(batch.num_tokens_no_spec[i]) for i, new in enumerate(sampled) if not new)
    return int(room - prompts - waiting)


def may_need_a_block(batch: Any, text_length: int, longest: int) -> bool:
    """Whether lists of up to ``longest`` drafts differ in the number of cache blocks they need.

    For want of that block vLLM preempts the request and drops its list: a cut that looks at the
    drafts it cuts, by their number. What is left of the list is judged and carried over
    (:mod:`vllm_plugin.pending`), which is right for a rule that judges drafts one by one, but not
    for one that weighs a draft by those behind it, as block does. So whether such a rule may judge
    must depend on the place alone.
    """
    sizes = [table.block_size for table in batch.block_table.block_tables]
    return any(-(-text_length // size) < -(-(text_length + longest) // size) for size in sizes)
