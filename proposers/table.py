"""The STAND table: for each context, a visit count and the running mean of the target's law.

Struct of arrays with open addressing in buckets of eight slots (one cache line of keys): a context
lives in one bucket or nowhere, so a look-up reads one line and an insertion evicts at most the
bucket's least recently used entry. The arrays are allocated once, from a byte budget; nothing
grows, nothing is a Python object, and the same layout can live in GPU memory.

Source: STAND, arXiv 2506.04708, section 3 (ALGORITHMS.md 1).
"""

import threading
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from proposers.batch import Ints, VerifiedRows
from proposers.context_keys import context_keys, salt_at, salt_of

ENTRIES = 10  # of the paper; an option
MAX_ENTRIES = 32
MAX_EMITTED_WEIGHT = 1000  # 1e39 would overflow float32 and leave laws of NaN
MAX_ORDER = 8
BUCKET = 8  # slots: one cache line of keys
_NOTHING = np.zeros(0, np.int32)
_NO_WEIGHTS = np.zeros(0)


class TableArrays(NamedTuple):
    """The arrays of a table with C slots and E entries a slot; key 0 marks an empty slot."""

    keys: NDArray[np.uint64]  # (C,)
    counts: NDArray[np.float32]  # (C,) visits, after decay and cap
    ids: NDArray[np.int32]  # (C, E) most probable first, -1 is empty
    probabilities: NDArray[np.float32]  # (C, E) mean law at temperature 1, cut to E entries
    kept: NDArray[np.float32]  # (C,) mass of the mean law that the entries cover
    used: NDArray[np.uint32]  # (C,) clock of the last use
    clock: NDArray[np.int64]  # (3,) ticks, live entries, evictions


_CLOCK_BYTES = 3 * 8


def bytes_per_slot(entries: int) -> int:
    """Memory of one slot."""
    return 8 + 4 + 4 * entries + 4 * entries + 4 + 4


def least_bytes(entries: int) -> int:
    """The smallest budget: one bucket."""
    return BUCKET * bytes_per_slot(entries) + _CLOCK_BYTES


def capacity(entries: int, budget_bytes: int) -> int:
    """The largest power of two of slots that fits a budget of at least :func:`least_bytes`."""
    return 1 << (((budget_bytes - _CLOCK_BYTES) // bytes_per_slot(entries)).bit_length() - 1)


@njit(inline="always")
def find(table: Any, key: Any) -> Any:
    """The slot of a context, or -1."""
    base = np.int64(key & np.uint64(table.keys.shape[0] // BUCKET - 1)) * BUCKET
    for slot in range(base, base + BUCKET):
        if table.keys[slot] == key:
            return slot
    return -1


@njit(inline="always")
def find_or_claim(table: Any, key: Any) -> Any:
    """The slot of a context; a new one takes an empty slot or evicts the bucket's oldest."""
    base = np.int64(key & np.uint64(table.keys.shape[0] // BUCKET - 1)) * BUCKET
    oldest: Any = base
    for slot in range(base, base + BUCKET):
        if table.keys[slot] == key:
            return slot
        if table.keys[slot] == 0:
            oldest = slot
            break
        if table.used[slot] < table.used[oldest]:
            oldest = slot
    if table.keys[oldest] == 0:
        table.clock[1] += 1
    else:
        table.clock[2] += 1
    table.keys[oldest] = key
    table.counts[oldest] = 0
    table.ids[oldest, :] = -1
    table.probabilities[oldest, :] = 0
    table.kept[oldest] = 0
    return oldest


@njit(inline="always")
def longest_match(table: Any, keys: Any, longest: Any) -> Any:
    """The slot of the longest known context among ``keys[:longest]`` and its order, or (-1, 0)."""
    for order in range(longest, 0, -1):
        slot = find(table, keys[order - 1])
        if slot >= 0:
            table.used[slot] = np.uint32(table.clock[0])
            return slot, order
    return -1, 0


@njit(inline="always")
def visit(
    table: Any,
    slot: Any,
    ids: Any,
    probabilities: Any,
    decay: Any,
    cap: Any,
    merged_ids: Any,
    merged: Any,
) -> Any:
    """Fold one observed law into a slot: ``avg <- (c avg + obs)/(c + 1)``, then keep the top E.

    A token missing on one side counts as 0 there. ``decay`` shrinks c first, ``cap`` bounds it.
    """
    entries = table.ids.shape[1]
    old = min(table.counts[slot] * decay, cap)
    weight = np.float32(1.0) / (old + np.float32(1.0))
    n = 0
    for e in range(entries):
        token = table.ids[slot, e]
        if token < 0:
            break
        merged_ids[n] = token
        merged[n] = old * weight * table.probabilities[slot, e]
        n += 1
    known = n
    for e in range(ids.shape[0]):
        token = ids[e]
        if token < 0:
            break
        value = weight * probabilities[e]
        for j in range(known):
            if merged_ids[j] == token:
                merged[j] += value
                break
        else:
            merged_ids[n] = token
            merged[n] = value
            n += 1
    for j in range(1, n):  # insertion sort, most probable first: both halves come nearly sorted
        token, value, i = merged_ids[j], merged[j], j
        while i > 0 and merged[i - 1] < value:
            merged_ids[i], merged[i] = merged_ids[i - 1], merged[i - 1]
            i -= 1
        merged_ids[i], merged[i] = token, value
    kept = np.float32(0.0)
    for e in range(min(n, entries)):
        table.ids[slot, e] = merged_ids[e]
        table.probabilities[slot, e] = merged[e]
        kept += merged[e]
    table.kept[slot] = kept
    table.counts[slot] = old + np.float32(1.0)
    table.used[slot] = np.uint32(table.clock[0])


@njit(inline="always")
def weigh_up(ids: Any, law: Any, token: Any, weight: Any) -> None:
    """``law <- (law + weight onehot(token)) / (1 + weight)``; the last place must be free (-1)."""
    scale = np.float32(1.0) / (np.float32(1.0) + weight)
    place = 0
    while ids[place] >= 0 and ids[place] != token:
        place += 1
    if ids[place] < 0:
        ids[place], law[place] = token, np.float32(0.0)
    law[place] += weight
    e = 0
    while e < ids.shape[0] and ids[e] >= 0:
        law[e] *= scale
        e += 1


@njit(cache=True, nogil=True)
def _observe(
    table: Any,
    order: Any,
    tokens: Any,
    begins: Any,
    ends: Any,
    groups: Any,
    ids: Any,
    probabilities: Any,
    emitted: Any,
    weights: Any,
    decay: Any,
    cap: Any,
) -> Any:
    keys = np.empty(order, np.uint64)
    entries = min(table.ids.shape[1], ids.shape[1])
    row_ids = np.empty(entries + 1, np.int32)
    row = np.empty(entries + 1, np.float32)
    merged_ids = np.empty(table.ids.shape[1] + entries + 1, np.int32)
    merged = np.empty(merged_ids.shape[0], np.float32)
    table.clock[0] += 1
    for r in range(ends.shape[0]):
        row_ids[:entries], row[:entries] = ids[r, :entries], probabilities[r, :entries]
        row_ids[entries] = -1
        if emitted.shape[0] and emitted[r] >= 0 and weights[r] > 0:
            weigh_up(row_ids, row, emitted[r], weights[r])
        longest = context_keys(tokens, begins[r], ends[r], order, keys, salt_at(groups, r))
        for m in range(longest):
            slot = find_or_claim(table, keys[m])
            visit(table, slot, row_ids, row, decay, cap, merged_ids, merged)


@njit(cache=True, nogil=True)
def _observe_text(table: Any, order: Any, tokens: Any, group: Any, decay: Any, cap: Any) -> Any:
    keys = np.empty(order, np.uint64)
    merged_ids = np.empty(table.ids.shape[1] + 1, np.int32)
    merged = np.empty(merged_ids.shape[0], np.float32)
    one = np.ones(1, np.float32)
    table.clock[0] += 1
    now, salt = np.uint32(table.clock[0]), salt_of(group)
    for end in range(1, tokens.shape[0]):
        longest = context_keys(tokens, 0, end, order, keys, salt)
        for m in range(longest):
            slot = find(table, keys[m])
            if slot >= 0 and table.used[slot] != now:
                continue  # known before this text, and perhaps by laws: worth more than one token
            if slot < 0:
                slot = find_or_claim(table, keys[m])
            visit(table, slot, tokens[end : end + 1], one, decay, cap, merged_ids, merged)


class StandTable:
    """A table of context statistics under a fixed memory budget.

    Parameters
    ----------
    order
        Longest context kept, in tokens, 1..8; every length 1..order is kept.
    budget_bytes
        Memory for the arrays; the capacity is the largest power of two of slots that fits.
    entries
        Tokens kept of each context's law, 1..32.
    decay
        Factor on a context's count before each visit, in (0, 1]; 1 is the plain mean of the paper,
        the default 0.5 weighs recent visits more and drafts better on recorded trajectories.
    count_cap
        Upper bound on a context's count before each visit (>= 0); old text fades at 1/(cap + 1).
    emitted_weight
        w in 0..1000: a row that emitted y at temperature T < 1 teaches the law
        ``(law + w (1 - T) onehot(y)) / (1 + w (1 - T))``. The colder the text, the more often what
        was emitted once comes again. The table then holds no mean of target laws any more; q stays
        what is drawn from, so the output law is untouched.

    Raises
    ------
    ValueError
        For a parameter outside its range or a budget too small for one bucket.
    """

    def __init__(
        self,
        *,
        order: int = 6,
        budget_bytes: int = 256 * 2**20,
        entries: int = ENTRIES,
        decay: float = 0.5,
        count_cap: float = float("inf"),
        emitted_weight: float = 0.7,
    ) -> None:
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"order is {order}; it must lie in 1..{MAX_ORDER}")
        if not 1 <= entries <= MAX_ENTRIES:
            raise ValueError(f"entries is {entries}; it must lie in 1..{MAX_ENTRIES}")
        if not 0 < decay <= 1:
            raise ValueError(f"decay is {decay}; it must lie in (0, 1]")
        if not count_cap >= 0:
            raise ValueError(f"count_cap is {count_cap}; it must be 0 or more")
        if not 0 <= emitted_weight <= MAX_EMITTED_WEIGHT:
            raise ValueError(
                f"emitted_weight is {emitted_weight}; it must lie in 0..{MAX_EMITTED_WEIGHT}"
            )
        least = least_bytes(entries)
        if budget_bytes < least:
            raise ValueError(
                f"a table budget of {budget_bytes} bytes is too small; the least is {least}"
            )
        slots = capacity(entries, budget_bytes)
        self.order, self.entries = order, entries
        self.lock = threading.Lock()  # held while slots change, so that a thread may copy them
        self.emitted_weight = float(emitted_weight)
        self._decay, self._cap = np.float32(decay), np.float32(count_cap)
        self.arrays = TableArrays(
            keys=np.zeros(slots, np.uint64),
            counts=np.zeros(slots, np.float32),
            ids=np.full((slots, entries), -1, np.int32),
            probabilities=np.zeros((slots, entries), np.float32),
            kept=np.zeros(slots, np.float32),
            used=np.zeros(slots, np.uint32),
            clock=np.zeros(3, np.int64),
        )

    @property
    def capacity(self) -> int:
        """Slots, live or empty."""
        return int(self.arrays.keys.shape[0])

    @property
    def live(self) -> int:
        """Contexts held now."""
        return int(self.arrays.clock[1])

    @property
    def evictions(self) -> int:
        """Contexts dropped for newer ones since the start."""
        return int(self.arrays.clock[2])

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for array in self.arrays)

    def observe(self, rows: VerifiedRows) -> None:
        """Visit every order of every row's context with the row's law; one call a step.

        A row teaches the contexts of its group. Of wider laws than the table's the most probable
        entries are taken.
        """
        known = rows.emitted if self.emitted_weight > 0 else _NOTHING
        coldness = np.maximum(1 - rows.temperatures, 0) if known.size else _NO_WEIGHTS
        weights = (self.emitted_weight * coldness).astype(np.float32)
        with self.lock:
            _observe(
                self.arrays, self.order, rows.tokens, rows.begins, rows.ends, rows.groups,
                rows.ids, rows.probabilities, known, weights, self._decay, self._cap,
            )  # fmt: skip

    def observe_text(self, tokens: Ints, group: int = 0) -> None:
        """Visit the contexts of a known text (a prompt) with its own next tokens as point masses.

        Only contexts that the table did not know before this text are visited. A prompt that comes
        again, as several samples or further turns, would otherwise wear out what the target's laws
        taught: on recorded trajectories that costs 0.02 of block efficiency.

        ``group`` is the text's, 0..2^64 - 1; OverflowError for another number.
        """
        with self.lock:
            _observe_text(self.arrays, self.order, tokens, np.uint64(group), self._decay, self._cap)

    def look_up(
        self, context: Ints, group: int = 0
    ) -> tuple[Ints, NDArray[np.float32], float, int] | None:
        """The longest suffix of ``context`` that its group knows: (ids, mean law, count, order)."""
        keys = np.empty(self.order, np.uint64)
        slot, order = _look_up(self.arrays, self.order, context, np.uint64(group), keys)
        if slot < 0:
            return None
        ids = self.arrays.ids[slot]
        filled = ids >= 0
        law = self.arrays.probabilities[slot]
        return ids[filled].copy(), law[filled].copy(), float(self.arrays.counts[slot]), int(order)


@njit(cache=True)
def _look_up(table: Any, order: Any, context: Any, group: Any, keys: Any) -> Any:
    longest = context_keys(context, 0, context.shape[0], order, keys, salt_of(group))
    return longest_match(table, keys, longest)
