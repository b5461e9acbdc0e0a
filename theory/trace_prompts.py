"""Some prompts of a trace with their answers, and the parting of prompts in two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from theory.traces import Trace


def select_prompts(trace: Trace, prompts: Sequence[int] | NDArray[np.int64]) -> Trace:
    """The trace of these prompts only, numbered as they are given; answers keep their order.

    Raises
    ------
    ValueError
        For a prompt that the trace does not have, or one that is named twice.
    """
    chosen = np.asarray(prompts, np.int64)
    inside = np.all((chosen >= 0) & (chosen < trace.prompts))
    if np.unique(chosen).size != chosen.size or not inside:
        raise ValueError(
            f"prompts must be different numbers from 0 to {trace.prompts - 1}; got "
            f"{chosen.tolist()}"
        )
    number = np.full(trace.prompts, -1, np.int64)
    number[chosen] = np.arange(chosen.size)
    answers = np.flatnonzero(number[trace.answer_prompts] >= 0)
    sizes = np.diff(trace.answer_begins)[answers]
    rows = _stretches(trace.answer_begins[answers], sizes)
    place = np.full(len(trace), -1, np.int64)
    place[rows] = np.arange(rows.size)
    tails, refused = trace.tail_log_weights, trace.refused
    lengths = np.diff(trace.prompt_begins)[chosen]
    return replace(
        trace,
        prompt_tokens=trace.prompt_tokens[_stretches(trace.prompt_begins[chosen], lengths)],
        prompt_begins=np.concatenate([[0], np.cumsum(lengths)]),
        categories=trace.categories[chosen],
        questions=trace.questions[chosen],
        answer_prompts=number[trace.answer_prompts[answers]],
        answer_begins=np.concatenate([[0], np.cumsum(sizes)]),
        tokens=trace.tokens[rows],
        ids=trace.ids[rows],
        log_masses=trace.log_masses[rows],
        emitted_log_masses=trace.emitted_log_masses[rows],
        tail_log_weights=None if tails is None else tails[rows],
        refused=None if refused is None else refused.selected(place),
    )


def part_prompts(
    trace: Trace, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the prompts that stay and of those held out, both rising; every prompt is in one.

    ``share`` of the prompts are held out, at least one, and at least one stays. Within the limits
    of whole numbers each category is parted alike: prompts are shuffled, sorted by category, and
    held out at even distances. The choice depends on the categories and the seed, on no token.

    Raises
    ------
    ValueError
        For a share outside (0, 1), and for fewer than two prompts.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share held out must lie in (0, 1); got {share}")
    if trace.prompts < 2:
        raise ValueError(f"prompts can be held out of two or more; the trace has {trace.prompts}")
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(trace.prompts)
    by_category = shuffled[np.argsort(trace.categories[shuffled], kind="stable")]
    count = min(max(round(share * trace.prompts), 1), trace.prompts - 1)
    places = ((np.arange(count) + rng.random()) * trace.prompts / count).astype(np.int64)
    held_out = np.sort(by_category[places])
    return np.setdiff1d(np.arange(trace.prompts), held_out), held_out


def _stretches(begins: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """begins[0], begins[0] + 1, ... of every stretch, one after the other."""
    before = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if sizes.size else sizes
    places: NDArray[np.int64] = np.repeat(begins - before, sizes)
    return places + np.arange(places.size, dtype=np.int64)
