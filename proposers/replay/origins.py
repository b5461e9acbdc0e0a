"""Where STAND's drafts come from: the order and the count of the context that was matched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from proposers.batch import Doubles, Drafter, Longs
from proposers.replay.profiling import Order, Share, walk
from proposers.replay.texts import Texts
from proposers.stand import StandDrafter
from proposers.table import MAX_ORDER
from theory.traces import Trace


@dataclass(frozen=True)
class Origins:
    """The first draft of a step at every emitted position, and how likely it is accepted.

    ``orders`` are the tokens of the context that was matched (0: no draft), ``counts`` its visits
    after decay, ``acceptance`` min(1, q/p) at the emitted token. Shapes (N,).
    """

    orders: Longs
    counts: Doubles
    acceptance: Doubles


def origins(
    trace: Trace,
    make_drafter: Callable[[], Drafter],
    *,
    draft_length: int,
    share: Share = "all",
    order: Order = "sequential",
) -> Origins:
    """Walk a :class:`proposers.StandDrafter` of this K, and look up what it would draft from.

    Raises
    ------
    ValueError
        For a drafter without a table of contexts.
    """
    size = len(trace)
    found = Origins(np.zeros(size, np.int64), np.zeros(size), np.zeros(size))
    p = trace.processed.emitted

    def step(drafter: Drafter, texts: Texts, emitted: int, budget: int) -> None:
        if not isinstance(drafter, StandDrafter):
            raise ValueError(f"{type(drafter).__name__} has no table of contexts")
        going = texts.going
        if not going.size:
            return
        continuation = texts.continuation(going, emitted, budget, draft_length)
        q = drafter.follow(texts.requests(going, emitted, budget), continuation).q[:, 0]
        for place, b in enumerate(going):
            row = int(texts.begins[b]) + emitted
            end = int(texts.starts[b]) + emitted
            known = drafter.table.look_up(texts.tokens[b, max(0, end - MAX_ORDER) : end])
            if known is not None and q[place] >= 0:
                found.counts[row], found.orders[row] = known[2], known[3]
                found.acceptance[row] = min(1.0, q[place] / p[row])

    walk(
        trace, make_drafter, step, draft_length,
        share=share, order=order, advance=lambda tokens: None,
    )  # fmt: skip
    return found


def by_order(found: Origins) -> list[tuple[int, float, int]]:
    """(order, mean acceptance, positions) of every order that was matched."""
    return [
        (int(order), float(found.acceptance[found.orders == order].mean()), int(count))
        for order, count in zip(*np.unique(found.orders, return_counts=True), strict=True)
        if order > 0
    ]


def by_count(found: Origins, order: int, groups: int = 6) -> list[tuple[float, float, int]]:
    """(mean count, mean acceptance, positions) of an order's positions in groups of rising count.

    Equal counts stay together, so there are fewer groups where few counts occur.
    """
    rows = np.flatnonzero(found.orders == order)
    if not rows.size:
        return []
    counts = np.round(found.counts[rows], 3)
    edges = np.unique(np.sort(counts)[:: max(1, rows.size // groups)])
    group = np.searchsorted(edges, counts, side="right")
    return [
        (float(counts[here].mean()), float(found.acceptance[rows[here]].mean()), int(here.sum()))
        for here in (group == g for g in np.unique(group))
    ]
