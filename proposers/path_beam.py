"""Stochastic beam search: the drafts of a depth are the k best perturbed sequences of that depth.

A node v of log-probability phi_v has a perturbed one, G_v = phi_v + Gumbel noise. Its children x
get ``G~_x = phi_v + log q(x) + Gumbel``, conditioned on their maximum Z being G_v:

    G_x = -log(exp(-G_v) - exp(-Z) + exp(-G~_x)),

and the k greatest of all children of a beam are the next beam. At every depth that is a sample of k
sequences without replacement (Kool et al. arXiv 1903.06059, section 4; as drafts: RSD-S, Jeon et
al. arXiv 2402.14160).

Why recursive rejection without replacement is lossless for it. ``exp(-G~_x)`` are arrival times of
an exponential race with rates proportional to q. In a race the next arrival's token, given those
before it and *all arrival times up to and including its own*, has law q without those before it:
time and winner are independent. Whether it enters the beam depends on these times, on G_v, and on
nodes outside this one's subtree, whose noise is independent of this race. So a candidate that is
offered has the law that the rule takes it for, and one that is not offered is missing for a reason
that does not depend on which token it is. Conditioning on the maximum shifts all times by the same
amount; and a node's children are raced with new noise, whatever decided about its siblings.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from proposers.drafted_tree import child_reach, node_context, node_law, write_paths
from proposers.noise import exponential, row_key
from proposers.path_candidates import first_places

_LEAST = 2.0**-54  # instead of a uniform of 0, whose Gumbel noise is infinite


@njit(inline="always")
def conditioned(score: Any, best: Any, parent: Any) -> Any:
    """G_x from G~_x, Z and G_v without overflow or cancellation (Kool et al., appendix B.3)."""
    if score == best:
        return parent
    gap = score - best
    if gap > -0.6931471805599453:
        v = parent - score + math.log(-math.expm1(gap))
    else:
        v = parent - score + math.log1p(-math.exp(gap))
    return parent - max(0.0, v) - math.log1p(math.exp(-abs(v)))


@njit(inline="always")
def perturb(
    cold: Any, key: Any, position: Any, law_ids: Any, law: Any, n: Any, uniforms: Any, scores: Any
) -> None:
    """Log arrival times of the entries, ``log E_x - log q(x)``; without noise if ``cold``."""
    row = row_key(key, position)
    for e in range(n):
        noise = 1.0
        if key != 0:
            noise = exponential(row, law_ids[e])
        elif not cold:
            noise = -math.log1p(-max(uniforms[e], _LEAST))
        scores[e] = (0.0 if cold else math.log(noise)) - math.log(law[e])


@njit(inline="always")
def select(
    offered: Any, perturbed: Any, nodes: Any, width: Any, leaves: Any, most: Any, taken: Any
) -> Any:
    """How many children each of a beam's nodes has in the next beam, to ``taken``.

    Node w offers ``perturbed[w, :offered[w]]``, greatest first; the ``width`` greatest of all are
    taken, but no second child of a node once the tree has ``most`` leaves. Returns its leaves.
    """
    taken[:nodes] = 0
    for _ in range(width):
        best = -1
        for w in range(nodes):
            j = taken[w]
            allowed = j < offered[w] and (j == 0 or leaves < most)
            if allowed and (best < 0 or perturbed[w, j] > perturbed[best, taken[best]]):
                best = w
        if best < 0:
            break
        if taken[best] > 0:
            leaves += 1
        taken[best] += 1
    return leaves


@njit(cache=True, nogil=True)
def draft_beam(
    table: Any,
    order: Any,
    width: Any,
    most_paths: Any,
    texts: Any,
    rows: Any,
    lengths: Any,
    budgets: Any,
    temperatures: Any,
    top_k: Any,
    top_p: Any,
    noise_keys: Any,
    uniforms: Any,
    min_survival: Any,
    interpolation: Any,
    support: Any,
    out_tokens: Any,
    out_lengths: Any,
    out_ids: Any,
    out_laws: Any,
) -> Any:
    """Fill the paths of every request; uniforms (B, 1 + width (L - 1), E), a row for each node."""
    steps = out_tokens.shape[2]
    size, whole = 1 + width * steps, 2 * table.ids.shape[1]
    keys, context = np.empty(order, np.uint64), np.empty(order, np.int32)
    ids, mean = np.empty(whole, np.int32), np.empty(whole)
    tokens, parents = np.empty(size, np.int32), np.empty(size, np.int64)
    first_child, made = np.empty(size, np.int64), np.empty(size, np.int64)
    phi, perturbed, reach = np.empty(size), np.empty(size), np.empty(size)
    law_ids, laws = np.empty((size, whole), np.int32), np.empty((size, whole))
    entries, chances, scores = np.empty(size, np.int64), np.empty(width), np.empty(whole)
    offered, taken = np.empty(width, np.int64), np.empty(width, np.int64)
    picks, found = np.empty((width, width), np.int64), np.empty((width, width))
    for b in range(rows.shape[0]):
        made[:] = 0
        parents[0], phi[0], perturbed[0], reach[0] = -1, 0.0, 0.0, 1.0
        text, cold = texts[rows[b]], temperatures[b] == 0
        low, high, leaves = 0, 1, 1
        for depth in range(min(budgets[b], steps)):
            for v in range(low, high):
                w = v - low
                offered[w] = 0
                begin = node_context(tokens, parents, v, text, lengths[b], order, context)
                n, chance = node_law(
                    table, order, context, begin, temperatures[b], top_k[b], top_p[b],
                    interpolation, support, keys, ids, mean, law_ids[v], laws[v],
                )  # fmt: skip
                # Judged before the candidates are drawn, from the prefix and its law: lossless.
                if n == 0 or reach[v] * chance < min_survival:
                    continue
                perturb(
                    cold, noise_keys[b], lengths[b] + depth, law_ids[v], laws[v], n,
                    uniforms[b, v], scores,
                )  # fmt: skip
                entries[v], chances[w], offered[w] = n, chance, min(n, width)
                first_places(scores, n, offered[w], picks[w])
                best = phi[v] - scores[picks[w, 0]]
                for j in range(offered[w]):
                    score = phi[v] - scores[picks[w, j]]
                    found[w, j] = score if cold else conditioned(score, best, perturbed[v])
            leaves = select(offered, found, high - low, width, leaves, most_paths, taken)
            child = high
            for v in range(low, high):
                w = v - low
                first_child[v], made[v] = child, taken[w]
                child_reach(reach[v], chances[w], laws[v], picks[w], taken[w], reach[child:])
                for j in range(taken[w]):
                    place = picks[w, j]
                    tokens[child], parents[child] = law_ids[v, place], v
                    phi[child] = phi[v] + math.log(laws[v, place])
                    perturbed[child] = found[w, j]
                    child += 1
            if child == high:
                break
            low, high = high, child
        write_paths(
            parents, first_child, made, tokens, law_ids, laws, entries, cold,
            out_tokens[b], out_lengths[b], out_ids[b], out_laws[b],
        )  # fmt: skip
