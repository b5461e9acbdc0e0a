"""Table files: what is saved is what is loaded, whatever happens to the file or to its writer."""

import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from proposers import StandTable, table_file, table_store
from proposers.table_file import Contexts, Identity, TableFileError, TableReader
from tests.proposers.batches import verified

VOCABULARY = 1000
IDENTITY = Identity(order=3, entries=4, vocabulary=VOCABULARY, tokenizer="a" * 64)
ROOT = Path(__file__).resolve().parents[2]


def table(slots: int = 256) -> StandTable:
    made = StandTable(order=3, entries=4, budget_bytes=slots * (20 + 8 * 4) + 24)
    assert made.capacity == slots
    return made


def taught(slots: int = 256, seed: int = 0, texts: int = 30) -> StandTable:
    """A table that has seen random texts and laws, fuller than its buckets hold."""
    made = table(slots)
    generator = np.random.default_rng(seed)
    for _ in range(texts):
        text = generator.integers(0, 40, 12).astype(np.int32)
        made.observe_text(text)
        ids = generator.permutation(VOCABULARY)[:4]
        law = np.sort(generator.dirichlet(np.ones(4)))[::-1]
        made.observe(
            verified([text.tolist()], [dict(zip(ids.tolist(), law.tolist(), strict=True))])
        )
    return made


def contents(held: StandTable) -> dict[int, tuple[object, ...]]:
    """Everything known of every context, by key."""
    a = held.arrays
    return {
        int(a.keys[s]): (
            float(a.counts[s]),
            float(a.kept[s]),
            int(a.used[s]),
            a.ids[s].tolist(),
            a.probabilities[s].tolist(),
        )
        for s in np.flatnonzero(a.keys)
    }


def refusal(path: Path, identity: Identity = IDENTITY) -> str:
    """The sentence with which the check and the load refuse a file; the table stays empty."""
    fresh = table()
    with pytest.raises(TableFileError) as loading:
        table_store.load(fresh, path, identity)
    assert fresh.live == 0 and not fresh.arrays.keys.any()
    with pytest.raises(TableFileError) as checking:
        table_file.check(path, identity)
    text = str(loading.value)
    assert str(checking.value) == text
    assert "\n" not in text and str(path) in text
    return text


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "stand.table"
    table_store.save(taught(), path, IDENTITY, about={"model": "m"})
    return path


# What is loaded


def test_a_loaded_table_knows_and_answers_what_the_saved_one_did(saved: Path) -> None:
    source, target = taught(), table()
    taken, found = table_store.load(target, saved, IDENTITY)
    assert taken == found == source.live == target.live > 100
    assert contents(target) == contents(source)
    assert target.arrays.clock[0] == source.arrays.used.max()
    for last in range(40):
        context = np.array([last], np.int32)
        ours, theirs = target.look_up(context), source.look_up(context)
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert ours[0].tolist() == theirs[0].tolist() and ours[2:] == theirs[2:]


def test_a_loaded_table_goes_on_learning(saved: Path) -> None:
    target = table()
    table_store.load(target, saved, IDENTITY)
    before = int(target.arrays.clock[0])
    text = np.array([1, 2, 3, 4], np.int32)
    target.observe(verified([text.tolist()], [{7: 1.0}]))
    assert target.arrays.clock[0] == before + 1
    assert target.arrays.used.max() == before + 1
    assert target.live == int((target.arrays.keys != 0).sum())


def test_an_empty_table_is_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    assert table_store.save(table(), path, IDENTITY) == 0
    target = table()
    assert table_store.load(target, path, IDENTITY) == (0, 0)
    assert target.live == 0


def test_only_live_contexts_take_room(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    held = taught(texts=3)
    table_store.save(held, small, IDENTITY)
    wide = table(1 << 16)
    table_store.load(wide, small, IDENTITY)
    table_store.save(wide, large, IDENTITY)
    overhead = abs(large.stat().st_size - small.stat().st_size)
    assert overhead < 8 * 17  # a count and a checksum for each of at most 16 more slices
    assert contents(wide) == contents(held)


@pytest.mark.parametrize("slots", [8, 32, 128])
def test_a_smaller_table_takes_the_most_recently_used_of_each_bucket(
    saved: Path, slots: int
) -> None:
    source, target = taught(), table(slots)
    taken, found = table_store.load(target, saved, IDENTITY)
    assert found == source.live
    assert taken == target.live < found
    known, kept = contents(source), contents(target)
    assert all(known[key] == value for key, value in kept.items())
    buckets: dict[int, list[int]] = {}
    for key in known:
        buckets.setdefault(key % (slots // 8), []).append(key)
    for keys in buckets.values():
        used = sorted((int(known[key][2]) for key in keys), reverse=True)[:8]  # type: ignore[call-overload]
        assert sorted((int(kept[k][2]) for k in keys if k in kept), reverse=True) == used  # type: ignore[call-overload]


def test_a_table_that_holds_something_is_not_overwritten(saved: Path) -> None:
    with pytest.raises(ValueError, match="already holds"):
        table_store.load(taught(), saved, IDENTITY)


# What is refused, in one sentence


def test_a_missing_or_unreadable_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "nothing")
    assert "directory" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"specproof table", b"\x00" * 4096])
def test_a_foreign_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    assert "is no table of specproof" in refusal(path)


def test_a_newer_file(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[16:20] = struct.pack("<I", table_file.VERSION + 1)
    saved.write_bytes(data)
    assert "version 2" in refusal(saved)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"order": 4}, "order 3, but order is 4"),
        ({"entries": 5}, "entries 4, but entries is 5"),
        ({"vocabulary": 999}, "vocabulary 1000, but vocabulary is 999"),
        ({"tokenizer": "b" * 64}, "another tokenizer"),
    ],
)
def test_a_file_of_another_identity(saved: Path, changes: dict[str, object], words: str) -> None:
    text = refusal(saved, replace(IDENTITY, **changes))  # type: ignore[arg-type]
    assert words in text
    assert "name another file" in text


@pytest.mark.parametrize("unknown", ["here", "there"])
def test_an_unknown_tokenizer_leaves_the_vocabulary_to_compare(
    tmp_path: Path, unknown: str
) -> None:
    path, nameless = tmp_path / "t", replace(IDENTITY, tokenizer="")
    table_store.save(taught(), path, nameless if unknown == "there" else IDENTITY)
    assert table_file.check(path, IDENTITY if unknown == "there" else nameless) > 100


def test_every_lost_byte_and_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "t"
    table_file.write(path, IDENTITY, [one(), one()])
    whole = path.read_bytes()
    generator = random.Random(0)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(TableFileError):
            table_file.check(path, IDENTITY)
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        with pytest.raises(TableFileError) as found:
            table_file.check(path, IDENTITY)
        assert "\n" not in str(found.value)
    path.write_bytes(whole + b"\0")
    assert "something follows its end" in refusal(path)


def test_blocks_that_changed_places_are_found(tmp_path: Path) -> None:
    """Each is right in itself; only the running checksum tells."""
    path, held = tmp_path / "t", taught()
    blocks = [
        Contexts(*(a.copy() for a in block)) for block in table_store.live_blocks(held, slots=64)
    ]
    assert len(blocks) == 4
    n = len(blocks[0].keys)
    same = [Contexts(*(a[:n] for a in block)) for block in blocks if len(block.keys) >= n]
    table_file.write(path, IDENTITY, same)
    data = path.read_bytes()
    size = 4 + n * (8 + 4 + 4 + 4 + 16 + 16) + 4
    first = len(data) - len(same) * size - 16
    assert data[first : first + 4] == struct.pack("<I", n)
    a, b = data[first : first + size], data[first + size : first + 2 * size]
    path.write_bytes(data[:first] + b + a + data[first + 2 * size :])
    assert "checksum" in refusal(path)
    path.write_bytes(data[:first] + data[first + size :])  # and one left out
    assert "checksum" in refusal(path)


def one(**changes: object) -> Contexts:
    block = Contexts(
        keys=np.array([5, 6], np.uint64),
        used=np.array([1, 2], np.uint32),
        counts=np.ones(2, np.float32),
        kept=np.ones(2, np.float32),
        ids=np.array([[1, 2, -1, -1], [3, 4, 5, 999]], np.int32),
        probabilities=np.array([[0.5, 0.5, 0, 0], [0.4, 0.3, 0.2, 0.1]], np.float32),
    )
    for name, (at, value) in changes.items():  # type: ignore[misc]
        getattr(block, name)[at] = value
    return block


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keys": (0, 0)}, "no key"),
        ({"ids": ((1, 0), VOCABULARY)}, "outside the vocabulary"),
        ({"ids": ((0, 0), -2)}, "outside the vocabulary"),
        ({"ids": ((1, 3), 3)}, "names a token twice"),
        ({"probabilities": ((0, 0), np.nan)}, "masses outside"),
        ({"probabilities": ((0, 0), -0.1)}, "masses outside"),
        ({"probabilities": ((0, 0), 1.5)}, "masses outside"),
        ({"kept": (0, np.nan)}, "masses outside"),
        ({"counts": (1, np.inf)}, "no count"),
        ({"counts": (1, np.nan)}, "no count"),
    ],
)
def test_laws_that_are_none_are_refused_though_every_byte_is_right(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "t"
    table_file.write(path, IDENTITY, [one()])
    assert table_file.check(path, IDENTITY) == 2
    table_file.write(path, IDENTITY, [one(**change)])
    assert words in refusal(path)


# Writers that fail, die or meet


def test_a_failed_write_leaves_the_old_file_and_no_other(saved: Path) -> None:
    before = saved.read_bytes()

    def broken() -> Iterator[Contexts]:
        yield one()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        table_file.write(saved, IDENTITY, broken())
    assert saved.read_bytes() == before
    assert {p.name for p in saved.parent.iterdir()} <= {saved.name, f"{saved.name}.lock"}


def test_a_link_keeps_pointing_to_the_file_that_is_replaced(saved: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(saved)
    table_file.write(link, IDENTITY, [one()])
    assert link.is_symlink()
    assert table_file.check(saved, IDENTITY) == 2


def test_only_the_owner_may_read_it(saved: Path) -> None:
    assert saved.stat().st_mode & 0o077 == 0


def test_a_writer_that_waits_too_long_says_so(saved: Path) -> None:
    before = saved.read_bytes()
    with (
        FileLock(f"{saved}.lock"),
        pytest.raises(TimeoutError, match="another server has been writing"),
    ):
        table_file.write(saved, IDENTITY, [one()], patience=0.05)
    assert saved.read_bytes() == before


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from proposers.table_file import Contexts, Identity, write
path, seed, rest = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
n, entries = 4096, 4
identity = Identity(order=3, entries=entries, vocabulary=1000, tokenizer="a" * 64)
block = Contexts(
    np.arange(1, n + 1, dtype=np.uint64), np.full(n, seed, np.uint32), np.ones(n, np.float32),
    np.ones(n, np.float32), np.tile(np.arange(4, dtype=np.int32), (n, 1)),
    np.full((n, entries), 0.25, np.float32),
)
print("ready", flush=True)
while True:
    write(path, identity, [block] * 8)
    print("wrote", flush=True)
    time.sleep(rest)
"""


def writer(path: Path, seed: int, rest: float = 0.0) -> "subprocess.Popen[str]":
    """A process that writes one file again and again, with a rest in between."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(seed), str(rest)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def seeds_in(path: Path) -> set[int]:
    """Which writers' contexts a file holds, read to its end and checked."""
    with TableReader(path, IDENTITY) as reader:
        return {int(u) for block in reader.blocks() for u in np.unique(block.used)}


def test_whoever_is_killed_in_mid_save_the_last_good_file_serves(tmp_path: Path) -> None:
    path = tmp_path / "t"
    generator = random.Random(1)
    in_mid_save = 0
    for kill in range(12):
        process = writer(path, kill + 1)
        try:
            if kill == 0:
                assert process.stdout is not None and process.stdout.readline() == "wrote\n"
            time.sleep(generator.uniform(0.0, 0.05))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        in_mid_save += len(list(tmp_path.glob(".t.*.partial"))) > 0
        found = seeds_in(path)
        assert len(found) == 1 and found <= set(range(1, kill + 2))
    assert in_mid_save >= 3  # else this test has shown nothing
    table_file.write(path, IDENTITY, [one()])  # takes its turn, and cleans up
    assert sorted(p.name for p in tmp_path.glob(".t.*")) == []
    assert table_file.check(path, IDENTITY) == 2


def test_two_servers_with_one_path_never_corrupt_it(tmp_path: Path) -> None:
    path = tmp_path / "t"
    processes = [writer(path, seed, rest=0.03) for seed in (1, 2)]  # so that both get their turn
    seen: list[set[int]] = []
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "wrote\n"
        began = time.monotonic()
        while (spent := time.monotonic() - began) < 20:
            seen.append(seeds_in(path))
            if spent > 1.5 and {1, 2} == set().union(*seen):
                break
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert all(len(found) == 1 for found in seen)  # one writer's table, whole
    assert {1, 2} == set().union(*seen)


def test_a_table_is_copied_while_it_learns(tmp_path: Path) -> None:
    """Every context copied is one that the table held at some moment, never half of two.

    With a cap of 0 each visit replaces the law; which one it was, ids and masses tell alike.
    Without the lock some 2,000 of the contexts copied here are half of two (2 cores).
    """
    held = StandTable(
        order=1, entries=4, budget_bytes=(1 << 14) * 52 + 24, count_cap=0, emitted_weight=0
    )

    def law(turn: int) -> dict[int, float]:
        return {turn: 0.5 + turn / 100, turn + 1: 0.4 - turn / 100}

    texts = [[x] for x in range(4000)]
    batches = [verified(texts, [law(turn)] * len(texts)) for turn in range(20)]
    stop, visits = threading.Event(), 0

    def learn() -> None:
        nonlocal visits
        while not stop.is_set():
            held.observe(batches[visits % 20])
            visits += 1

    held.observe(batches[0])
    thread = threading.Thread(target=learn)
    thread.start()
    seen: set[int] = set()
    copies, until = 0, time.monotonic() + 60
    try:
        while copies < 200 or (len(seen) < 10 and time.monotonic() < until):
            copies += 1
            for block in table_store.live_blocks(held):
                turns = block.ids[:, 0]
                assert (block.ids[:, 1] == turns + 1).all()
                assert np.allclose(block.probabilities[:, 0], 0.5 + turns / 100)
                seen |= set(turns.tolist())
        path, identity = tmp_path / "t", replace(IDENTITY, order=1)
        assert table_store.save(held, path, identity) == held.live > 3900
    finally:
        stop.set()
        thread.join()
    assert len(seen) >= 10  # it did learn meanwhile
