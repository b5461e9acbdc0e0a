"""Position-keyed sampling for requests with a seed (see :mod:`proposers.noise`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p

from proposers.noise import race, row_key
from vllm_plugin.row_laws import row_laws


@njit(cache=True)
def _race_at(p: Any, key: Any, position: Any) -> int:
    return race(p, row_key(key, position))


def keyed_choice(p: Tensor, key: int, position: int) -> int:
    """The token that request ``key`` emits at ``position`` of its text, drawn from p (V,).

    A pure function of its arguments: whatever was drafted, batched or preempted before, the same
    seed gives the same token.
    """
    law = p.detach().cpu().numpy() if p.device.type != "cpu" else p.numpy()
    return int(_race_at(law, np.uint64(key), position))


class KeyedTopKTopP(TopKTopPSampler):
    """vLLM's last sampling stage, except that rows named in ``places`` draw from keyed noise."""

    def __init__(self, stock: TopKTopPSampler) -> None:
        torch.nn.Module.__init__(self)
        self.stock = stock
        self.logprobs_mode = stock.logprobs_mode
        self.places: dict[int, tuple[int, int]] = {}

    def forward(
        self, logits: Tensor, generators: dict[int, Any], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """As the stock stage; seeded rows are drawn again from the same processed law."""
        if not self.places:
            return self.stock(logits, generators, k, p)
        logits = apply_top_k_top_p(logits, k, p)
        tokens, returned = self.stock(logits, {}, None, None)
        for row, (key, position) in self.places.items():
            tokens[row] = keyed_choice(row_laws(logits[row : row + 1])[0], key, position)
        return tokens, returned
