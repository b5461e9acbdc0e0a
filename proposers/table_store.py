"""Saving a STAND table while it serves, and filling one from a file (:mod:`proposers.table_file`).

A table is saved in slices of its slots. A context lives in one slot and no slot speaks of another,
so slices copied at different moments make a table as good as one copied at once, and whoever wants
to change the table waits for the copy of one slice at most, not for the disk.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proposers.table import BUCKET, StandTable
from proposers.table_file import Contexts, Identity, TableReader, write

BREATH = 0.0005  # seconds, for saving while the engine serves
SLICE = 4096  # slots copied at a time: 400 KB, a tenth of a millisecond


def save(
    table: StandTable,
    path: Path,
    identity: Identity,
    *,
    about: Mapping[str, Any] | None = None,
    patience: float = 10.0,
    breath: float = 0.0,
) -> int:
    """Write a table's live contexts, from any thread, and return how many there are.

    ``breath`` is the time in seconds that the thread sleeps after each slice. Python gives another
    thread its turn every 5 ms only, unless the running one rests: with a breath an engine waits for
    a slice, without one up to twice 5 ms a step.

    Raises
    ------
    OSError
        As :func:`proposers.table_file.write`.
    """
    blocks = live_blocks(table, breath=breath)
    return write(path, identity, blocks, about=about, patience=patience)


def live_blocks(table: StandTable, slots: int = SLICE, breath: float = 0.0) -> Iterator[Contexts]:
    """The live contexts, slice by slice; a block is valid until the next one is asked for."""
    source = Contexts(*(getattr(table.arrays, name) for name in Contexts._fields))
    slots = min(slots, table.capacity)
    copy = Contexts(*(np.empty((slots, *a.shape[1:]), a.dtype) for a in source))
    for begin in range(0, table.capacity, slots):  # both are powers of two
        if not source.keys[begin : begin + slots].any():
            continue
        with table.lock:
            for held, own in zip(source, copy, strict=True):
                np.copyto(own, held[begin : begin + slots])
        live = copy.keys != 0
        if breath:
            time.sleep(breath)
        yield copy if live.all() else Contexts(*(own[live] for own in copy))


def load(table: StandTable, path: Path, identity: Identity) -> tuple[int, int]:
    """Fill an empty table from a file; returns (contexts taken, contexts in the file).

    A file of a larger table is taken as far as it fits: of the contexts that meet in a bucket, the
    most recently used ones.

    Raises
    ------
    TableFileError
        As :class:`proposers.table_file.TableReader`; the table is then still empty, unless the disk
        itself fails between two readings.
    ValueError
        When the table is not empty.
    """
    if table.live:
        raise ValueError(f"the table already holds {table.live} contexts; load into a new one")
    target = Contexts(*(getattr(table.arrays, name) for name in Contexts._fields))
    with TableReader(path, identity) as reader:
        found = [(block.keys, block.used) for block in reader.blocks()]
        if not found:
            return 0, 0
        keys, used = (np.concatenate(parts) for parts in zip(*found, strict=True))
        slots = places(keys, used, table.capacity // BUCKET)
        at = 0
        for block in reader.blocks(again=True):
            own = slots[at : at + block.keys.shape[0]]
            at += own.shape[0]
            fits = own >= 0
            for into, array in zip(target, block, strict=True):
                if fits.all():
                    into[own] = array
                else:
                    into[own[fits]] = array[fits]
    taken = int((slots >= 0).sum())
    table.arrays.clock[:] = int(used.max()), taken, 0
    return taken, keys.shape[0]


def places(keys: NDArray[np.uint64], used: NDArray[np.uint32], buckets: int) -> NDArray[np.int64]:
    """The slot of each context in a table of so many buckets; -1 for those that find no room."""
    bucket = (keys & np.uint64(buckets - 1)).astype(np.int64)
    recent_first = np.argsort((bucket << 32) | ~used, kind="stable")
    sorted_bucket = bucket[recent_first]
    begins = np.flatnonzero(np.diff(sorted_bucket, prepend=-1))
    sizes = np.diff(begins, append=keys.shape[0])
    rank = np.arange(keys.shape[0]) - np.repeat(begins, sizes)
    slots = np.empty(keys.shape[0], np.int64)
    slots[recent_first] = np.where(rank < BUCKET, sorted_bucket * BUCKET + rank, -1)
    return slots
