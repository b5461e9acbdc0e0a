"""Expected steps with k candidates: the rule's own law at every node, from :mod:`theory`.

Given that y was emitted, it was an accepted candidate with probability m(y)/p(y), m the mass that
the rule accepts on y (:mod:`theory.accepted_mass`); that needs p on the support of q only. With k
independent paths the state is how many of them still begin with the emitted text: s survivors at a
node become c with probability P(y accepted, c of the s candidates are y)/p(y), and the rule is
applied with its constants for s (SpecTr, arXiv 2310.15141, section 4). With different first tokens
the rule judges the first node; one path survives it, and the token rule (or match) judges the rest.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from proposers.batch import Doubles, Longs
from proposers.replay.paths import PathProfile
from proposers.replay.scoring import Score, expected_course
from theory.acceptance import Rule
from theory.accepted_mass import accepted_mass, accepted_survivors, check_drafts
from theory.traces import Trace

PATH_RULES = (
    "kseq",
    "rrs",
    "match",
    "rrs_without_replacement",
    "sparse_optimal",
    "top_plus_one",
)

MOST_SEQUENCES = 5e8
"""Refused sequences that a score with rrs_without_replacement may follow: some minutes."""


def score_paths(
    profile: PathProfile,
    trace: Trace,
    *,
    rule: str,
    draft_length: int,
    step_times: NDArray[np.float64] | None = None,
) -> Score:
    """The expected course of decoding the trace with k candidates, this rule and K.

    ``drafted`` counts every token of every path, paths that begin alike too, since each is
    verified; a position is offered where the longest path has it. Tokens of q outside the trace's
    head of p count as p = 0 (but for the emitted one, which is known): a rule then uses less of p
    than it could, so acceptance is a little too low. A K below the profile's truncates the paths.

    Raises
    ------
    ValueError
        For a rule that is not right for these drafts, naming those that are; for a K that the
        profile does not hold, step times that end before the most that is drafted, and
        rrs_without_replacement with too many candidates to be enumerated.
    """
    if rule not in PATH_RULES:
        raise ValueError(
            f"several candidates need one of the rules {', '.join(PATH_RULES)}; got {rule!r}"
        )
    if not 1 <= draft_length <= profile.draft_length:
        raise ValueError(
            f"draft_length is {draft_length}; the profile holds 1..{profile.draft_length}"
        )
    named = cast(Rule, rule)
    check_drafts(named, profile.drafts)
    lengths = np.minimum(profile.lengths, draft_length)
    kept = (_surviving if profile.drafts == "iid" else _one_of_different)(profile, trace, named)
    return expected_course(
        trace, kept[:, :draft_length], lengths.max(axis=1), lengths.sum(axis=1), step_times
    )


def _surviving(profile: PathProfile, trace: Trace, rule: Rule) -> Doubles:
    """P(drafts 0..i accepted | y) of independent paths, (N, K), by depth over the survivors."""
    kept = np.full(profile.q.shape, -1.0)
    survivors = np.zeros((len(trace), profile.candidates))  # P(s paths stand and all was accepted)
    survivors[:, -1] = 1.0
    for depth in range(profile.draft_length):
        stands = (profile.q[:, depth] >= 0) & (survivors.sum(axis=1) > 0)
        if not stands.any():
            break
        after = np.zeros_like(survivors)
        rows = np.flatnonzero(stands & (profile.q[:, depth] > 0))
        p, q, at = _nodes(profile, trace, rows, depth)
        own = np.take_along_axis(p, at[:, None], axis=1)[:, 0]
        for s in range(1, profile.candidates + 1):
            some = survivors[rows, s - 1] > 0
            if some.any():
                mass = accepted_survivors(p[some], q[some], s, at[some], rule=rule)
                chance = mass / own[some, None]
                after[rows[some], :s] += survivors[rows[some], s - 1, None] * chance
        whole = survivors.sum(axis=1)
        survivors = after
        kept[stands, depth] = np.minimum(after.sum(axis=1), whole)[stands]
    return kept


def _one_of_different(profile: PathProfile, trace: Trace, rule: Rule) -> Doubles:
    """P(drafts 0..i accepted | y) of different first tokens and a chain behind each, (N, K)."""
    kept = np.full(profile.q.shape, -1.0)
    kept[profile.q[:, 0] == 0, 0] = 0.0
    rows = np.flatnonzero(profile.q[:, 0] > 0)
    p, q, at = _nodes(profile, trace, rows, 0)
    own = np.take_along_axis(p, at[:, None], axis=1)[:, 0]
    offered = np.minimum(np.count_nonzero(q, axis=1), profile.candidates)
    if rule == "rrs_without_replacement":
        _check_sequences(np.count_nonzero(q, axis=1), profile.candidates)
    for k in np.unique(offered):
        some = offered == k
        mass = accepted_mass(
            p[some], q[some], int(k), rule=rule, drafts=profile.drafts, tokens=at[some]
        )
        kept[rows[some], 0] = np.minimum(mass / own[some], 1.0)
    _behind(kept, profile.q, trace.processed.emitted, rule == "match")
    return kept


def _check_sequences(support: Longs, k: int) -> None:
    """Raise ValueError where recursive rejection would be enumerated for much too long."""
    sequences = float((support.astype(np.float64) ** (k - 1)).sum())
    if sequences > MOST_SEQUENCES:
        raise ValueError(
            f"rrs_without_replacement with k = {k} would follow {sequences:.1g} sequences of "
            f"refusals, more than {MOST_SEQUENCES:.0g}: use a smaller k, or sparse_optimal or "
            "top_plus_one, which need none"
        )


@njit(cache=True, nogil=True)
def _behind(kept: Any, q: Any, p: Any, match: Any) -> Any:
    """Draft i of a single path, after its first token: min(1, q/p), or q for the match rule."""
    for t in range(q.shape[0]):
        for i in range(1, q.shape[1]):
            if not (kept[t, i - 1] > 0 and q[t, i] >= 0):
                break
            chance = q[t, i]
            if not match:
                chance = 1.0 if q[t, i] >= p[t + i] else q[t, i] / p[t + i]
            kept[t, i] = kept[t, i - 1] * chance


def _nodes(
    profile: PathProfile, trace: Trace, rows: Longs, depth: int
) -> tuple[Doubles, Doubles, Longs]:
    """p and q on the support of q and one more place for all other tokens, and the place of y.

    Shapes: p, q (R, E + 1) float64; places (R,) int64.
    """
    count, entries = rows.shape[0], profile.law_ids.shape[2]
    p, q = np.zeros((count, entries + 1)), np.zeros((count, entries + 1))
    at = np.zeros(count, np.int64)
    q[:, :entries] = profile.laws[rows, depth]
    held = trace.processed
    _fill(
        p, at, rows + depth, profile.law_ids[rows, depth], trace.ids, held.masses, trace.tokens,
        held.emitted,
    )  # fmt: skip
    p[:, :-1] *= q[:, :-1] > 0
    p[:, -1] = np.maximum(1 - p[:, :-1].sum(axis=1), 0.0)
    return p / p.sum(axis=1, keepdims=True), q, at


@njit(cache=True, nogil=True)
def _fill(
    p: Any, at: Any, rows: Any, support: Any, ids: Any, masses: Any, tokens: Any, emitted: Any
) -> Any:
    for r in range(rows.shape[0]):
        row = rows[r]
        for e in range(support.shape[1]):
            token = support[r, e]
            if token < 0:
                continue
            if token == tokens[row]:
                p[r, e], at[r] = emitted[row], e
                continue
            for h in range(ids.shape[1]):
                if ids[row, h] == token:
                    p[r, e] = masses[row, h]
                    break
