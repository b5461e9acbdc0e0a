"""What a warm start costs: seconds to save and load a full STAND table, and the engine's pause.

    python benchmarks/table_file.py [--table-mib 265] [--entries 14] [--json OUT]

The table is full, so the file is as large as a table of this budget can make it; the default's file
has 264 MiB. The file is read from the page cache, as after a restart, unless ``--cold`` drops it
from there first. The pause is the time of one step's work on the table (``StandTable.observe`` with
the rows of 8 requests, 9 each, every 10 ms), with and without a save going on in a thread, against
copying the whole table at once.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from arguments import BriefParser, at_least
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from proposers import StandTable, VerifiedRows, table_file, table_store
from proposers.table import BUCKET
from proposers.table_file import Identity, TableFileError
from proposers.table_store import BREATH
from vllm_plugin.provenance import provenance

TARGET = 2.0  # seconds each way
VOCABULARY = 49_152
_ROWS = 8 * 9
_STEP_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of one operation over its repetitions."""

    operation: str
    median: float
    worst: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Milliseconds of one step's work on the table."""

    meanwhile: str
    steps: int
    median: float
    p99: float
    worst: float


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = BriefParser(prog="table_file.py", description=(__doc__ or "").splitlines()[0])
    add = made.add_argument
    add("--table-mib", type=at_least(1), default=265, help="memory of the table")
    add("--entries", type=at_least(1), default=14, help="tokens kept of each context's law")
    add("--order", type=at_least(1), default=6)
    add("--repeat", type=at_least(1), default=5)
    add("--cold", action="store_true", help="drop the file from the page cache before reading")
    add("--folder", type=Path, help="where the file is written; a temporary folder by default")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="OUT", help="where the result goes")
    return made


def fill(table: StandTable, rng: np.random.Generator) -> None:
    """Give every slot a context with a law, as if so many had been seen."""
    held, entries = table.arrays, table.entries
    buckets = table.capacity // BUCKET
    high = rng.integers(1, 2**63 // buckets, table.capacity, dtype=np.int64).astype(np.uint64)
    bucket = (np.arange(table.capacity) // BUCKET).astype(np.uint64)
    held.keys[:] = high * np.uint64(buckets) + bucket
    held.counts[:] = rng.exponential(1.0, table.capacity)
    held.used[:] = rng.integers(1, 2**31, table.capacity)
    first = rng.integers(0, VOCABULARY, (table.capacity, 1))
    held.ids[:] = (first + 31 * np.arange(entries)) % VOCABULARY
    law = 0.5 ** np.arange(1, entries + 1)
    held.probabilities[:] = law
    held.kept[:] = law.sum()
    held.clock[:] = 2**31, table.capacity, 0


def timed(
    operation: str, repeat: int, prepare: Callable[[], StandTable], call: Callable[..., object]
) -> Seconds:
    """Run a call again and again, each time with what was prepared for it."""
    spent = []
    for _ in range(repeat):
        prepared = prepare()
        begin = time.perf_counter()
        call(prepared)
        spent.append(time.perf_counter() - begin)
    return Seconds(operation, float(np.median(spent)), max(spent))


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def steps(
    table: StandTable, rng: np.random.Generator, until: Callable[[int], bool]
) -> NDArray[np.float64]:
    """Milliseconds of each step's work on the table until ``until(steps so far)``."""
    spent: list[float] = []
    length = table.order
    while not until(len(spent)):
        tokens = rng.integers(0, VOCABULARY, _ROWS * length).astype(np.int32)
        first = rng.integers(0, VOCABULARY - 400, (_ROWS, 1))
        rows = VerifiedRows(
            tokens=tokens,
            begins=np.arange(_ROWS, dtype=np.int64) * length,
            ends=np.arange(1, _ROWS + 1, dtype=np.int64) * length,
            ids=(first + 31 * np.arange(10)).astype(np.int32),
            probabilities=np.full((_ROWS, 10), 0.1, np.float32),
        )
        begin = time.perf_counter()
        table.observe(rows)
        spent.append(1000 * (time.perf_counter() - begin))
        time.sleep(_STEP_SECONDS)
    return np.array(spent)


def pause(meanwhile: str, spent: NDArray[np.float64]) -> Pause:
    """What the steps of one kind cost."""
    median, p99 = np.percentile(spent, [50, 99])
    return Pause(meanwhile, spent.size, float(median), float(p99), float(spent.max()))


def pauses(
    table: StandTable, save: Callable[[], object], rng: np.random.Generator, repeat: int
) -> list[Pause]:
    """The steps of an engine that is left alone, and of one whose table is being saved."""
    steps(table, rng, lambda n: n >= 20)  # compiles
    alone = steps(table, rng, lambda n: n >= 300)

    def again() -> None:
        for _ in range(repeat):
            save()

    thread = threading.Thread(target=again)
    thread.start()
    saving = steps(table, rng, lambda n: not thread.is_alive())
    thread.join()
    return [pause("nothing", alone), pause("a save", saving)]


def shown(times: Sequence[Seconds], waits: Sequence[Pause], contexts: int, size: int) -> Table:
    """Both tables in one."""
    made = Table(
        title=f"{contexts:,} contexts, a file of {size / 2**20:.0f} MiB",
        caption=f"target: {TARGET:g} s each way",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
    )
    for head in ("what", "median", "p99", "worst"):
        made.add_column(head, justify="left" if head == "what" else "right", no_wrap=True)
    for row in times:
        made.add_row(row.operation, f"{row.median:.2f} s", "", f"{row.worst:.2f} s")
    for wait in waits:
        made.add_row(
            f"a step's update during {wait.meanwhile}",
            *(f"{value:.2f} ms" for value in (wait.median, wait.p99, wait.worst)),
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 2 for bad input."""
    options = parser().parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    budget = options.table_mib * 2**20
    try:
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)

        def new() -> StandTable:
            return StandTable(order=options.order, entries=options.entries, budget_bytes=budget)

        table = new()
    except (ValueError, OSError) as error:
        print(f"table_file.py: {error}", file=sys.stderr)
        return 2
    fill(table, rng)
    identity = Identity(options.order, options.entries, VOCABULARY, "0" * 64)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "stand.table"

        def save(breath: float) -> int:
            return table_store.save(table, path, identity, breath=breath)

        def empty() -> StandTable:
            if options.cold:
                forget(path)
            return new()

        repeat = options.repeat
        try:
            times = [
                timed("save", repeat, lambda: table, lambda _: save(0.0)),
                timed("save while serving", repeat, lambda: table, lambda _: save(BREATH)),
                timed("check", repeat, empty, lambda _: table_file.check(path, identity)),
                timed("load", repeat, empty, lambda e: table_store.load(e, path, identity)),
                timed("copy all at once", repeat, lambda: table, lambda t: [*map(copy, t.arrays)]),
            ]
            size = path.stat().st_size
            waits = pauses(table, lambda: save(BREATH), rng, repeat)
        except (OSError, TableFileError) as error:
            print(f"table_file.py: {error}", file=sys.stderr)
            return 2
    Console().print(shown(times, waits, table.capacity, size))
    if options.json:
        result = {
            "provenance": provenance()
            | {
                "options": {
                    k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()
                }
            },
            "file_bytes": size,
            "contexts": table.capacity,
            "target_seconds": TARGET,
            "seconds": [asdict(row) for row in times],
            "pauses_ms": [asdict(wait) for wait in waits],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
