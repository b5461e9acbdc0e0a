"""What an engine's drafter is shown, step by step, in a file: for `specproof record`.

Answers and their laws come over HTTP, the rows behind refused drafts do not; a drafter learns from
both. With ``SPECPROOF_ROW_LOG=FILE`` in its environment an engine process of ours appends the
prompt of every request that starts, and for every step of each what it emitted and the laws of the
rows that emitted nothing. Records are .npy arrays one after another; each is flushed before the
step's tokens leave the engine, so whoever has an answer finds all of it here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from theory.refused import RefusedRows, none

if TYPE_CHECKING:
    from vllm_plugin.lessons import Laws, Stretch

ENVIRONMENT = "SPECPROOF_ROW_LOG"
_START, _STEP = 0, 1
_ARRAYS = {_START: 1, _STEP: 6}
_NOTHING = np.zeros(0, np.int32)
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


class RowLog:
    """The writing side, in the engine's process."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("ab")

    def start(self, handle: int, prompt: Ints) -> None:
        """A request begins to decode."""
        self._write([_START, handle], prompt.astype(np.int32))

    def step(
        self,
        handles: list[int],
        stretches: Sequence[Stretch],
        laws: Laws,
        emitted: Sequence[Ints],
    ) -> None:
        """One step: what every request emitted, and the laws of its rows that emitted nothing.

        ``handles`` by stretch, ``laws`` of all their rows in order, ``emitted`` by place in the
        batch. The stretches of one request follow one another.
        """
        begin, told = 0, -1
        for handle, s in zip(handles, stretches, strict=True):
            end = begin + s.rows.shape[0]
            refused = s.emitted_at(emitted[s.index]) < 0
            self._write(
                [_STEP, handle, s.text_length],
                emitted[s.index].astype(np.int32) if handle != told else _NOTHING,
                emitted[s.index].shape[:1],
                s.tokens.astype(np.int32),
                s.behind[refused],
                laws[0][begin:end][refused],
                laws[1][begin:end][refused],
            )
            begin, told = end, handle

    def _write(self, head: list[int], *arrays: Any) -> None:
        for array in (head, *arrays):
            np.save(self._file, np.asarray(array), allow_pickle=False)
        self._file.flush()


def asked_for() -> RowLog | None:
    """The log that the environment names, if it names one."""
    file = os.environ.get(ENVIRONMENT)
    return RowLog(Path(file)) if file else None


@dataclass
class _Request:
    """One request as the log tells it: where each step began, what it emitted, what it refused."""

    prompt: Ints
    emitted: list[int] = field(default_factory=list)
    rows: list[tuple[int, int, Ints, Ints, Floats]] = field(default_factory=list)


class RowReader:
    """The reading side: rows behind refused drafts, for answers that are known from elsewhere."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.steps = 0  # told of so far
        self._read_to = 0
        self._requests: dict[int, _Request] = {}
        self._entries = 1

    def take(self, prompt: Ints, answers: list[Ints]) -> RefusedRows | None:
        """The rows of these answers to one prompt, one after another; None if one is not there.

        An answer is the unused request of the same prompt that emitted it; what a request emitted
        beyond (a step can go past the end) is ignored. The requests found are used up.
        """
        self._refresh()
        found: list[tuple[int, Ints]] = []
        for answer in answers:
            handle = self._find(prompt, answer, {handle for handle, _ in found})
            if handle is None:
                return None
            found.append((handle, answer))
        parts, begin = [none(self._entries)], 0
        first = [0]
        for handle, answer in found:
            parts.append(_rows(self._requests.pop(handle), answer.shape[0], self._entries))
            first.append(begin)
            begin += answer.shape[0]
        return RefusedRows.joined(list(zip(parts, first, strict=True)))

    def _find(self, prompt: Ints, answer: Ints, used: set[int]) -> int | None:
        for handle, request in self._requests.items():
            if handle not in used and np.array_equal(request.prompt, prompt):
                n = answer.shape[0]
                if len(request.emitted) >= n and request.emitted[:n] == answer.tolist():
                    return handle
        return None

    def _refresh(self) -> None:
        for head, arrays in self._records():
            if head[0] == _START:
                self._requests[head[1]] = _Request(arrays[0])
                continue
            self.steps += 1
            request = self._requests.get(head[1])
            if request is None:
                continue
            emitted, count, drafts, behind, ids, law = arrays
            start = head[2] - request.prompt.shape[0]
            self._entries = max(self._entries, ids.shape[1])
            for row, n in enumerate(behind):
                request.rows.append((start, int(count[0]), drafts[:n], ids[row], law[row]))
            request.emitted += emitted.tolist()

    def _records(self) -> Iterator[tuple[list[int], list[NDArray[Any]]]]:
        """Complete records since the last time; one that is being written waits for the next."""
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            file.seek(self._read_to)
            while True:
                try:
                    head = np.load(file, allow_pickle=False).tolist()
                    arrays = [np.load(file, allow_pickle=False) for _ in range(_ARRAYS[head[0]])]
                except (EOFError, ValueError):
                    return
                self._read_to = file.tell()
                yield head, arrays


@contextmanager
def logged(speculative_config: Mapping[str, Any] | None) -> Iterator[RowReader | None]:
    """The log of a server that is started in the block; None if it does not draft with ours."""
    name = (speculative_config or {}).get("model")
    if not (isinstance(name, str) and name.startswith("vllm_plugin.")):
        yield None
        return
    with TemporaryDirectory(prefix="specproof-rows-") as folder:
        file = Path(folder) / "rows"
        os.environ[ENVIRONMENT] = str(file)
        try:
            yield RowReader(file)
        finally:
            del os.environ[ENVIRONMENT]


def _rows(request: _Request, length: int, entries: int) -> RefusedRows:
    """The rows of a request, as of an answer of ``length`` tokens that begins at place 0."""
    held = [row for row in request.rows if row[0] < length and row[2].size and row[3][0] >= 0]
    held.sort(key=lambda row: min(row[0] + row[1], length))
    ids = np.full((len(held), entries), -1, np.int32)
    law = np.zeros((len(held), entries), np.float32)
    for place, (_, _, _, row_ids, row_law) in enumerate(held):
        ids[place, : row_ids.shape[0]], law[place, : row_law.shape[0]] = row_ids, row_law
    with np.errstate(divide="ignore"):
        logs = np.minimum(np.log(law), 0)
    return RefusedRows(
        starts=np.array([row[0] for row in held], np.int64),
        after=np.array([min(row[0] + row[1], length) - 1 for row in held], np.int64),
        begins=np.cumsum([0, *(row[2].shape[0] for row in held)]).astype(np.int64),
        drafts=np.concatenate([np.zeros(0, np.int32), *(row[2] for row in held)]),
        ids=np.where(np.isneginf(logs), -1, ids).astype(np.int32),
        log_masses=np.where(ids < 0, -np.inf, logs).astype(np.float32),
    )
