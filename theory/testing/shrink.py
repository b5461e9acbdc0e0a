"""Greedy shrinking of a failing case: fewer tokens, fewer candidates, rounder probabilities."""

from __future__ import annotations

from collections.abc import Callable

from theory.testing.cases import Case
from theory.testing.outcome import Finding

KEPT = 0.1
"""A shrunk example keeps at least this part of the TV, so that it still shows the mistake."""


def shrink(
    failing: Finding,
    find: Callable[[Case], Finding | None],
    *,
    allowed: Callable[[Case], bool],
    attempts: int,
) -> Finding:
    """The simplest case that still fails, by at most `attempts` tests; deterministic.

    `find` tests a case; only those `allowed` are tried. A simpler case (`Case.complexity`) is taken
    as soon as it is refuted with at least `KEPT` of the original TV; shrinking goes on from it.
    """
    best, tried = failing, 0
    seen = {str(failing.case)}
    improved = True
    while improved and tried < attempts:
        improved = False
        for case in best.case.smaller():
            if not allowed(case) or case.complexity >= best.case.complexity or str(case) in seen:
                continue
            if tried >= attempts:
                break
            seen.add(str(case))
            tried += 1
            found = find(case)
            if found is not None and found.refuted and found.tv >= KEPT * failing.tv:
                best, improved = found, True
                break
    return best
