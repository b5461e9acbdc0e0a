"""The flat list of several paths against its definition by brute force, for trees of any form."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vllm_plugin.flat_drafts import FlatDrafts
from vllm_plugin.path_drafts import PendingPaths

LAST = 9
Path = tuple[int, ...]


def pending(paths: list[Path], *, most: int = 99, text_length: int = 5) -> PendingPaths:
    """Paths whose laws tell the draft that they stand at: (path, depth)."""
    depth = max(map(len, paths))
    tokens = np.full((len(paths), depth), -1, np.int32)
    laws = np.zeros((len(paths), depth, 2))
    for j, path in enumerate(paths):
        tokens[j, : len(path)] = path
        laws[j, : len(path), 0] = [hash(path[: i + 1]) % 997 for i in range(len(path))]
    ids = np.zeros((len(paths), depth, 2), np.int32)
    lengths = np.array([len(path) for path in paths])
    return PendingPaths.of(text_length, tokens, lengths, ids, laws, most=most)


def ints(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


trees = st.lists(st.lists(st.integers(0, 2), max_size=4).map(tuple), min_size=1, max_size=6).filter(
    any
)
limits = st.integers(1, 6)


def beginnings(path: Path) -> list[Path]:
    return [path[:t] for t in range(len(path) + 1)]


@given(trees, limits)
def test_sent_are_the_first_paths_that_begin_no_other(paths: list[Path], most: int) -> None:
    needed = [
        j
        for j, path in enumerate(paths)
        if path
        and path not in paths[:j]
        and not any(path == other[: len(path)] and path != other for other in paths)
    ]
    found = pending(paths, most=most)
    assert found.sent.tolist() == needed[:most]
    assert {t for j in needed for t in beginnings(paths[j])} == {
        t for path in paths for t in beginnings(path)
    }


@given(trees, limits)
def test_the_flat_list_is_the_paths_with_the_last_token_between(
    paths: list[Path], most: int
) -> None:
    found = pending(paths, most=most)
    flat = found.flat(LAST)
    ends = [*found.separators[1:].tolist(), len(flat)]
    for path, begin, end in zip(found.sent, found.separators.tolist(), ends, strict=True):
        assert begin == -1 or flat[begin] == LAST
        assert tuple(flat[begin + 1 : end]) == paths[path]
    assert found.separators[0] == -1


@given(trees, limits)
def test_different_drafts_are_counted_once_for_every_cut(paths: list[Path], most: int) -> None:
    found = pending(paths, most=most)
    flat = found.flat(LAST)
    assert len(flat.distinct) == len(flat) + 1
    for n, count in enumerate(flat.distinct):
        seen: set[Path] = set()
        for path, begin in zip(found.sent, found.separators.tolist(), strict=True):
            seen |= {t for t in beginnings(paths[path]) if t and begin + 1 + len(t) <= n}
        assert count == len(seen), n


@given(trees, limits, st.data())
def test_only_beginnings_of_the_list_are_agreed_with(
    paths: list[Path], most: int, data: st.DataObject
) -> None:
    found = pending(paths, most=most)
    flat = found.flat(LAST)
    for n in range(len(flat) + 1):
        assert found.agrees(ints(*flat[:n]), LAST)
    assert not found.agrees(ints(*flat, 0), LAST)
    place = data.draw(st.integers(0, len(flat) - 1))
    other = data.draw(st.sampled_from([-1, 0, 1, 2, LAST]).filter(lambda x: x != flat[place]))
    changed = ints(*flat)
    changed[place] = other
    for n in range(len(flat) + 1):
        assert found.agrees(changed[:n], LAST) is (n <= place)


@given(trees, limits)
def test_a_separator_must_be_the_last_token(paths: list[Path], most: int) -> None:
    found = pending(paths, most=most)
    flat = ints(*found.flat(LAST))
    assert found.agrees(flat, LAST + 1) is (len(found.sent) == 1)


def rows_by_definition(found: PendingPaths, paths: list[Path], inputs: int) -> dict[Path, int]:
    """Of every prefix, the row behind it in the first path sent that has it and was evaluated."""
    rows: dict[Path, int] = {}
    for path, begin in zip(found.sent, found.separators.tolist(), strict=True):
        for prefix in beginnings(paths[path]):
            row = begin + 1 + len(prefix)
            if row < inputs:
                rows.setdefault(prefix, row)
    return rows


@given(trees, limits)
def test_the_row_behind_a_prefix_is_that_of_the_first_path_that_has_it(
    paths: list[Path], most: int
) -> None:
    found = pending(paths, most=most)
    for inputs in range(1, len(found.flat(LAST)) + 2):
        rows = rows_by_definition(found, paths, inputs)
        of_paths = found.rows(inputs)
        assert of_paths.shape == (len(paths), max(map(len, paths)) + 1)
        for j, path in enumerate(paths):
            expected = [rows.get(prefix, -1) for prefix in beginnings(path)]
            assert of_paths[j, : len(path) + 1].tolist() == expected
            assert (of_paths[j, len(path) + 1 :] == -1).all()


@given(trees, limits, st.data())
def test_on_surviving_paths_every_draft_is_judged_or_carried_over(
    paths: list[Path], most: int, data: st.DataObject
) -> None:
    """For every cut, along a walk that accepts a draft wherever it can judge one."""
    found = pending(paths, most=most)
    for inputs in range(1, len(found.flat(LAST)) + 2):
        rows = rows_by_definition(found, paths, inputs)
        emitted: Path = ()
        while emitted in rows:
            drafts = sorted({p[len(emitted)] for p in paths if p[: len(emitted)] == emitted != p})
            if not drafts:
                break
            emitted = (*emitted, data.draw(st.sampled_from(drafts)))
        surviving = [p for p in paths if p[: len(emitted)] == emitted and len(p) > len(emitted)]
        rest = found.left_over(ints(*emitted), inputs)
        if emitted in rows or not surviving:  # all was judged that can be
            assert rest is None
            continue
        assert rest is not None
        assert rest.text_length == found.text_length + len(emitted)
        held = [tuple(t[:n].tolist()) for t, n in zip(rest.tokens, rest.lengths, strict=True)]
        assert [(*emitted, *path) for path in held] == surviving
        for j, path in enumerate(surviving):
            of_path = found.laws[paths.index(path), len(emitted) : len(path)]
            assert rest.laws[j, : len(held[j])].tolist() == of_path.tolist()
        again = {p for j in rest.sent for p in beginnings(held[j])}
        assert again == {p for path in held for p in beginnings(path)}


@given(trees, limits)
def test_nothing_is_left_over_behind_a_token_that_was_not_drafted(
    paths: list[Path], most: int
) -> None:
    found = pending(paths, most=most)
    for path in paths:
        for prefix in beginnings(path):
            assert found.left_over(ints(*prefix, 7), 1) is None
        assert found.left_over(ints(*path, *range(9)), 1) is None
    assert found.left_over(ints(), 1) is None


@given(trees, limits)
def test_fewer_paths_are_sent_of_the_same_drafts(paths: list[Path], most: int) -> None:
    whole = pending(paths)
    fewer = whole.limited(most)
    assert fewer.sent.tolist() == whole.sent[:most].tolist()
    assert fewer.flat(LAST) == whole.flat(LAST)[: len(fewer.flat(LAST))]
    for name in ("tokens", "lengths", "law_ids", "laws", "text_length"):
        assert getattr(fewer, name) is getattr(whole, name)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_flat_list_crosses_processes_with_its_counts(protocol: int) -> None:
    flat = pending([(1, 2), (1, 0)]).flat(LAST)
    assert flat == [1, 2, LAST, 1, 0]
    copy: Any = pickle.loads(pickle.dumps(flat, protocol))
    assert type(copy) is FlatDrafts
    assert copy == flat
    assert copy.distinct == flat.distinct == [0, 1, 2, 2, 2, 3]
