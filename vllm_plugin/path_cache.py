"""Copying keys and values between blocks of a paged KV cache, token by token where that is known.

What a block holds for one token (a *slot*) is scattered over the block, differently for every
attention backend: vLLM's CPU kernels pack keys for vector registers. So it is found out, not
assumed: each slot of a block of zeros is written through the backend's own update, and the elements
that changed are its. Where that gives no clean partition, or on a GPU, whole blocks are copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

Move = tuple[int, int, int, int]
"""Source block, destination block, first slot and the slot behind the last one."""

_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class KeyValueCopies:
    """Copies slots of one KV cache group, in all of its layers at once."""

    def __init__(self, layers: list[Any]) -> None:
        self.caches = _different([layer.kv_cache for layer in layers])
        self.slots: NDArray[np.int64] | None = None
        if all(cache.device.type == "cpu" for cache in self.caches):
            self.slots = slots_of_block(layers[0])
        if self.slots is not None:
            self._arrays = tuple(_blocks(cache) for cache in self.caches)
            if len({(a.shape, a.dtype, a.strides) for a in self._arrays}) > 1:
                self.slots = None  # layers of different shapes

    def clear(self, blocks: list[int]) -> None:
        """Zero whole blocks, so that no position ever holds a NaN of somebody else's memory."""
        for cache in self.caches:
            cache[torch.tensor(blocks, device=cache.device)] = 0

    def copy(self, moves: list[Move]) -> None:
        """Make each move; slots outside a move's range may be overwritten with the source's."""
        moves = [move for move in moves if move[3] > move[2]]
        if not moves:
            return
        if self.slots is not None:
            _copy(self._arrays, self.slots, np.array(moves, np.int64))
            return
        source, destination = ([move[side] for move in moves] for side in (0, 1))
        for cache in self.caches:
            cache[torch.tensor(destination, device=cache.device)] = cache[
                torch.tensor(source, device=cache.device)
            ]


def slots_of_block(layer: Any) -> NDArray[np.int64] | None:
    """The elements of each slot in a block of the layer's cache, (slots, n); None if unclear."""
    cache = layer.kv_cache
    trial = torch.zeros((1, *cache.shape[1:]), dtype=cache.dtype, device=cache.device)
    raw = trial.view(_SAME_SIZE[cache.element_size()]).view(-1)
    slots, (heads, size) = cache.shape[2], (layer.num_kv_heads, layer.head_size)
    ones = torch.ones((1, heads, size), dtype=layer.dtype, device=cache.device)
    found = []
    for slot in range(slots):
        raw.zero_()
        place = torch.tensor([slot], dtype=torch.int64, device=cache.device)
        layer.impl.do_kv_cache_update(layer, ones, ones, trial, place)
        found.append(raw.nonzero()[:, 0].numpy())
    everything = np.concatenate(found)
    whole = np.array_equal(np.sort(everything), np.arange(raw.shape[0]))
    if not whole or len({elements.shape for elements in found}) > 1:
        return None
    return np.stack(found)


def _blocks(cache: Tensor) -> NDArray[Any]:
    """The cache as numpy sees it, (blocks, elements of a block), without a copy."""
    whole = cache.view(_SAME_SIZE[cache.element_size()])
    blocks: NDArray[Any] = whole.view(cache.shape[0], -1).numpy()
    return blocks


def _different(caches: list[Tensor]) -> list[Tensor]:
    """Each cache once: layers may share theirs."""
    return list({cache.data_ptr(): cache for cache in caches}.values())


@njit(cache=True, nogil=True)
def _copy(caches: Any, slots: Any, moves: Any) -> None:
    """Source and destination of all moves differ; layer by layer, which is how memory lies."""
    for layer in range(len(caches)):
        cache = caches[layer]
        for m in range(moves.shape[0]):
            source, destination = cache[moves[m, 0]], cache[moves[m, 1]]
            if 2 * (moves[m, 3] - moves[m, 2]) > slots.shape[0]:
                destination[:] = source  # one stretch of memory is faster than its scattered half
                continue
            for slot in range(moves[m, 2], moves[m, 3]):
                for e in slots[slot]:
                    destination[e] = source[e]
