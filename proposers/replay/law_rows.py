"""Pairs (p, q) of a recorded trajectory: the target's law and a drafter's, where it would draft.

`specproof bounds --trace X.npz` asks what any rule could reach with these; its command lives in
`theory`, which knows no drafters, so vllm_plugin/cli.py hands :func:`recorded_rows` to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proposers.batch import Doubles, Drafter, Ints
from proposers.replay.arguments import section
from proposers.replay.drafters import make_drafter
from proposers.replay.profiling import most_tokens, walk
from proposers.replay.texts import Texts
from theory.inputs import Row
from theory.trace_file import read
from theory.traces import Trace

DRAFT_LENGTH = 8


@dataclass(frozen=True)
class LawRows:
    """Rows (p, q), each over the tokens that matter in it, of the ``sampled`` of ``positions``.

    p's tail beyond its recorded head is one token more, on which q is 0: to a rule, tokens that
    are never drafted are all one. At the rest of the sampled positions the drafter had no draft.
    """

    rows: list[Row]
    sampled: int
    positions: int


def recorded_rows(
    path: Path, drafter: str, options: str | None, most: int, advance: Callable[[float], None]
) -> tuple[list[Row], str]:
    """Rows of a trace file with a drafter by name, and a sentence that says which rows they are.

    ``advance`` is told the share of the trace that is done. Raises ValueError for bad arguments or
    files, ImportError for a drafter whose package is missing.
    """
    trace = read(path)
    made = make_drafter(
        drafter, section(options), draft_length=DRAFT_LENGTH, tokens=most_tokens(trace, "all")
    )
    found = law_rows(
        trace, made, most=most, advance=lambda tokens: advance(tokens / max(len(trace), 1))
    )
    if not found.rows:
        raise ValueError(f"{path} holds no position at which {drafter} would draft")
    return found.rows, (
        f"{len(found.rows):,} rows: where {drafter} would begin a draft among {found.sampled:,} of "
        f"{found.positions:,} positions"
        + (", drawn at random" if found.sampled < found.positions else "")
    )


def law_rows(
    trace: Trace,
    make_drafter: Callable[[], Drafter],
    *,
    most: int,
    seed: int = 0,
    advance: Callable[[int], None] = lambda tokens: None,
) -> LawRows:
    """(p, q) of first drafts at no more than ``most`` positions, chosen evenly at random.

    The drafter is walked as in :func:`proposers.replay.profile`, shared by all answers; q at a
    position is that of the first draft of a step that starts there. A token of q's beyond p's head
    gets the mean of what is left there (the emitted token its own p).
    """
    places = _positions(trace)
    if places.size > most:
        chosen = np.sort(np.random.default_rng(seed).choice(places, most, replace=False))
    else:
        chosen = places
    wanted = np.zeros(len(trace), bool)
    wanted[chosen] = True
    rows: list[Row] = []

    def step(drafter: Drafter, texts: Texts, emitted: int, budget: int) -> None:
        drafter.draft(texts.requests(texts.alive, emitted, budget))
        going = texts.going
        going = going[wanted[texts.begins[going] + emitted]]
        if not going.size:
            return
        requests = texts.requests(going, emitted, budget)
        found = drafter.follow(requests, texts.continuation(going, emitted, budget, DRAFT_LENGTH))
        for b, place in enumerate(texts.begins[going] + emitted):
            if found.q[b, 0] >= 0:
                ids, law = found.law_ids[b, 0], found.law_probabilities[b, 0]
                rows.append(_row(trace, int(place), ids[ids >= 0], law[ids >= 0]))

    walk(trace, make_drafter, step, DRAFT_LENGTH, share="all", order="sequential", advance=advance)
    return LawRows(rows, chosen.size, places.size)


def _positions(trace: Trace) -> np.ndarray:
    """Tokens before which the engine drafts: not the first, nor one without room for a draft."""
    first = trace.answer_begins[:-1]
    emitted = np.arange(len(trace)) - np.repeat(first, np.diff(trace.answer_begins))
    return np.flatnonzero((emitted > 0) & (emitted < trace.max_tokens - 1))


def _row(trace: Trace, place: int, drafted: Ints, q: Doubles) -> Row:
    """p and q over p's head, q's tokens beyond it, and the rest of p as one token."""
    head = trace.ids[place]
    known = (head >= 0) & (trace.processed.masses[place] > 0)
    ids, p = head[known], trace.processed.masses[place, known]
    rest = max(1.0 - float(p.sum()), 0.0)
    beyond = np.setdiff1d(drafted, ids)
    extra = np.full(beyond.size, rest / max(trace.vocabulary - ids.size, 1))
    extra[beyond == trace.tokens[place]] = trace.processed.emitted[place]
    rest = max(rest - float(extra.sum()), 0.0)
    tokens = np.concatenate([ids, beyond])
    target = np.concatenate([p, extra, [rest]])
    draft = np.zeros(target.size)
    order = np.argsort(tokens)
    draft[order[np.searchsorted(tokens, drafted, sorter=order)]] = q
    return target / target.sum(), draft / draft.sum()
