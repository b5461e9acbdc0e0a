"""The pairs (p, q) that a drafter meets along a trace: what `specproof bounds` measures rules on.

A row is the first node of a step that starts before an emitted token: q is the drafter's law there,
frozen as in :mod:`proposers.replay.profiling`, p the target's processed law. Acceptance looks at p
only where q is positive, so p is kept there, and all its other mass goes to one further token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from proposers.batch import Doubles, Drafter, Ints, Longs
from proposers.replay.profiling import Order, Share, walk
from proposers.replay.texts import Texts
from theory.laws import Floats
from theory.traces import Trace


@dataclass(frozen=True)
class NodeLaws:
    """Rows that were picked among the positions of a trace at which a drafter drafts.

    ``rows`` are (p, q) over q's support and one token more; ``positions`` where they stand in the
    trace; ``drafting`` counts the positions with a draft, ``all_positions`` those where a step can
    start with room for one.
    """

    rows: list[tuple[Floats, Floats]]
    positions: Longs
    drafting: int
    all_positions: int


def node_laws(
    trace: Trace,
    make_drafter: Callable[[], Drafter],
    *,
    draft_length: int = 1,
    most: int = 2000,
    seed: int = 0,
    share: Share = "all",
    order: Order = "sequential",
    advance: Callable[[int], None] = lambda tokens: None,
) -> NodeLaws:
    """The laws at ``most`` positions, drawn evenly by ``seed`` from those that have a draft.

    A token of q beyond the recorded head of p has an unknown share of the mass that the head
    leaves; it gets an equal one.

    Raises
    ------
    ValueError
        When the drafter drafts nowhere on this trace.
    """
    found: list[tuple[int, Ints, Doubles]] = []
    steps = 0
    dice = np.random.default_rng(seed)
    drafting = 0

    def step(drafter: Drafter, texts: Texts, emitted: int, budget: int) -> None:
        nonlocal steps, drafting
        drafter.draft(texts.requests(texts.alive, emitted, budget))  # as the engine would
        going = texts.going
        if not going.size:
            return
        steps += going.size
        continuation = texts.continuation(going, emitted, budget, draft_length)
        laws = drafter.follow(texts.requests(going, emitted, budget), continuation)
        for place in np.flatnonzero(laws.q[:, 0] >= 0):
            row = int(texts.begins[going[place]]) + emitted
            slot = drafting if drafting < most else int(dice.integers(drafting + 1))
            drafting += 1
            if slot < most:  # a reservoir: every position seen so far is in it alike
                held = (row, laws.law_ids[place, 0].copy(), laws.law_probabilities[place, 0].copy())
                found[slot : slot + 1] = [held]

    walk(trace, make_drafter, step, draft_length, share=share, order=order, advance=advance)
    if not found:
        raise ValueError("the drafter drafts nowhere on this trace, so there is no q to bound")
    found.sort(key=lambda one: one[0])
    rows = [_pair(trace, *one) for one in found]
    return NodeLaws(rows, np.array([one[0] for one in found]), drafting, steps)


def _pair(trace: Trace, row: int, ids: Ints, law: Doubles) -> tuple[Floats, Floats]:
    """p and q of one position over q's support, and the rest of p."""
    held = law > 0
    tokens, q = ids[held], law[held]
    head, masses = trace.ids[row], trace.processed.masses[row]
    beyond = max(0.0, 1.0 - float(trace.processed.kept[row]))
    unknown = beyond / max(1, trace.vocabulary - int((head >= 0).sum()))
    known = {int(token): float(mass) for token, mass in zip(head, masses, strict=True)}
    known[int(trace.tokens[row])] = float(trace.processed.emitted[row])
    p = np.array([known.get(int(token), unknown) for token in tokens])
    rest = max(0.0, 1.0 - float(p.sum()))
    p = np.append(p, rest)
    return p / p.sum(), np.append(q / q.sum(), 0.0)
