"""A tree of drafts while it is drawn: the law of each node, the chances of its children, its paths.

A tree of N nodes is arrays over v = 0..N, breadth first: node 0 is the root (the request's text),
``parents[v]``, the drafted ``tokens[v]`` (v >= 1), ``made[v]`` children from ``first_child[v]`` on,
in draw order, and the law that they were drawn from, ``laws[v, :entries[v]]`` on ``law_ids[v]``.
"""

from typing import Any

from numba import njit

from proposers.acceptance import expected_acceptance
from proposers.context_keys import context_keys
from proposers.mixture import mix
from proposers.stand import reshape_law
from proposers.table import longest_match


@njit(inline="always")
def node_context(
    tokens: Any, parents: Any, v: Any, text: Any, length: Any, order: Any, context: Any
) -> Any:
    """Write the last tokens before a node's children to the end of ``context`` (order,) int32.

    Returns where they begin.
    """
    begin = order
    while begin > 0 and v > 0:
        begin -= 1
        context[begin] = tokens[v]
        v = parents[v]
    while begin > 0 and length > 0:
        begin -= 1
        length -= 1
        context[begin] = text[length]
    return begin


@njit(inline="always")
def node_law(
    table: Any,
    order: Any,
    context: Any,
    begin: Any,
    salt: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    interpolation: Any,
    support: Any,
    keys: Any,
    ids: Any,
    mean: Any,
    law_ids: Any,
    law: Any,
) -> Any:
    """The law q after ``context[begin:]``: (entries, expected acceptance), (0, 0) without one.

    That of :class:`proposers.stand.StandDrafter`, cut to its ``support`` most probable tokens. At
    temperature 0 it is the mean law itself: candidates are ranked by it, none is drawn from it.
    """
    longest = context_keys(context, begin, order, order, keys, salt)
    slot, matched = longest_match(table, keys, longest)
    n, chance = 0, 0.0
    if slot >= 0:
        mix(table, keys, slot, matched, interpolation, ids, mean)
        chance = expected_acceptance(matched, order, table.counts[slot], mean[0], temperature)
        if temperature == 0:
            n = reshape_law(ids, mean, 1.0, 0, 1.0, law_ids, law)
        else:
            n = reshape_law(ids, mean, temperature, top_k, top_p, law_ids, law)
        if n > support:
            n = support
            total = 0.0
            for e in range(n):
                total += law[e]
            for e in range(n):
                law[e] /= total
        while n > 0 and law[n - 1] == 0:  # underflow: a token of probability 0 is no candidate
            n -= 1
    return n, chance


@njit(inline="always")
def child_reach(
    reach: Any, chance: Any, law: Any, picks: Any, count: Any, among: Any, out: Any
) -> None:
    """``out[j]``, the estimated probability that the verifier gets to child j of a node.

    ``reach * a_j * prod_(i<j) (1 - a_i)`` with ``a_j = chance * q(x_j) / max_i q(x_i)``, the
    maximum over the first ``among`` children and all before j: the child that q likes best has the
    node's expected acceptance, each stands behind those before it. It may look at the tokens: it
    decides about drafts behind them, never about themselves.
    """
    best = 0.0
    for j in range(among):
        best = max(best, law[picks[j]])
    for j in range(count):
        best = max(best, law[picks[j]])
        share = chance * (law[picks[j]] / best)
        out[j] = reach * share
        reach *= 1.0 - share


@njit(inline="always")
def write_paths(
    parents: Any,
    first_child: Any,
    made: Any,
    tokens: Any,
    law_ids: Any,
    laws: Any,
    entries: Any,
    kept: Any,
    cold: Any,
    out_tokens: Any,
    out_lengths: Any,
    out_ids: Any,
    out_laws: Any,
) -> None:
    """The ways from the root to every leaf that is kept, depth first, with the laws on them.

    Nobody drew the tokens of a ``cold`` tree: the law of each is a point mass on it.
    """
    path, v = 0, 0
    while made[0] > 0:
        while made[v] > 0:
            v = first_child[v]
        if kept[v]:
            depth, u = 0, v
            while u > 0:
                depth += 1
                u = parents[u]
            out_lengths[path] = depth
            u = v
            for i in range(depth - 1, -1, -1):
                out_tokens[path, i] = tokens[u]
                parent = parents[u]
                if cold:
                    out_ids[path, i, 0] = tokens[u]
                    out_laws[path, i, 0] = 1.0
                else:
                    for e in range(entries[parent]):
                        out_ids[path, i, e] = law_ids[parent, e]
                        out_laws[path, i, e] = laws[parent, e]
                u = parent
            path += 1
        while v > 0 and v + 1 == first_child[parents[v]] + made[parents[v]]:
            v = parents[v]
        if v == 0:
            break
        v += 1
