"""ADED's representative of the target: how often each token followed each pair of tokens.

For a context (u, v) with count c, the estimate of P(w | u, v) is the mean of what was seen there,
``P <- (c P + 1[w])/(c + 1)`` with c decayed first: plain frequencies at decay 1. The slots are
those of the STAND table (fixed budget, eviction by age), one order instead of all.

Source: ADED, arXiv 2407.12021 (its tri-gram matrix, which starts from a corpus; here it starts
empty or from prompts).
"""

from typing import Any

import numpy as np
from numba import njit

from proposers.batch import Ints
from proposers.context_keys import SALT, context_keys
from proposers.table import StandTable, find, find_or_claim

ORDER = 2


@njit(inline="always")
def pair_slot(table: Any, pair: Any, keys: Any) -> Any:
    """The slot of a pair of tokens, shape (2,), or -1."""
    context_keys(pair, 0, ORDER, ORDER, keys, SALT)
    return find(table, keys[ORDER - 1])


@njit(inline="always")
def _count(table: Any, slot: Any, token: Any, decay: Any) -> Any:
    """Fold one successor into a slot's frequencies; entries stay sorted, most probable first."""
    old = table.counts[slot] * decay
    weight = np.float32(1.0) / (old + np.float32(1.0))
    ids, p = table.ids[slot], table.probabilities[slot]
    last = ids.shape[0] - 1
    place = -1
    for e in range(last + 1):
        if ids[e] < 0:
            if place < 0:
                place = e
            break
        p[e] *= old * weight
        if ids[e] == token:
            place = e
    if place < 0 and p[last] <= weight:  # full: the rarest gives way
        place = last
    if place >= 0:
        p[place] = p[place] + weight if ids[place] == token else weight
        ids[place] = token
        value = p[place]
        while place > 0 and p[place - 1] <= value:  # of equals, the latest first
            ids[place], p[place] = ids[place - 1], p[place - 1]
            place -= 1
        ids[place], p[place] = token, value
    table.counts[slot] = old + np.float32(1.0)
    table.used[slot] = np.uint32(table.clock[0])


@njit(cache=True, nogil=True)
def _learn(table: Any, text: Any, begin: Any, end: Any, decay: Any, known_too: Any) -> Any:
    keys = np.empty(ORDER, np.uint64)
    table.clock[0] += 1
    now = np.uint32(table.clock[0])
    for i in range(max(begin, ORDER), end):
        context_keys(text, i - ORDER, i, ORDER, keys, SALT)
        if not known_too:
            slot = find(table, keys[ORDER - 1])
            if slot >= 0 and table.used[slot] != now:
                continue
        _count(table, find_or_claim(table, keys[ORDER - 1]), text[i], decay)


class TrigramTable:
    """Successor frequencies of pairs of tokens, under a fixed memory budget.

    Parameters
    ----------
    budget_bytes
        Memory for the arrays.
    decay
        Factor on a pair's count before each visit, in (0, 1]; 1 gives plain frequencies.

    Raises
    ------
    ValueError
        For a decay outside its range or a budget too small for one bucket.
    """

    def __init__(self, *, budget_bytes: int = 256 * 2**20, decay: float = 1.0) -> None:
        slots = StandTable(order=ORDER, budget_bytes=budget_bytes, decay=decay)
        self.arrays = slots.arrays
        self._decay = np.float32(decay)

    def learn(self, text: Ints, begin: int) -> None:
        """Count the successors ``text[begin:]``, each after the two tokens before it."""
        _learn(self.arrays, text, begin, text.shape[0], self._decay, True)

    def learn_prompt(self, prompt: Ints) -> None:
        """Count a prompt's successors of pairs that the table did not know before.

        A prompt that comes again, as several samples or further turns, counts once.
        """
        _learn(self.arrays, prompt, 0, prompt.shape[0], self._decay, False)

    def look_up(self, first: int, second: int) -> dict[int, float]:
        """P(. | first, second), most probable first; empty when the pair is unknown."""
        slot = _look_up(self.arrays, np.array([first, second], np.int32))
        if slot < 0:
            return {}
        ids, p = self.arrays.ids[slot], self.arrays.probabilities[slot]
        return dict(zip(ids[ids >= 0].tolist(), p[ids >= 0].tolist(), strict=True))


@njit(cache=True)
def _look_up(table: Any, pair: Any) -> Any:
    return pair_slot(table, pair, np.empty(ORDER, np.uint64))
