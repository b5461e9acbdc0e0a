"""The log of rows behind refused drafts: written by an engine, read for answers known otherwise."""

from pathlib import Path

import numpy as np
import pytest

from vllm_plugin.lessons import Stretch
from vllm_plugin.row_log import RowLog, RowReader

PROMPT, OTHER = np.array([1, 2, 3], np.int32), np.array([4], np.int32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def laws(*tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """A row for each token: it has 3/4, the next one 1/4; -1 is a row that is no law."""
    ids = np.array([[t, t + 1] if t >= 0 else [-1, -1] for t in tokens], np.int32)
    return ids, np.array([[0.75, 0.25] if t >= 0 else [0, 0] for t in tokens], np.float32)


def step(
    log: RowLog,
    handle: int,
    length: int,
    emitted: np.ndarray,
    drafts: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray],
) -> None:
    """One request with a chain of drafts, alone in its step."""
    log.step([handle], [Stretch.chain(0, length, 0, drafts)], rows, [emitted])


def written(file: Path) -> RowLog:
    """Two requests of one prompt, one of another, steps interleaved.

    The first emits 10 (plain), then 11 12 with drafts 11 20 21 (20 refused), then 13 14 with drafts
    13 22, whose row after 13 is the last one that emits.
    """
    log = RowLog(file)
    log.start(0, PROMPT)
    log.start(1, OTHER)
    step(log, 0, 3, ints(10), ints(), laws(50))
    log.start(2, PROMPT)
    step(log, 1, 1, ints(30), ints(31), laws(60, 61))
    step(log, 0, 4, ints(11, 12), ints(11, 20, 21), laws(51, 52, 53, 54))
    step(log, 2, 3, ints(10, 15), ints(10), laws(55, 56))
    step(log, 0, 6, ints(13, 14), ints(13, 22), laws(57, 58, -1))
    return log


def test_rows_of_answers_are_found_with_their_contexts(tmp_path: Path) -> None:
    written(tmp_path / "log")
    reader = RowReader(tmp_path / "log")
    rows = reader.take(PROMPT, [ints(10, 11, 12, 13, 14), ints(10, 15)])
    assert rows is not None
    # Rows 2 and 3 of the second step; the void row 2 of the last one is out.
    assert rows.starts.tolist() == [1, 1]
    assert rows.after.tolist() == [2, 2]
    assert [rows.path(i).tolist() for i in range(len(rows))] == [[11, 20], [11, 20, 21]]
    assert rows.ids.tolist() == [[53, 54], [54, 55]]
    np.testing.assert_allclose(np.exp(rows.log_masses), [[0.75, 0.25]] * 2)
    other = reader.take(OTHER, [ints(30)])
    assert other is not None
    assert (other.starts.tolist(), other.path(0).tolist()) == ([0], [31])
    assert reader.take(PROMPT, [ints(10, 15)]) is None  # used up


def test_what_a_request_emitted_beyond_its_answer_is_ignored(tmp_path: Path) -> None:
    written(tmp_path / "log")
    reader = RowReader(tmp_path / "log")
    rows = reader.take(PROMPT, [ints(10, 11)])  # an end token, or max_tokens, in mid-step
    assert rows is not None
    assert rows.starts.tolist() == [1, 1] and rows.after.tolist() == [1, 1]


def test_of_several_paths_the_refused_rows_are_told_and_the_emitted_ones_once(
    tmp_path: Path,
) -> None:
    """Paths 11 20 and 11 12 21: the second was followed, its last draft refused."""
    log = RowLog(tmp_path / "log")
    log.start(0, PROMPT)
    log.start(1, OTHER)
    places = np.arange(4)
    stretches = [
        Stretch(0, 3, ints(11, 20), places[:3], places[:3]),
        Stretch(0, 3, ints(11, 12, 21), np.array([5, 6]), np.array([2, 3])),
        Stretch.chain(1, 1, 7, ints()),
    ]
    log.step([0, 0, 1], stretches, laws(50, 51, 52, 53, 54, 55), [ints(11, 12, 13), ints(30)])
    step(log, 0, 6, ints(14), ints(), laws(56))
    reader = RowReader(tmp_path / "log")
    rows = reader.take(PROMPT, [ints(11, 12, 13, 14)])
    assert rows is not None
    assert [rows.path(i).tolist() for i in range(len(rows))] == [[11, 20], [11, 12, 21]]
    assert rows.ids[:, 0].tolist() == [52, 54]
    assert rows.starts.tolist() == [0, 0] and rows.after.tolist() == [2, 2]
    assert reader.take(OTHER, [ints(30)]) is not None


def test_an_answer_that_no_request_gave_is_not_found(tmp_path: Path) -> None:
    written(tmp_path / "log")
    reader = RowReader(tmp_path / "log")
    assert reader.take(PROMPT, [ints(10, 99)]) is None
    assert reader.take(OTHER, [ints(10, 15)]) is None
    assert reader.steps == 5


def test_a_record_in_the_making_waits(tmp_path: Path) -> None:
    """Cut anywhere, the log tells what is whole; the rest is found once it is there."""
    written(tmp_path / "log")
    whole = (tmp_path / "log").read_bytes()
    for cut in range(0, len(whole), 97):
        part = tmp_path / "part"
        part.write_bytes(whole[:cut])
        reader = RowReader(part)
        early = reader.take(PROMPT, [ints(10, 11, 12, 13, 14)])
        part.write_bytes(whole)
        if early is None:
            assert reader.take(PROMPT, [ints(10, 11, 12, 13, 14)]) is not None


@pytest.mark.parametrize("exists", [False, True])
def test_no_log_and_an_empty_one_tell_nothing(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "log").touch()
    reader = RowReader(tmp_path / "log")
    assert reader.take(PROMPT, [ints(10)]) is None
    assert reader.steps == 0
