"""What each member of a chooser would have gained, and is expected to gain: its bookkeeping.

A *start* is a moment at which some request was drafted for: the members' chains, levels and
expectations as they were then. It stays open while the tokens that follow become known, and its
gains add up: of a point-mass chain the number of tokens that the text went on to agree with; of a
member that draws, with q and p of the emitted tokens,

    gain = sum_i prod_{j <= i} min(1, q_j / p_j),

its expected accepted length by the token rule, given the text, if it drafts as long as it may.
When nothing more can be added, each member's *advantage*, its gain minus the reference's at the
same start, enters two running means: of its level alone, and of its level and the reference's.
Differences at one start are learned, rather than gains, because most of what makes gains differ, a
text that is easy or hard to foretell, is common to all members and cancels.

Everything lives in arrays of fixed size for each request; there is no object for a token.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from proposers.members import LEVELS
from proposers.stand import reshape_law

CLASSES = 3  # of temperature: 0; up to 0.85; above
PRIOR = 8.0  # visits at which a mean counts as much as what is less specific (in the end: 0)
OWN_PRIOR = 100.0  # the same for what a request itself has shown
OWN_WEIGHT = 0.5
MEMORY = 4096.0  # visits after which a mean forgets the oldest
LEAST_ADVANTAGE = 0.08  # tokens; less does not make up for choosing by noise


class Estimates(NamedTuple):
    """Running means of advantages over M members; the last axis holds (mean, visits)."""

    own: NDArray[np.float64]  # (M, CLASSES, LEVELS, 2) by the member's own level
    joint: NDArray[np.float64]  # (M, CLASSES, LEVELS, LEVELS, 2) and by the reference's


class Courses(NamedTuple):
    """S requests with up to R = K + 1 open starts each, M members, K drafts."""

    lengths: NDArray[np.int64]  # (S,) text length at the last decision, -1 before the first
    choices: NDArray[np.int64]  # (S,) the member chosen there
    chains: NDArray[np.int32]  # (S, M, K) the members' most probable chains there
    spans: NDArray[np.int64]  # (S, M) their lengths; the budget, where a member draws at random
    begins: NDArray[np.int64]  # (S, R) text length at each start, -1: closed
    classes: NDArray[np.int64]  # (S, R)
    levels: NDArray[np.int64]  # (S, R, M)
    expected: NDArray[np.float64]  # (S, R, M) advantage that was expected, without the request's
    start_chains: NDArray[np.int32]  # (S, R, M, K)
    start_spans: NDArray[np.int64]  # (S, R, M)
    alive: NDArray[np.float64]  # (S, R, M) P(all tokens so far were accepted)
    gains: NDArray[np.float64]  # (S, R, M)
    surprise: NDArray[np.float64]  # (S, M, 2) sum of advantage - expected, and its count


def no_estimates(members: int) -> Estimates:
    """Nothing is known: no member has an advantage."""
    return Estimates(
        np.zeros((members, CLASSES, LEVELS, 2)), np.zeros((members, CLASSES, LEVELS, LEVELS, 2))
    )


def no_courses(requests: int, members: int, draft_length: int) -> Courses:
    """Room for so many requests."""
    s, m, k = requests, members, draft_length
    r = k + 1
    return Courses(
        lengths=np.full(s, -1, np.int64),
        choices=np.zeros(s, np.int64),
        chains=np.full((s, m, k), -1, np.int32),
        spans=np.zeros((s, m), np.int64),
        begins=np.full((s, r), -1, np.int64),
        classes=np.zeros((s, r), np.int64),
        levels=np.zeros((s, r, m), np.int64),
        expected=np.zeros((s, r, m)),
        start_chains=np.full((s, r, m, k), -1, np.int32),
        start_spans=np.zeros((s, r, m), np.int64),
        alive=np.zeros((s, r, m)),
        gains=np.zeros((s, r, m)),
        surprise=np.zeros((s, m, 2)),
    )


def more_room(held: Courses, more: Courses) -> Courses:
    """Courses of the requests of both."""
    joined: list[NDArray[Any]] = [np.concatenate([a, b]) for a, b in zip(held, more, strict=True)]
    return Courses(*joined)


@njit(cache=True, nogil=True)
def emitted_masses(
    row_tokens: Any,
    begins: Any,
    ends: Any,
    ids: Any,
    laws: Any,
    tokens: Any,
    rows: Any,
    olds: Any,
    news: Any,
    temperatures: Any,
    top_k: Any,
    top_p: Any,
    out: Any,
) -> Any:
    """p of each request's new tokens ``text[olds[b]:news[b]]`` into ``out`` (B, n); -1: unknown.

    A row belongs to the token whose prefix ends like the row's whole context does; rows come in the
    order of the requests, so the search goes on from the last one found. p is the row's law at the
    request's temperature and cuts; a token outside the row's head gets at most its last entry's.
    """
    entries = ids.shape[1]
    law_ids, law = np.empty(entries, np.int32), np.empty(entries)
    count, hint = ends.shape[0], 0
    for b in range(rows.shape[0]):
        text = tokens[rows[b]]
        for j in range(min(news[b] - olds[b], out.shape[1])):
            end = olds[b] + j
            out[b, j] = -1.0
            for step in range(count):
                r = (hint + step) % count
                width = min(ends[r] - begins[r], end)
                same = width > 0
                for back in range(1, width + 1):
                    if row_tokens[ends[r] - back] != text[end - back]:
                        same = False
                        break
                if same:
                    out[b, j] = _mass(
                        ids[r], laws[r], text[end], temperatures[b], top_k[b], top_p[b],
                        law_ids, law,
                    )  # fmt: skip
                    hint = r + 1
                    break


@njit(inline="always")
def _mass(
    ids: Any,
    head: Any,
    token: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    law_ids: Any,
    law: Any,
) -> Any:
    """p(token) of a law known by its head, at most the last entry's when it is not in there."""
    n = reshape_law(ids, head, temperature, top_k, top_p, law_ids, law)
    if n == 0:
        return -1.0
    share = 1.0  # of the law that the head is
    if temperature > 0 and top_k == 0 and top_p >= 1:
        total, covered = 0.0, 0.0
        for e in range(n):
            covered += head[e]
            total += (head[e] / head[0]) ** (1 / temperature)
        last = head[n - 1] / head[0]
        tail = max(0.0, 1.0 - covered) / head[0] * last ** (1 / temperature - 1)
        share = total / (total + tail)
    for e in range(n):
        if law_ids[e] == token:
            return law[e] * share
    return law[n - 1] * share


@njit(inline="always")
def _enter(mean: Any, value: Any) -> Any:
    """One more value of a running mean."""
    mean[1] = min(mean[1] + 1, MEMORY)
    mean[0] += (value - mean[0]) / mean[1]


@njit(inline="always")
def _close(courses: Any, estimates: Any, s: Any, r: Any) -> Any:
    """Learn from a start whose gains are complete."""
    gains, levels = courses.gains[s, r], courses.levels[s, r]
    kind = courses.classes[s, r]
    for m in range(1, gains.shape[0]):
        if courses.start_spans[s, r, m] == 0:
            continue
        advantage = gains[m] - gains[0]
        _enter(estimates.own[m, kind, levels[m]], advantage)
        _enter(estimates.joint[m, kind, levels[m], levels[0]], advantage)
        courses.surprise[s, m, 0] += advantage - courses.expected[s, r, m]
        courses.surprise[s, m, 1] += 1
    courses.begins[s, r] = -1


@njit(cache=True, nogil=True)
def settle(
    courses: Any,
    estimates: Any,
    slots: Any,
    tokens: Any,
    rows: Any,
    olds: Any,
    news: Any,
    drawing: Any,
    q: Any,
    p: Any,
) -> Any:
    """Tell the open starts the tokens ``text[olds[b]:news[b]]``; q and p (B, n) are those tokens'.

    ``drawing`` is the member that q belongs to, -1 if all are point masses; at temperature 0 it is
    one too. Else a token of unknown p closes the request's starts without a lesson, as a member
    that draws cannot be judged by it.
    """
    steps = courses.chains.shape[2]
    for b in range(slots.shape[0]):
        s, text = slots[b], tokens[rows[b]]
        if olds[b] < 0:
            continue
        for end in range(olds[b], news[b]):
            j = end - olds[b]
            lost = drawing >= 0 and (j >= p.shape[1] or p[b, j] < 0)
            for r in range(courses.begins.shape[1]):
                begin = courses.begins[s, r]
                if begin < 0:
                    continue
                random = drawing if courses.classes[s, r] > 0 else -1
                if lost and random >= 0:
                    courses.begins[s, r] = -1
                    continue
                i, open_ = end - begin, False
                for m in range(courses.alive.shape[2]):
                    span = courses.start_spans[s, r, m]
                    if i >= span or courses.alive[s, r, m] == 0:
                        continue
                    if m == random:
                        accepted = min(1.0, q[b, j] / p[b, j]) if p[b, j] > 0 else 1.0
                        courses.alive[s, r, m] *= accepted if q[b, j] > 0 else 0.0
                    elif courses.start_chains[s, r, m, i] != text[end]:
                        courses.alive[s, r, m] = 0
                    courses.gains[s, r, m] += courses.alive[s, r, m]
                    open_ |= courses.alive[s, r, m] > 0 and i + 1 < min(span, steps)
                if not open_:
                    _close(courses, estimates, s, r)


@njit(cache=True, nogil=True)
def decide(
    courses: Any,
    estimates: Any,
    slots: Any,
    lengths: Any,
    classes: Any,
    levels: Any,
    chains: Any,
    spans: Any,
) -> Any:
    """Choose a member for each request, and open its start.

    The reference unless another one's expected advantage exceeds LEAST_ADVANTAGE. Levels and spans
    (B, M), chains (B, M, K).
    """
    for b in range(slots.shape[0]):
        s, kind = slots[b], classes[b]
        place = 0
        for r in range(courses.begins.shape[1]):  # a free one, or else the oldest
            if courses.begins[s, r] < courses.begins[s, place]:
                place = r
        best, choice = LEAST_ADVANTAGE, 0
        for m in range(spans.shape[1]):
            courses.chains[s, m], courses.spans[s, m] = chains[b, m], spans[b, m]
            courses.start_chains[s, place, m] = chains[b, m]
            courses.start_spans[s, place, m] = spans[b, m]
            courses.levels[s, place, m] = levels[b, m]
            courses.alive[s, place, m], courses.gains[s, place, m] = 1.0, 0.0
            if m == 0 or spans[b, m] == 0:
                continue
            own = estimates.own[m, kind, levels[b, m]]
            joint = estimates.joint[m, kind, levels[b, m], levels[b, 0]]
            expected = own[0] * own[1] / (own[1] + PRIOR)
            expected = (joint[0] * joint[1] + expected * PRIOR) / (joint[1] + PRIOR)
            courses.expected[s, place, m] = expected
            shown = courses.surprise[s, m]
            advantage = expected + OWN_WEIGHT * shown[0] / (shown[1] + OWN_PRIOR)
            if advantage > best:
                best, choice = advantage, m
        courses.begins[s, place], courses.classes[s, place] = lengths[b], kind
        courses.lengths[s], courses.choices[s] = lengths[b], choice
