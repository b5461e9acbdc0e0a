"""The STAND table against a plain-Python reference in the same float32 arithmetic."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from proposers.batch import VerifiedRows
from proposers.context_keys import SALT, context_keys
from proposers.table import (
    ENTRIES,
    MAX_ENTRIES,
    MAX_ORDER,
    StandTable,
    bytes_per_slot,
    least_bytes,
)

LEAST_BYTES = least_bytes(ENTRIES)
ONE = np.float32(1)
Text = NDArray[np.int32]
Context = tuple[int, ...]
SETTINGS = settings(max_examples=60, deadline=None)


class Reference:
    """A table of unbounded memory: context -> (visits, [(token, probability), ...])."""

    def __init__(
        self, order: int, decay: float, cap: float, kept: int = ENTRIES, emitted: float = 0.0
    ) -> None:
        self.order, self.decay, self.cap = order, np.float32(decay), np.float32(cap)
        self.kept, self.emitted = kept, emitted
        self.entries: dict[Context, tuple[np.float32, list[tuple[int, np.float32]]]] = {}

    def visit(self, context: Context, law: list[tuple[int, np.float32]]) -> None:
        count, mean = self.entries.get(context, (np.float32(0), []))
        c = min(count * self.decay, self.cap)
        weight = ONE / (c + ONE)
        merged = {token: c * weight * p for token, p in mean}
        for token, p in law:
            merged[token] = merged.get(token, np.float32(0)) + weight * p
        top = sorted(merged.items(), key=lambda entry: -entry[1])[: self.kept]
        self.entries[context] = c + ONE, top

    def contexts(self, text: Text) -> list[Context]:
        return [tuple(text[len(text) - m :]) for m in range(1, min(self.order, len(text)) + 1)]

    def observe(self, rows: VerifiedRows) -> None:
        for r in range(rows.ends.size):
            filled = rows.ids[r] >= 0
            law = list(zip(rows.ids[r][filled], rows.probabilities[r][filled], strict=True))
            law = law[: self.kept]
            if rows.emitted.size and rows.emitted[r] >= 0:
                w = np.float32(self.emitted * max(0.0, 1 - rows.temperatures[r]))
                mean = dict(law)
                mean[rows.emitted[r]] = mean.get(rows.emitted[r], np.float32(0)) + w
                law = [(x, p * (ONE / (ONE + w))) for x, p in mean.items() if w or x in dict(law)]
            for context in self.contexts(rows.tokens[rows.begins[r] : rows.ends[r]]):
                self.visit(context, law)

    def observe_text(self, text: Text) -> None:
        known = set(self.entries)
        for end in range(1, len(text)):
            for context in self.contexts(text[:end]):
                if context not in known:
                    self.visit(context, [(text[end], ONE)])

    def look_up(self, text: Text) -> tuple[list[int], list[np.float32], float, int] | None:
        for context in reversed(self.contexts(text)):
            if context in self.entries:
                count, law = self.entries[context]
                return [x for x, _ in law], [p for _, p in law], float(count), len(context)
        return None


def random_rows(rng: np.random.Generator, vocabulary: int) -> VerifiedRows:
    """Rows over overlapping stretches of one text, each with a law of 1..ENTRIES tokens."""
    tokens = rng.integers(0, vocabulary, 12).astype(np.int32)
    count = rng.integers(1, 6)
    begins = rng.integers(0, 6, count)
    ids = np.full((count, ENTRIES), -1, np.int32)
    probabilities = np.zeros((count, ENTRIES), np.float32)
    for r in range(count):
        n = rng.integers(1, min(ENTRIES, vocabulary) + 1)
        law = np.sort(rng.dirichlet(np.full(vocabulary, 0.5)))[::-1][:n]
        ids[r, :n] = rng.permutation(vocabulary)[:n]
        probabilities[r, :n] = law
    ends = begins + rng.integers(0, 7, count)
    if rng.random() < 0.3:
        return VerifiedRows(tokens, begins, ends, ids, probabilities)
    emitted = rng.integers(-1, vocabulary, count).astype(np.int32)
    temperatures = rng.choice([0.0, 0.7, 1.0, 1.5], count)
    return VerifiedRows(tokens, begins, ends, ids, probabilities, emitted, temperatures)


def assert_same(table: StandTable, reference: Reference, text: Text) -> None:
    found, expected = table.look_up(text), reference.look_up(text)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found[0].tolist() == expected[0]
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
        assert found[2:] == pytest.approx(expected[2:], rel=1e-6)


PARAMETERS = {
    "seed": st.integers(0, 2**32),
    "order": st.integers(1, MAX_ORDER),
    "vocabulary": st.integers(2, 40),
    "decay": st.sampled_from([1.0, 0.7, 0.01]),
    "cap": st.sampled_from([float("inf"), 3.0, 0.5, 0.0]),
    "kept": st.sampled_from([1, 4, ENTRIES, MAX_ENTRIES]),
    "emitted": st.sampled_from([0.0, 0.7, 3.0]),
}


@SETTINGS
@given(**PARAMETERS, prompts=st.booleans())
def test_means_counts_and_back_off_equal_the_reference(
    seed: int,
    order: int,
    vocabulary: int,
    decay: float,
    cap: float,
    kept: int,
    emitted: float,
    prompts: bool,
) -> None:
    rng = np.random.default_rng(seed)
    table = StandTable(
        order=order,
        budget_bytes=4 * 2**20,
        entries=kept,
        decay=decay,
        count_cap=cap,
        emitted_weight=emitted,
    )
    reference = Reference(order, decay, cap, kept, emitted)
    for _ in range(6):
        rows = random_rows(rng, vocabulary)
        if prompts and rng.random() < 0.5:
            table.observe_text(rows.tokens)
            reference.observe_text(rows.tokens)
        else:
            table.observe(rows)
            reference.observe(rows)
    assert table.evictions == 0
    assert table.live == len(reference.entries)
    for context in reference.entries:
        assert_same(table, reference, np.array(context, np.int32))
    for _ in range(30):  # mostly unknown: answered by a shorter context
        assert_same(table, reference, rng.integers(0, vocabulary, 10).astype(np.int32))
    assert table.look_up(np.array([vocabulary], np.int32)) is None
    arrays = table.arrays
    np.testing.assert_allclose(arrays.kept, arrays.probabilities.sum(axis=1), rtol=1e-5)
    assert (np.diff(arrays.probabilities, axis=1) <= 0).all()
    assert ((arrays.ids >= 0) | (arrays.probabilities == 0)).all()


def test_plain_mean_of_two_laws_by_hand() -> None:
    """avg = (1 (.6, .4, 0) + (0, .5, .3)) / 2: a token missing on one side counts as 0."""
    table = StandTable(order=1, budget_bytes=LEAST_BYTES, decay=1.0)
    for ids, law in [((5, 6, -1), (0.6, 0.4, 0)), ((6, 7, -1), (0.5, 0.3, 0))]:
        table.observe(one_row((3,), np.array(ids, np.int32), np.array(law, np.float32)))
    found = table.look_up(np.array([3], np.int32))
    assert found is not None
    assert found[0].tolist() == [6, 5, 7]
    np.testing.assert_allclose(found[1], [0.45, 0.3, 0.15], rtol=1e-6)
    assert found[2:] == (2.0, 1)
    assert table.arrays.kept.max() == pytest.approx(0.9)


def test_an_emitted_token_weighs_the_more_the_colder_its_text() -> None:
    """(law + w (1 - T) onehot(y)) / (1 + w (1 - T)): by hand at T = 0, nothing at T = 1."""
    law = np.array([5, 6, -1], np.int32), np.array([0.6, 0.4, 0], np.float32)
    for token, temperature, expected in [
        (6, 0.0, {5: 0.3, 6: 0.7}),
        (7, 0.5, {5: 0.4, 6: 0.4 / 1.5, 7: 0.5 / 1.5}),
        (7, 1.0, {5: 0.6, 6: 0.4}),
        (7, 2.0, {5: 0.6, 6: 0.4}),
        (-1, 0.0, {5: 0.6, 6: 0.4}),
    ]:
        table = StandTable(order=1, budget_bytes=LEAST_BYTES, emitted_weight=1.0)
        row = one_row((3,), *law)
        emitted = np.array([token], np.int32), np.array([temperature])
        table.observe(
            VerifiedRows(row.tokens, row.begins, row.ends, *(a[None] for a in law), *emitted)
        )
        found = table.look_up(np.array([3], np.int32))
        assert found is not None
        got = dict(zip(found[0].tolist(), found[1].tolist(), strict=True))
        assert got == pytest.approx(expected)


def one_row(context: Context, ids: Text, law: NDArray[np.float32]) -> VerifiedRows:
    return VerifiedRows(
        np.array(context, np.int32),
        np.zeros(1, np.int64),
        np.array([len(context)], np.int64),
        ids[None],
        law[None],
    )


def key_of(token: int) -> int:
    keys = np.empty(1, np.uint64)
    context_keys(np.array([token], np.int32), 0, 1, 1, keys, SALT)
    return int(keys[0])


@SETTINGS
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 14)), min_size=20, max_size=80))
def test_a_full_bucket_evicts_its_least_recently_used_context(
    steps: list[tuple[bool, int]],
) -> None:
    """One bucket of eight; a look-up counts as a use, at the clock of the last observation."""
    table = StandTable(order=1, budget_bytes=LEAST_BYTES)
    used: dict[int, int] = {}
    clock = evictions = 0
    law = np.array([1], np.int32), np.ones(1, np.float32)
    for is_look_up, token in steps:
        if is_look_up:
            found = table.look_up(np.array([token], np.int32))
            assert (found is not None) == (token in used)
            if token in used:
                used[token] = clock
            continue
        clock += 1
        table.observe(one_row((token,), *law))
        if token not in used and len(used) == 8:
            live = set(table.arrays.keys.tolist())
            (gone,) = (x for x in used if key_of(x) not in live)
            assert used.pop(gone) <= min(used.values())
            evictions += 1
        used[token] = clock
        assert {key_of(x) for x in used} == set(table.arrays.keys.tolist()) - {0}
    assert (table.live, table.evictions) == (len(used), evictions)


def test_an_evicted_slot_starts_from_nothing() -> None:
    table = StandTable(order=1, budget_bytes=LEAST_BYTES, decay=1.0)
    for token in range(9):
        table.observe(one_row((token,), np.array([token], np.int32), np.ones(1, np.float32)))
    found = table.look_up(np.array([8], np.int32))
    assert found is not None
    assert (found[0].tolist(), found[1].tolist(), found[2]) == ([8], [1.0], 1.0)
    assert table.look_up(np.array([0], np.int32)) is None


@settings(max_examples=30, deadline=None)
@given(budget=st.integers(LEAST_BYTES, 2**20), seed=st.integers(0, 2**32))
def test_memory_never_grows_and_stays_within_the_budget(budget: int, seed: int) -> None:
    table = StandTable(order=4, budget_bytes=budget)
    capacity = table.capacity
    assert capacity & (capacity - 1) == 0
    assert table.nbytes <= budget
    assert (
        2 * capacity * bytes_per_slot(ENTRIES) > budget - 24 or capacity == 8
    )  # the largest that fits
    before = [(array.ctypes.data, array.nbytes) for array in table.arrays]
    rng = np.random.default_rng(seed)
    table.observe_text(rng.integers(0, 50_000, 2_000).astype(np.int32))
    for _ in range(5):
        table.observe(random_rows(rng, 5_000))
    assert before == [(array.ctypes.data, array.nbytes) for array in table.arrays]
    assert table.live <= capacity
    assert table.live == np.count_nonzero(table.arrays.keys)
    assert capacity > 2**13 or table.evictions > 0


def test_a_text_visits_only_contexts_unknown_before_it() -> None:
    table = StandTable(order=2, budget_bytes=2**20, decay=1.0)
    law = np.array([8, 9], np.int32), np.array([0.75, 0.25], np.float32)
    table.observe(one_row((1,), *law))
    text = np.array([1, 2, 1, 2, 3], np.int32)
    table.observe_text(text)

    def of(*context: int) -> Any:
        found = table.look_up(np.array(context, np.int32))
        assert found is not None
        assert found[3] == len(context)
        return dict(zip(found[0].tolist(), found[1].tolist(), strict=True)), found[2]

    assert of(1) == ({8: 0.75, 9: 0.25}, 1.0)  # known before: untouched
    assert of(2) == ({1: 0.5, 3: 0.5}, 2.0)  # met twice within the text: both visits count
    assert of(1, 2) == ({1: 0.5, 3: 0.5}, 2.0)
    before = [array.copy() for array in table.arrays[:4]]
    table.observe_text(text)
    for old, new in zip(before, table.arrays[:4], strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_without_a_next_token_teaches_nothing(length: int) -> None:
    table = StandTable(budget_bytes=2**16)
    table.observe_text(np.zeros(length, np.int32))
    assert table.live == 0


@pytest.mark.parametrize(
    ("make", "given_value"),
    [
        (lambda: StandTable(order=0), "order is 0"),
        (lambda: StandTable(order=MAX_ORDER + 1), f"order is {MAX_ORDER + 1}"),
        (lambda: StandTable(entries=0), "entries is 0"),
        (lambda: StandTable(entries=MAX_ENTRIES + 1), f"entries is {MAX_ENTRIES + 1}"),
        (lambda: StandTable(emitted_weight=-0.1), "emitted_weight is -0.1"),
        (lambda: StandTable(emitted_weight=float("nan")), "emitted_weight is nan"),
        (lambda: StandTable(emitted_weight=1e39), "emitted_weight is 1e"),
        (lambda: StandTable(decay=0.0), "decay is 0.0"),
        (lambda: StandTable(decay=1.5), "decay is 1.5"),
        (lambda: StandTable(decay=float("nan")), "decay is nan"),
        (lambda: StandTable(count_cap=-1.0), "count_cap is -1.0"),
        (lambda: StandTable(count_cap=float("nan")), "count_cap is nan"),
        (lambda: StandTable(budget_bytes=LEAST_BYTES - 1), f"{LEAST_BYTES - 1} bytes"),
        (lambda: StandTable(budget_bytes=-1), "-1 bytes"),
    ],
)
def test_bad_parameters_are_named(make: Callable[[], StandTable], given_value: str) -> None:
    with pytest.raises(ValueError, match=given_value):
        make()
