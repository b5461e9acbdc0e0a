"""ADED's tri-gram table against counting, and its search against one written with dictionaries."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proposers import ENTRIES, AdedDrafter, TrigramTable
from proposers.aded import BASE
from tests.proposers.batches import requests

V = 5


def array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


@settings(deadline=None)
@given(text=st.lists(st.integers(0, V - 1), max_size=60), begin=st.integers(0, 60))
def test_without_decay_the_table_holds_frequencies(text: list[int], begin: int) -> None:
    table = TrigramTable(budget_bytes=2**18)
    table.learn(array(text), min(begin, len(text)))
    counts: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for i in range(max(2, begin), len(text)):
        counts[text[i - 2], text[i - 1]][text[i]] += 1
    for u in range(V):
        for v in range(V):
            seen = counts[u, v]
            found = table.look_up(u, v)
            assert set(found) == set(seen)
            for token, count in seen.items():
                assert found[token] == pytest.approx(count / seen.total(), rel=1e-5)
            assert list(found.values()) == sorted(found.values(), reverse=True)


@settings(deadline=None)
@given(successors=st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_decay_forgets_and_the_rarest_of_too_many_gives_way(successors: list[int]) -> None:
    decay = 0.7
    table = TrigramTable(budget_bytes=2**18, decay=decay)
    held: dict[int, float] = {}
    count = 0.0
    for token in successors:
        table.learn(array([1, 2, token]), 2)
        old = count * decay
        weight = 1 / (old + 1)
        held = {x: p * old * weight for x, p in held.items()}
        if token in held or len(held) < ENTRIES:
            held[token] = held.get(token, 0.0) + weight
        elif min(held.values()) <= weight:
            del held[min(held, key=lambda x: held[x])]
            held[token] = weight
        count = old + 1
    found = table.look_up(1, 2)
    assert sorted(found.values()) == pytest.approx(sorted(held.values()), rel=1e-4)
    assert sum(found.values()) <= 1 + 1e-5


def test_a_prompt_that_comes_again_counts_once() -> None:
    table = TrigramTable(budget_bytes=2**18)
    table.learn(array([1, 2, 3]), 0)
    for _ in range(5):
        table.learn_prompt(array([1, 2, 4, 7, 1, 2, 9, 2, 4, 8, 2, 4, 7]))
    assert table.look_up(1, 2) == {3: 1.0}  # known before
    assert table.look_up(2, 4) == pytest.approx({7: 2 / 3, 8: 1 / 3})


class NaiveSearch:
    """The search over paths as keys, with the table as a function."""

    def __init__(self, table: TrigramTable, text: list[int], exploration: float) -> None:
        self.table, self.text, self.exploration = table, text, exploration
        self.visits: Counter[tuple[int, ...]] = Counter()
        self.values: dict[tuple[int, ...], float] = defaultdict(float)

    def law(self, path: tuple[int, ...]) -> dict[int, float]:
        u, v = [*self.text, *path][-2:]
        return self.table.look_up(u, v)

    def walk(self, depth: int) -> None:
        path: tuple[int, ...] = ()
        survival, value, walked = 1.0, 0.0, []
        while len(path) < depth and (law := self.law(path)):
            total = sum(self.visits[(*path, a)] for a in law)
            e = self.exploration + math.log((total + BASE + 1) / BASE)

            def score(a: int, path: tuple[int, ...] = path, e: float = e, n: int = total) -> float:
                child = (*path, a)
                visits = self.visits[child]
                q = self.values[child] / visits if visits else 0.0
                return q + e * self.law(path)[a] * math.sqrt(n) / (1 + visits)

            best = max(law, key=score)  # the first of equals, and they come most probable first
            survival *= law[best]
            value += survival
            path = (*path, best)
            walked.append(path)
        for edge in walked:
            self.visits[edge] += 1
            self.values[edge] += value / depth

    def chain(self, depth: int, rounds: int) -> list[int]:
        for _ in range(rounds):
            self.walk(depth)
        path: tuple[int, ...] = ()
        while len(path) < depth and (law := self.law(path)):
            best = max(law, key=lambda a: self.visits[(*path, a)])
            if not self.visits[(*path, best)]:
                break
            path = (*path, best)
        return list(path)


@settings(deadline=None, max_examples=60)
@given(
    text=st.lists(st.integers(0, V - 1), min_size=2, max_size=80),
    rounds=st.integers(1, 20),
    exploration=st.sampled_from([0.0, 0.5, 1.25, 5.0]),
    budget=st.integers(0, 5),
)
def test_the_chain_equals_a_naive_search(
    text: list[int], rounds: int, exploration: float, budget: int
) -> None:
    table = TrigramTable(budget_bytes=2**18)
    drafter = AdedDrafter(table, draft_length=4, rounds=rounds, exploration=exploration)
    drafter.start(0, array(text))
    drafts, expected = drafter.propose(requests([text], [budget]))
    depth = min(budget, 4)
    chain = NaiveSearch(table, text, exploration).chain(depth, rounds) if depth else []
    assert drafts.tokens[0, : drafts.lengths[0]].tolist() == chain
    survival, value = 1.0, 0.0
    for i, token in enumerate(chain):
        u, v = [*text, *chain[:i]][-2:]
        survival *= table.look_up(u, v)[token]
        value += survival
    assert expected[0] == pytest.approx(value)
    again = drafter.draft(requests([text], [budget]))  # nothing is drawn at random
    assert again.tokens.tolist() == drafts.tokens.tolist()


def test_the_search_prefers_a_path_that_goes_on_to_a_first_token_that_does_not() -> None:
    table = TrigramTable(budget_bytes=2**18)
    # After 1 2: 3 (more often, then any of five), or 4, after which the text is always the same.
    for then in range(10, 15):
        table.learn(array([1, 2, 3, then]), 2)
    for _ in range(4):
        table.learn(array([1, 2, 4, 5, 6, 7]), 2)
    asked = requests([[9, 1, 2]], [4])
    greedy = AdedDrafter(table, draft_length=4, rounds=1).draft(asked)
    found = AdedDrafter(table, draft_length=4, rounds=64).draft(asked)
    assert greedy.tokens[0, 0] == 3
    assert found.tokens[0].tolist() == [4, 5, 6, 7]


def test_emitted_tokens_are_learned_once_from_the_text() -> None:
    table = TrigramTable(budget_bytes=2**18)
    drafter = AdedDrafter(table, draft_length=4)
    drafter.start(7, array([1, 2]))
    followed = drafter.follow(requests([[1, 2, 3, 4]], [4], handles=[7]), array([[5, 6, 7, 8]]))
    assert (followed.q == -1).all()  # nothing is known after 3 4
    for _ in range(2):
        drafter.draft(requests([[1, 2, 3, 4, 1, 2]], [4], handles=[7]))
    assert table.look_up(1, 2) == {3: 1.0}
    assert table.arrays.counts.sum() == 4
    drafter.draft(requests([[5, 5, 5, 5]], [4], handles=[8]))  # never started: no state, no lesson
    assert table.look_up(5, 5) == {}
    drafter.finish(7)
    drafter.finish(8)
    assert drafter._learned == {}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"draft_length": 0}, "draft_length is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"exploration": -1.0}, "exploration is -1.0"),
    ],
)
def test_bad_parameters_are_named(options: dict[str, float], sentence: str) -> None:
    given: dict[str, float] = {"draft_length": 4} | options
    with pytest.raises(ValueError, match=sentence):
        AdedDrafter(TrigramTable(budget_bytes=2**16), **given)  # type: ignore[arg-type]
