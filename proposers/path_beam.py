"""Stochastic beam search: the drafts of a depth are the k best perturbed sequences of that depth.

A node v of log-probability phi_v has a perturbed one, G_v = phi_v + Gumbel noise. Its children x
get ``G~_x = phi_v + log q(x) + Gumbel``, conditioned on their maximum Z being G_v:

    G_x = -log(exp(-G_v) - exp(-Z) + exp(-G~_x)),

and the k greatest of all children of a beam are the next beam. At every depth that is a sample of k
sequences without replacement (Kool et al. arXiv 1903.06059, section 4; as drafts: RSD-S, Jeon et
al. arXiv 2402.14160). A node left behind by the next beam is a leaf, and the leaves of greatest G
are kept: k of them are the last beam.

Why recursive rejection without replacement is lossless for it. ``exp(-G~_x)`` are arrival times of
an exponential race with rates proportional to q. In a race the next arrival's token, given those
before it and *all arrival times up to and including its own*, has law q without those before it:
time and winner are independent, and conditioning on the first time only shifts them. The j-th
arrival x_j enters the beam if fewer than k others have a greater G; those are nodes of other
subtrees or its elder siblings, and what they are was settled without x_j. Below x_j no G is greater
than its own, and exactly one leaf has G_(x_j): so x_j is kept if that one is, that is if few enough
leaves have a greater G; and those owe nothing to what is below x_j, since smaller values never push
greater ones out of a beam. Hence a candidate that is not offered is missing for a reason that does
not depend on which token it is, and one that is offered has the law that the rule takes it for.
That needs every cut of a subtree to be blind for later siblings of its ancestors, so ``reach`` is.

How many candidates a node has does depend on which the *first* are: the time between two arrivals
has rate 1 minus their mass. A rule that looks at the whole set at once (sparse_optimal) is biased.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from proposers.context_keys import salt_at
from proposers.drafted_tree import child_reach, node_context, node_law, write_paths
from proposers.noise import exponential, row_key
from proposers.path_candidates import first_places

_LEAST = 2.0**-54  # instead of a uniform of 0, whose Gumbel noise is infinite
_DEEPER = 1e6  # above every log-probability of a path


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
def select(offered: Any, perturbed: Any, nodes: Any, width: Any, taken: Any) -> None:
    """How many children each of a beam's nodes has in the next beam, to ``taken``.

    Node w offers ``perturbed[w, :offered[w]]``, greatest first; the ``width`` greatest of all are
    taken.
    """
    taken[:nodes] = 0
    for _ in range(width):
        best = -1
        for w in range(nodes):
            j = taken[w]
            if j < offered[w] and (best < 0 or perturbed[w, j] > perturbed[best, taken[best]]):
                best = w
        if best < 0:
            break
        taken[best] += 1


@njit(inline="always")
def keep_leaves(made: Any, merit: Any, size: Any, most: Any, kept: Any) -> None:
    """Mark the ``most`` leaves of greatest merit among nodes 1..size - 1; ties by place."""
    kept[:size] = False
    for _ in range(most):
        best = -1
        for v in range(1, size):
            if made[v] == 0 and not kept[v] and (best < 0 or merit[v] > merit[best]):
                best = v
        if best < 0:
            break
        kept[best] = True


@njit(cache=True, nogil=True)
def draft_beam(
    table: Any,
    order: Any,
    width: Any,
    most_paths: Any,
    asked: Any,
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
    texts, rows, lengths, budgets, temperatures, top_k, top_p, noise_keys, groups = asked
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
    merit, kept = np.empty(size), np.empty(size, np.bool_)
    picks, found = np.empty((width, width), np.int64), np.empty((width, width))
    for b in range(rows.shape[0]):
        made[:] = 0
        parents[0], phi[0], perturbed[0], reach[0] = -1, 0.0, 0.0, 1.0
        text, cold = texts[rows[b]], temperatures[b] == 0
        salt = salt_at(groups, b)
        low, high = 0, 1
        for depth in range(min(budgets[b], steps)):
            for v in range(low, high):
                w = v - low
                offered[w] = 0
                begin = node_context(tokens, parents, v, text, lengths[b], order, context)
                n, chance = node_law(
                    table, order, context, begin, salt, temperatures[b], top_k[b], top_p[b],
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
            select(offered, found, high - low, width, taken)
            child = high
            for v in range(low, high):
                w = v - low
                first_child[v], made[v] = child, taken[w]
                # A later sibling must not decide how far an earlier one goes: see the top.
                child_reach(reach[v], chances[w], laws[v], picks[w], taken[w], 0, reach[child:])
                for j in range(taken[w]):
                    place = picks[w, j]
                    tokens[child], parents[child] = law_ids[v, place], v
                    phi[child] = phi[v] + math.log(laws[v, place])
                    perturbed[child] = found[w, j]
                    # Without noise the deepest leaves are kept first: the last beam.
                    merit[child] = found[w, j] + (_DEEPER * depth if cold else 0.0)
                    child += 1
            if child == high:
                break
            low, high = high, child
        keep_leaves(made, merit, high, most_paths, kept)
        write_paths(
            parents, first_child, made, tokens, law_ids, laws, entries, kept, cold,
            out_tokens[b], out_lengths[b], out_ids[b], out_laws[b],
        )  # fmt: skip
