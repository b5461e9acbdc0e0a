"""How often each node of a tree of drafts would hold an accepted token, at every place of a trace.

STAND (arXiv 2506.04708) shapes its tree by such counts. Here they are not counted from one run but
expected: at a step that begins before ``y_t`` the tree is walked along the emitted text. At depth i
the drafter's law q of the text so far is known (:meth:`proposers.batch.Drafter.follow`), and p from
the trace. Given that y was emitted there, it was the candidate of rank j (j-th in draw order), and
accepted, with probability

    w_j = E over candidates of P(candidate j is y and is accepted) / p(y),

and :mod:`proposers.replay.tree_chances` adds up the products of w along the ways of a tree.

- ``without_replacement``, judged by rrs_without_replacement: w_j does not depend on how many later
  candidates are offered. w_1 = min(1, q/p); a later one is the mean over the refused candidates
  before it, which are drawn by the law that refusals have (their chance is a weight). Each draw's
  w_1 + w_2 + .. is at most 1.
- ``top_plus_one`` with c candidates: the c - 1 most probable tokens of q are fixed, w_j = 1 for the
  one that is y, and the last is drawn from the others, w_c = min(1, q~(y)/p(y)). So w depends on
  whether a candidate is the last, and both chances are kept.
- Temperature 0: candidates are the most probable tokens of the table's law, w_j is 1 or 0.

As in :mod:`proposers.replay.path_scoring`, a token of q outside the trace's head has p = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numba import njit

from proposers.batch import Drafter, DraftRequests
from proposers.replay.profiling import Order, Share, walk
from proposers.replay.texts import Texts
from proposers.replay.tree_chances import RankChances
from theory.traces import Trace

Scheme = Literal["without_replacement", "top_plus_one"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
DRAWS = 8
"""Sequences of refused candidates that are drawn at each node."""
_WITHOUT_REPLACEMENT, _TOP_PLUS_ONE, _RANKED = range(3)


def rank_chances(
    trace: Trace,
    make_drafter: Callable[[], Drafter],
    *,
    depth: int,
    branching: int,
    scheme: Scheme,
    draws: int = DRAWS,
    share: Share = "all",
    order: Order = "sequential",
    seed: int = 0,
    advance: Callable[[int], None] = lambda tokens: None,
) -> RankChances:
    """Walk a drafter along a trace as :func:`proposers.replay.profile` does; its chances by rank.

    Every place at which a step can begin has weight 1, as in STAND.

    Parameters
    ----------
    make_drafter
        Builds a drafter of ``depth`` drafts; a rule of its own to end chains cuts what is seen.
    branching
        Most candidates of one node.
    draws
        Sequences of refusals drawn at each node for ``without_replacement``; w is unbiased for any.

    Raises
    ------
    ValueError
        For a depth, branching or number of draws below 1, and as `profile`.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}; got {scheme!r}")
    if min(depth, branching, draws) < 1:
        raise ValueError(
            f"got depth {depth}, branching {branching} and {draws} draws; each must be 1 or more"
        )
    cold = trace.sampling.temperature == 0
    way = _RANKED if cold else SCHEMES.index(scheme)
    inner = np.zeros((len(trace), depth, branching), np.float32)
    last = np.zeros_like(inner) if way == _TOP_PLUS_ONE else inner
    weights = np.zeros(len(trace))
    held, rng = trace.processed, np.random.default_rng([seed, 0x7EE])
    count = draws * (branching - 1) if way == _WITHOUT_REPLACEMENT else 0

    def step(drafter: Drafter, texts: Texts, emitted: int, budget: int) -> None:
        going = texts.going
        if not going.size:
            return
        rows = texts.begins[going] + emitted
        weights[rows] = 1.0
        requests = texts.requests(going, emitted, budget)
        followed = drafter.follow(
            _warm(requests) if cold else requests,
            texts.continuation(going, emitted, budget, depth),
        )
        _node_chances(
            rows, followed.law_ids, followed.law_probabilities, followed.q, trace.ids, held.masses,
            trace.tokens, held.emitted, way, draws, rng.random((going.size, depth, count)),
            inner, last,
        )  # fmt: skip

    walk(trace, make_drafter, step, depth, share=share, order=order, advance=advance)
    return RankChances(inner, last, weights)


def _warm(requests: DraftRequests) -> DraftRequests:
    """At temperature 0 candidates are ranked by the law at temperature 1, uncut."""
    size = len(requests)
    return replace(
        requests, temperatures=np.ones(size), top_k=np.zeros(size, np.int64), top_p=np.ones(size)
    )


@njit(inline="always")
def _law_and_target(
    law_ids: Any, laws: Any, ids: Any, masses: Any, token: Any, emitted: Any, q: Any, p: Any
) -> Any:
    """q, most probable first, and p on it; returns (entries, place of the token or -1)."""
    n, y = 0, -1
    for e in range(law_ids.shape[0]):
        if law_ids[e] < 0 or laws[e] <= 0:
            continue
        target = emitted
        if law_ids[e] != token:
            target = 0.0
            for h in range(ids.shape[0]):
                if ids[h] == law_ids[e]:
                    target = masses[h]
                    break
        place = n
        while place > 0 and q[place - 1] < laws[e]:
            q[place], p[place] = q[place - 1], p[place - 1]
            place -= 1
        q[place], p[place] = laws[e], target
        if y >= place:
            y += 1
        if law_ids[e] == token:
            y = place
        n += 1
    return n, y


@njit(inline="always")
def _refusals(
    p: Any, q: Any, n: Any, y: Any, uniforms: Any, draws: Any, weights: Any, left: Any, out: Any
) -> Any:
    """Adds w of every rank to ``out`` for rrs_without_replacement (vllm_plugin/nodes.py).

    The residual is kept unnormalised: ``weights`` on q's support, ``beyond`` off it. After the
    refused candidates it has shrunk by what was accepted, whose part on y is m_j(y). Given a
    refusal, the refused token has the law norm((s r' - r)+), which is what is drawn from.
    """
    ranks = out.shape[0]
    beyond = 1.0
    for e in range(n):
        beyond -= p[e]
    beyond = max(beyond, 0.0)
    for d in range(draws):
        for e in range(n):
            weights[e], left[e] = p[e], q[e]
        for j in range(ranks):
            total, drawable = beyond, 0.0
            for e in range(n):
                total += weights[e]
                drawable += left[e]
            if drawable <= 0 or total <= 0:
                break
            scale = total / drawable
            out[j] += min(weights[y], scale * left[y]) / (p[y] * draws)
            if j == ranks - 1 or weights[y] <= scale * left[y]:
                break  # all of y's mass is accepted: it is never offered later
            refused = 0.0
            for e in range(n):
                refused += max(scale * left[e] - weights[e], 0.0)
            # The first refusal is drawn by strata, one for each draw.
            u = uniforms[d * (ranks - 1) + j]
            target = ((d + u) / draws if j == 0 else u) * refused
            token = -1
            for e in range(n):
                excess = scale * left[e] - weights[e]
                if excess > 0:
                    token = e
                    target -= excess
                    if target < 0:
                        break
            if token < 0:
                break
            for e in range(n):
                weights[e] = max(weights[e] - scale * left[e], 0.0)
            left[token] = 0.0


@njit(cache=True, nogil=True)
def _node_chances(
    rows: Any,
    law_ids: Any,
    laws: Any,
    offered: Any,
    ids: Any,
    masses: Any,
    tokens: Any,
    emitted: Any,
    way: Any,
    draws: Any,
    uniforms: Any,
    inner: Any,
    last: Any,
) -> Any:
    """Chances of the steps that begin at ``rows``, depth by depth while y can be drafted."""
    entries, ranks = law_ids.shape[2], inner.shape[2]
    q, p = np.empty(entries), np.empty(entries)
    weights, left = np.empty(entries), np.empty(entries)
    chances = np.empty(ranks)
    for b in range(rows.shape[0]):
        for i in range(offered.shape[1]):
            if offered[b, i] <= 0:
                break
            row, t = rows[b] + i, rows[b]
            n, y = _law_and_target(
                law_ids[b, i], laws[b, i], ids[row], masses[row], tokens[row], emitted[row], q, p
            )
            if y < 0 or p[y] <= 0:
                break
            if way == _WITHOUT_REPLACEMENT:
                chances[:] = 0.0
                _refusals(p, q, n, y, uniforms[b, i], draws, weights, left, chances)
                for j in range(ranks):
                    last[t, i, j] = chances[j]
                continue
            if y < ranks:
                inner[t, i, y] = 1.0
            if way == _TOP_PLUS_ONE:
                least, rest = min(y, ranks - 1), 0.0
                for e in range(least + 1, n):
                    rest += q[e]
                for j in range(least, -1, -1):  # the draw, after the j most probable
                    rest += q[j]
                    last[t, i, j] = min(1.0, q[y] / (rest * p[y]))
