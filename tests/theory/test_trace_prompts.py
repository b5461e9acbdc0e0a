"""Parts of a trace: nothing but what belongs to the prompts, and every prompt in one part."""

from __future__ import annotations

import numpy as np
import pytest

from theory.refused import RefusedRows
from theory.trace_prompts import part_prompts, select_prompts
from theory.traces import Sampling, Trace


def some(prompts: int = 7, seed: int = 0) -> Trace:
    """Answers of all lengths, 0 too, that mix the prompts; every number in it is its own."""
    rng = np.random.default_rng(seed)
    answer_prompts = rng.integers(0, prompts, 3 * prompts)
    sizes, lengths = rng.integers(0, 5, answer_prompts.size), rng.integers(1, 4, prompts)
    rows, words = int(sizes.sum()), int(lengths.sum())
    refused = RefusedRows(  # behind every token, in its own step, a path of one or two drafts
        starts=np.arange(rows),
        after=np.arange(rows),
        begins=np.cumsum([0, *(1 + np.arange(rows) % 2)]).astype(np.int64),
        drafts=np.arange(int((1 + np.arange(rows) % 2).sum()), dtype=np.int32),
        ids=np.arange(rows, dtype=np.int32)[:, None],
        log_masses=-1.0 - np.arange(rows, dtype=np.float32)[:, None],
    )
    return Trace(
        vocabulary=10_000,
        sampling=Sampling(),
        max_tokens=9,
        prompt_tokens=np.arange(words, dtype=np.int32),
        prompt_begins=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        categories=np.array([f"c{i % 3}" for i in range(prompts)]),
        questions=np.array([f"q{i}" for i in range(prompts)]),
        answer_prompts=answer_prompts,
        answer_begins=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        tokens=np.arange(rows, dtype=np.int32),
        ids=np.arange(2 * rows, dtype=np.int32).reshape(rows, 2),
        log_masses=-1.0 - np.arange(2 * rows, dtype=np.float32).reshape(rows, 2),
        emitted_log_masses=-1.0 - np.arange(rows, dtype=np.float32),
        tail_log_weights=np.arange(2 * rows, dtype=np.float32).reshape(rows, 2),
        refused=refused,
    )


def stories(trace: Trace, prompts: list[int]) -> list[tuple[object, ...]]:
    """All that a trace says of some prompts, answer by answer."""
    told: list[tuple[object, ...]] = []
    for answer, prompt in enumerate(trace.answer_prompts.tolist()):
        if prompt in prompts:
            here = trace.answer(answer)
            arrays = (trace.prompt(prompt), trace.tokens[here], trace.ids[here],
                      trace.log_masses[here], trace.emitted_log_masses[here])  # fmt: skip
            assert trace.tail_log_weights is not None and trace.refused is not None
            behind = trace.refused
            own = np.flatnonzero((behind.after >= here.start) & (behind.after < here.stop))
            arrays += (trace.tail_log_weights[here], behind.starts[own] - here.start,
                       behind.after[own] - here.start, behind.ids[own], behind.log_masses[own],
                       *(behind.path(int(row)) for row in own))  # fmt: skip
            names = (str(trace.categories[prompt]), str(trace.questions[prompt]))
            told.append((*names, *(array.tolist() for array in arrays)))
    return told


@pytest.mark.parametrize("chosen", [[0], [6, 2, 3], list(range(7)), []])
def test_a_part_says_of_its_prompts_what_the_whole_says(chosen: list[int]) -> None:
    whole = some()
    part = select_prompts(whole, chosen)
    assert part.prompts == len(chosen)
    assert part.questions.tolist() == [f"q{i}" for i in chosen]
    assert stories(part, list(range(part.prompts))) == stories(whole, chosen)
    assert len(part) == part.answer_begins[-1]
    assert (part.vocabulary, part.sampling) == (whole.vocabulary, whole.sampling)


@pytest.mark.parametrize("chosen", [[7], [-1], [2, 2]])
def test_prompts_that_are_not_there(chosen: list[int]) -> None:
    with pytest.raises(ValueError, match="different numbers from 0 to 6"):
        select_prompts(some(), chosen)


@pytest.mark.parametrize("prompts", [2, 3, 7, 30])
@pytest.mark.parametrize("share", [0.01, 0.4, 0.5, 0.99])
def test_parting_takes_every_prompt_once_and_categories_alike(prompts: int, share: float) -> None:
    trace = some(prompts)
    stay, held_out = part_prompts(trace, share, seed=3)
    assert sorted([*stay, *held_out]) == list(range(prompts))
    assert stay.size >= 1
    assert held_out.size == min(max(round(share * prompts), 1), prompts - 1)
    for category in set(trace.categories.tolist()):
        all_of_it = (trace.categories == category).sum()
        got = (trace.categories[held_out] == category).sum()
        assert abs(got - held_out.size * all_of_it / prompts) < 2


def test_parting_is_drawn_by_the_seed_and_sees_no_token() -> None:
    first, second = some(30, seed=1), some(30, seed=2)
    held_out = part_prompts(first, 0.4, 5)[1].tolist()
    assert part_prompts(second, 0.4, 5)[1].tolist() == held_out
    others = {tuple(part_prompts(first, 0.4, seed)[1].tolist()) for seed in range(20)}
    assert len(others) > 10
    assert {prompt for chosen in others for prompt in chosen} == set(range(30))


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_shares_that_leave_nothing(share: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        part_prompts(some(), share, 0)
    with pytest.raises(ValueError, match="two or more"):
        part_prompts(select_prompts(some(), [0]), 0.5, 0)
