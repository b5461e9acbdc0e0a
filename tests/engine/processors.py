"""Custom logits processors as users write them: one kind by request, one kind by batch row."""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

FORCED = 5


class ByRequest(AdapterLogitsProcessor):
    """For requests that ask for it: ``force_every: n`` forces a token in every n-th call.

    It counts its own calls, so it is only right when each emitted token is one call. With n = 0 it
    changes nothing.
    """

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        every = (params.extra_args or {}).get("force_every")
        if every is None:
            return None
        calls = 0

        def process(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if every and calls % every == 0:
                logits[:] = -torch.inf
                logits[FORCED] = 0
            return logits

        return process


class ByRow(LogitsProcessor):
    """No request may emit the same token twice in a row; the state is kept by batch row."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self.outputs: dict[int, list[int]] = {}
        self.size = 0

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        process_dict_updates(self.outputs, batch_update, lambda params, prompt, output: output)
        if batch_update:
            self.size = batch_update.batch_size

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        assert logits.shape[0] == self.size, "a processor is shown one row a request"
        for row, output in self.outputs.items():
            if output:
                logits[row, output[-1]] = -torch.inf
        return logits
