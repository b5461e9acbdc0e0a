"""A replay shows a drafter the rows behind refused drafts where a trace has them, and when."""

from dataclasses import replace

import numpy as np
import pytest

from proposers import StandDrafter, StandTable, VerifiedRows
from proposers.replay import Order, profile
from tests.proposers.replay import small_traces
from theory.refused import RefusedRows

V = 12
PROMPTS = [[1, 2], [3]]
ANSWERS = [(0, [4, 5, 6, 7]), (0, [4, 8]), (1, [9, 1, 10, 2])]


def law(text: list[int]) -> np.ndarray:
    return np.random.default_rng([*text, 7]).dirichlet(np.ones(V))


def recorded() -> small_traces.Trace:
    """Steps 4 | 5 6 | 7, the second with drafts 5 10 11, of which 10 is refused, and one more."""
    trace = small_traces.trace(law, ANSWERS, PROMPTS, max_tokens=9)
    paths = [[5, 10], [5, 10, 11], [8]]
    texts = [[1, 2, 4, 5, 10], [1, 2, 4, 5, 10, 11], [3, 9, 8]]
    laws = np.array([law(text) for text in texts])
    ids = np.argsort(-laws, axis=1)
    return replace(
        trace,
        refused=RefusedRows(
            starts=np.array([1, 1, 7]),
            after=np.array([2, 2, 7]),
            begins=np.cumsum([0, *map(len, paths)]),
            drafts=np.concatenate(paths).astype(np.int32),
            ids=ids.astype(np.int32),
            log_masses=np.log(np.take_along_axis(laws, ids, 1)).astype(np.float32),
        ),
    )


class Listening(StandDrafter):
    """STAND that keeps the contexts and laws of each observation."""

    def __init__(self, entries: int) -> None:
        super().__init__(StandTable(budget_bytes=2**18, entries=entries), draft_length=3)
        self.seen: list[list[tuple[list[int], int, dict[int, float]]]] = []

    def observe(self, rows: VerifiedRows) -> None:
        told = []
        for r in range(rows.ends.size):
            filled = rows.ids[r] >= 0
            held = dict(
                zip(rows.ids[r][filled].tolist(), rows.probabilities[r][filled], strict=True)
            )
            context = rows.tokens[rows.begins[r] : rows.ends[r]].tolist()
            told.append((context, int(rows.emitted[r]), held))
        self.seen.append(told)
        super().observe(rows)


@pytest.mark.parametrize("order", ["sequential", "lockstep"])
@pytest.mark.parametrize("entries", [4, 10])
def test_refused_rows_come_with_the_last_token_of_their_step(order: Order, entries: int) -> None:
    heard: list[Listening] = []

    def make() -> StandDrafter:
        heard.append(Listening(entries))
        return heard[-1]

    trace = recorded()
    profile(trace, make, draft_length=3, share="all", order=order)
    (drafter,) = heard
    refused = [
        (
            [context for context, emitted, _ in told if emitted < 0],
            [e for _, e, _ in told if e >= 0],
        )
        for told in drafter.seen
    ]
    by_token = {tokens[0]: contexts for contexts, tokens in refused if contexts}
    assert by_token == {6: [[1, 2, 4, 5, 10], [1, 2, 4, 5, 10, 11]], 1: [[3, 9, 8]]}
    for told in drafter.seen:
        for context, _, held in told:
            exact = law(context)
            best = np.sort(exact)[::-1][:entries]
            assert sorted(held.values(), reverse=True) == pytest.approx(best, rel=1e-5)
            assert all(held[x] == pytest.approx(exact[x], rel=1e-5) for x in held)


def test_they_change_what_is_offered_only_from_then_on() -> None:
    trace = recorded()

    def make() -> StandDrafter:
        return StandDrafter(StandTable(budget_bytes=2**18), draft_length=3)

    given = profile(trace, make, draft_length=3)
    without = profile(replace(trace, refused=None), make, draft_length=3)
    np.testing.assert_array_equal(given.q[:3], without.q[:3])
    # Only a refused row ever followed 10, before the last answer comes to it.
    assert without.q[9, 0] == -1 and given.q[9, 0] >= 0
