"""Paths of a tree that grows where they are worth most: each node parts its leaves by its law.

A tree has as many leaves as there are paths. A node with m of them has c <= m candidates and gives
each a part of the m, one by one to where the next leaf is expected to gain most: to a new candidate
of rank c, which is met with about q_(c), the c-th largest probability of its law; or to a candidate
it has already, whose own node would then have one candidate more, worth ``ANOTHER / leaves`` of it.
So a node whose law is certain passes its paths on, one whose law is flat spends them at once. All
this is decided from the prefix and its law before a candidate is drawn (ALGORITHMS.md 5, trap 1).
"""

from typing import Any

import numpy as np
from numba import njit

from proposers.context_keys import salt_at
from proposers.drafted_tree import child_reach, node_context, node_law, write_paths
from proposers.path_tree import choose

ANOTHER = 0.02
"""What the second path through a candidate is worth, as a part of the first one.

Best of .01 .. .4 for 4 to 16 paths on SmolLM2's recorded answers at T = 0.7 and 1; with 4 paths at
T = 0.7 its tokens a step are 1.3 % above those of branching at the root only, with 16 paths 5 %.
"""


@njit(inline="always")
def part(law: Any, n: Any, leaves: Any, parts: Any) -> Any:
    """How many candidates a node has, at most n; ``parts[:c]`` are the leaves behind each."""
    count = 0
    for _ in range(leaves):
        best, who = 0.0, -1
        if count < n:
            best, who = law[count], count
        for r in range(count):
            gain = ANOTHER * law[r] / parts[r]
            if gain > best:
                best, who = gain, r
        if who == count:
            parts[who] = 0
            count += 1
        parts[who] += 1
    return count


@njit(cache=True, nogil=True)
def draft_spread(
    table: Any,
    order: Any,
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
    """Fill the paths of every request; uniforms (B, P L), one for each node but the root."""
    texts, rows, lengths, budgets, temperatures, top_k, top_p, noise_keys, groups = asked
    most, steps = out_tokens.shape[1:]
    size, width = 1 + most * steps, 2 * table.ids.shape[1]
    keys, context = np.empty(order, np.uint64), np.empty(order, np.int32)
    ids, mean = np.empty(width, np.int32), np.empty(width)
    tokens, parents = np.empty(size, np.int32), np.empty(size, np.int64)
    depths, leaves = np.zeros(size, np.int64), np.empty(size, np.int64)
    first_child, made = np.empty(size, np.int64), np.empty(size, np.int64)
    law_ids, laws = np.empty((size, width), np.int32), np.empty((size, width))
    entries, reach = np.empty(size, np.int64), np.empty(size)
    scores, taken = np.empty(width), np.empty(width, np.bool_)
    picks, kept = np.empty(most, np.int64), np.ones(size, np.bool_)
    for b in range(rows.shape[0]):
        made[:] = 0
        parents[0], leaves[0], reach[0] = -1, most, 1.0
        text, cold = texts[rows[b]], temperatures[b] == 0
        salt = salt_at(groups, b)
        v, nodes = 0, 1
        while v < nodes:
            first_child[v] = nodes
            if depths[v] < min(budgets[b], steps):
                begin = node_context(tokens, parents, v, text, lengths[b], order, context)
                n, chance = node_law(
                    table, order, context, begin, salt, temperatures[b], top_k[b], top_p[b],
                    interpolation, support, keys, ids, mean, law_ids[v], laws[v],
                )  # fmt: skip
                if n > 0 and reach[v] * chance >= min_survival:
                    count = part(laws[v], n, leaves[v], leaves[nodes:])
                    choose(
                        scheme, cold, noise_keys[b], lengths[b] + depths[v], law_ids[v], laws[v],
                        n, count, uniforms[b, nodes - 1 :], scores, taken, picks,
                    )  # fmt: skip
                    entries[v], made[v] = n, count
                    child_reach(reach[v], chance, laws[v], picks, count, count, reach[nodes:])
                    for j in range(count):
                        tokens[nodes + j] = law_ids[v, picks[j]]
                        parents[nodes + j], depths[nodes + j] = v, depths[v] + 1
                    nodes += count
            v += 1
        write_paths(
            parents, first_child, made, tokens, law_ids, laws, entries, kept, cold,
            out_tokens[b], out_lengths[b], out_ids[b], out_laws[b],
        )  # fmt: skip
