"""Paths of a tree of a fixed shape: iid chains, draws without replacement, top-plus-one.

How many candidates a node has depends on the shape, its law and what leads to it, never on which
they are (ALGORITHMS.md 5, trap 1). Nodes are drawn breadth first, each from one uniform of its own.
"""

from typing import Any

import numpy as np
from numba import njit

from proposers.context_keys import salt_at
from proposers.drafted_tree import child_reach, node_context, node_law, write_paths
from proposers.noise import exponential, row_key
from proposers.path_candidates import draw_rest, first_places

IID, WITHOUT_REPLACEMENT, TOP_PLUS_ONE = 0, 1, 2


@njit(inline="always")
def choose(
    scheme: Any,
    cold: Any,
    key: Any,
    position: Any,
    law_ids: Any,
    law: Any,
    n: Any,
    count: Any,
    uniforms: Any,
    scores: Any,
    taken: Any,
    picks: Any,
) -> None:
    """The places of a node's ``count`` candidates in its law, in draw order.

    ``cold``: the most probable ones. A request with a noise key: the first arrivals of the race of
    q with the noise of ``position``. Others are drawn, candidate j by ``uniforms[j]``.
    """
    if cold:
        for j in range(count):
            picks[j] = j
    elif key != 0:
        row = row_key(key, position)
        for e in range(n):
            scores[e] = exponential(row, law_ids[e]) / law[e]
        first_places(scores, n, count, picks)
    else:
        taken[:n] = False
        for j in range(count):
            if scheme == TOP_PLUS_ONE and j < count - 1:
                picks[j] = j
            else:
                picks[j] = draw_rest(law, n, taken, uniforms[j])
            taken[picks[j]] = scheme != IID


@njit(cache=True, nogil=True)
def draft_tree(
    table: Any,
    order: Any,
    shape: Any,
    scheme: Any,
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
    """Fill the paths of every request; uniforms (B, N), one for each node but the root."""
    texts, rows, lengths, budgets, temperatures, top_k, top_p, noise_keys, groups = asked
    size, width = shape.parents.shape[0], 2 * table.ids.shape[1]
    keys, context = np.empty(order, np.uint64), np.empty(order, np.int32)
    ids, mean = np.empty(width, np.int32), np.empty(width)
    tokens, reach = np.empty(size, np.int32), np.empty(size)
    law_ids, laws = np.empty((size, width), np.int32), np.empty((size, width))
    entries, made = np.empty(size, np.int64), np.empty(size, np.int64)
    scores, taken = np.empty(width), np.empty(width, np.bool_)
    picks, kept = np.empty(size, np.int64), np.ones(size, np.bool_)
    for b in range(rows.shape[0]):
        made[:] = 0
        reach[:] = -1.0  # not drafted
        reach[0] = 1.0
        text, cold = texts[rows[b]], temperatures[b] == 0
        salt = salt_at(groups, b)
        distinct = scheme != IID or cold or noise_keys[b] != 0
        for v in range(size):
            count, depth = shape.child_counts[v], shape.depths[v]
            if count == 0 or reach[v] < 0 or depth >= min(budgets[b], out_tokens.shape[2]):
                continue
            begin = node_context(tokens, shape.parents, v, text, lengths[b], order, context)
            n, chance = node_law(
                table, order, context, begin, salt, temperatures[b], top_k[b], top_p[b],
                interpolation, support, keys, ids, mean, law_ids[v], laws[v],
            )  # fmt: skip
            # Judged before the candidates are drawn, from the prefix and its law: lossless.
            if n == 0 or reach[v] * chance < min_survival:
                continue
            if distinct:
                count = min(count, n)
            first = shape.first_child[v]
            choose(
                scheme, cold, noise_keys[b], lengths[b] + depth, law_ids[v], laws[v], n, count,
                uniforms[b, first - 1 :], scores, taken, picks,
            )  # fmt: skip
            entries[v], made[v] = n, count
            for j in range(count):
                tokens[first + j] = law_ids[v, picks[j]]
                reach[first + j] = reach[v] * chance
            if distinct:
                child_reach(reach[v], chance, laws[v], picks, count, count, reach[first:])
        write_paths(
            shape.parents, shape.first_child, made, tokens, law_ids, laws, entries, kept, cold,
            out_tokens[b], out_lengths[b], out_ids[b], out_laws[b],
        )  # fmt: skip
