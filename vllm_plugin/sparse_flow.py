"""The optimal coupling of k draws without replacement with p, by an exact small maximum flow.

q has at most :data:`MAX_SUPPORT` tokens, so there are few candidate sets t. With P(t) the law of
the set, the coupling S maximises sum S[i, t] over i in t, subject to sum_t S[i, t] <= p_i and
sum_i S[i, t] <= P(t) (ALGORITHMS.md 4). A set t accepts i with S[i, t]/P(t); what is left of p is
the residual. It is taken from the flow that was found, so that rounding can cost acceptance, never
the law.
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

MAX_SUPPORT = 16
_NONE = 1e-15  # mass below which a capacity counts as used up


@njit(cache=True, nogil=True, error_model="numpy")
def _set_law(q: Any, size: Any, k: Any, chance: Any, sets: Any) -> Any:
    """P(the k draws are this set) by bit mask, and the masks of k tokens; returns their count.

    ``f(S) = sum_{i in S} f(S - i) q_i / (1 - q(S - i))``, f(empty) = 1: the last token drawn is i.
    1 - q(S - i) is summed over the tokens that are left, not subtracted.
    """
    count = 0
    chance[0] = 1.0
    for mask in range(1, 1 << size):
        members = 0
        outside = 0.0
        for i in range(size):
            if mask >> i & 1:
                members += 1
            else:
                outside += q[i]
        chance[mask] = 0.0
        if members > k:
            continue
        for i in range(size):
            if mask >> i & 1:
                chance[mask] += chance[mask ^ (1 << i)] * (q[i] / (outside + q[i]))
        if members == k:
            sets[count] = mask
            count += 1
    return count


@njit(cache=True, nogil=True, error_model="numpy")
def _push(
    flow: Any, sets: Any, count: Any, t: Any, left: Any, room: Any, size: Any, dead: Any,
    from_token: Any, from_set: Any, queue: Any,
) -> Any:  # fmt: skip
    """Push some of set t's mass along a shortest augmenting path; returns how much, 0 for none.

    A path leads from t to one of its tokens, and from a token i over a set that uses i to another
    token of that set, until a token has room. ``dead`` is a bit mask of tokens from which none has
    room any more; the tokens reached join it, and it is returned too.
    """
    seen, begin, end, goal = dead, 0, 0, -1
    for i in range(size):
        if (sets[t] & ~dead) >> i & 1:
            seen |= 1 << i
            from_set[i], from_token[i] = t, -1
            queue[end] = i
            end += 1
            if room[i] > _NONE:
                goal = i
                break
    while goal < 0 and begin < end:
        i = queue[begin]
        begin += 1
        for s in range(count):
            fresh = sets[s] & ~seen
            if fresh == 0 or flow[s, i] <= _NONE:
                continue
            for j in range(size):
                if fresh >> j & 1:
                    seen |= 1 << j
                    from_set[j], from_token[j] = s, i
                    queue[end] = j
                    end += 1
                    if room[j] > _NONE and goal < 0:
                        goal = j
            if goal >= 0:
                break
    if goal < 0:  # what was reached is closed: every set that uses one of these has only these
        return 0.0, seen
    amount, j = min(left, room[goal]), goal
    while from_token[j] >= 0:
        amount = min(amount, flow[from_set[j], from_token[j]])
        j = from_token[j]
    j = goal
    room[goal] -= amount
    while j >= 0:
        flow[from_set[j], j] += amount
        if from_token[j] >= 0:
            flow[from_set[j], from_token[j]] -= amount
        j = from_token[j]
    return amount, dead


@njit(cache=True, nogil=True, error_model="numpy")
def couple(p: Any, q: Any, k: Any) -> Any:
    """Candidate sets as bit masks (T,), their chances (T,), coupling (T, n), what is left (n,).

    p, q (n,) float64 on q's support, q positive and normalised, 1 <= k <= n <= MAX_SUPPORT.
    """
    size = p.shape[0]
    chance = np.empty(1 << size)
    sets = np.empty(1 << size, np.int64)
    count = _set_law(q, size, k, chance, sets)
    flow = np.zeros((count, size))
    room = p.copy()
    ratio = p / q
    order = np.argsort(-ratio)
    left = np.empty(count)
    # A first flow that is nearly maximal: every set serves its token with the most p for its q.
    for t in range(count):
        left[t] = chance[sets[t]]
        for o in range(size):
            i = order[o]
            if sets[t] >> i & 1:
                amount = min(left[t], room[i])
                flow[t, i] = amount
                room[i] -= amount
                left[t] -= amount
    from_token, from_set = np.empty(size, np.int64), np.empty(size, np.int64)
    queue = np.empty(size, np.int64)
    dead = 0
    for t in range(count):  # a set without a path now never gets one later
        while left[t] > _NONE and sets[t] & ~dead:
            amount, dead = _push(
                flow, sets, count, t, left[t], room, size, dead, from_token, from_set, queue
            )  # fmt: skip
            if amount <= 0:
                break
            left[t] -= amount
    found = sets[:count].copy()
    return found, chance[found], flow, room


@njit(cache=True, nogil=True, error_model="numpy")
def judge_node(p: Any, q: Any, slots: Any, count: Any, chances: Any, weights: Any) -> None:
    """Chances of the ``count`` different candidates at ``slots`` (k,), and the weights (E,)."""
    used = np.flatnonzero(q > 0)
    if not math.isfinite(p.sum()):
        return
    sets, law, flow, room = couple(p[used], q[used], count)
    drawn = 0
    for n in range(used.shape[0]):
        for j in range(count):
            if slots[j] == used[n]:
                drawn |= 1 << n
    for n in range(used.shape[0]):
        weights[used[n]] = room[n]
    t = np.searchsorted(sets, drawn)
    left = law[t]
    for j in range(count):
        n = np.searchsorted(used, slots[j])
        chances[j] = flow[t, n] / left if left > 0 else 0.0
        left = max(left - flow[t, n], 0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _judge(p: Any, q: Any, slots: Any, offered: Any, chances: Any, weights: Any) -> None:
    for b in range(p.shape[0]):
        count = 0
        while count < offered.shape[1] and offered[b, count]:
            count += 1
        if count:
            judge_node(p[b], q[b], slots[b], count, chances[b], weights[b])


def check_support(entries: int) -> None:
    """Raise ValueError for sparse laws of more than :data:`MAX_SUPPORT` entries."""
    if entries > MAX_SUPPORT:
        raise ValueError(
            f"sparse_optimal takes laws of at most {MAX_SUPPORT} entries, got {entries}: cut q to "
            "its most probable tokens before drawing, or choose another rule"
        )


def judge_nodes(
    p: NDArray[np.float64],
    q: NDArray[np.float64],
    slots: NDArray[np.int64],
    offered: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Chances (B, k) and weights (B, E) of the optimal coupling at B nodes.

    p, q (B, E) on the support, 0 where unused; slots (B, k) the candidates' entries, all different;
    offered (B, k) which of them count, a prefix. Raises ValueError for E above MAX_SUPPORT.
    """
    check_support(q.shape[1])
    chances, weights = np.zeros(slots.shape), p.copy()
    _judge(
        np.ascontiguousarray(p), np.ascontiguousarray(q), np.ascontiguousarray(slots),
        np.ascontiguousarray(offered), chances, weights,
    )  # fmt: skip
    return chances, weights
