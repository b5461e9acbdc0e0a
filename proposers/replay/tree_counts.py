"""How often each node of a tree of drafts would hold an accepted token, at every place of a trace.

STAND (arXiv 2506.04708) shapes its tree by such counts. Here they are not counted from one run but
expected: at a step that begins before ``y_t`` the tree is walked along the emitted text. At depth i
the drafter's law q of the text so far is known (:meth:`proposers.batch.Drafter.follow`), and p from
the trace. Given that y was emitted there, it was the candidate of rank j (j-th in draw order), and
accepted, with probability

    w_j = E over candidates of P(candidate j is y and is accepted) / p(y),

and a node, the tuple of ranks on the way to it, holds an accepted token with the product of the w
on that way: exactly one way can be right, since one token is emitted at each place. So sums over
the nodes of one depth are the chance that a step accepts so many drafts.

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

from proposers.batch import Doubles, Drafter, DraftRequests
from proposers.replay.profiling import Order, Share, walk
from proposers.replay.texts import Texts
from proposers.shape import Node, TreeShape
from theory.traces import Trace

Scheme = Literal["without_replacement", "top_plus_one"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
DRAWS = 8
"""Sequences of refused candidates that are drawn at each node."""
_WITHOUT_REPLACEMENT, _TOP_PLUS_ONE, _RANKED = range(3)


@dataclass(frozen=True)
class RankChances:
    """w of every rank, at every depth of a step that begins before ``tokens[t]``.

    ``inner[t, i, j]`` is the chance of the candidate of rank j at depth i where it has a later
    sibling, ``last[t, i, j]`` where it has none; ``begins[t]`` whether a step can begin there (the
    first token of an answer comes from its prefill). Chances behind a depth without any are 0.

    Shapes: inner, last (N, D, M) float32; begins (N,) bool. Where a later sibling changes nothing,
    inner and last are one array.
    """

    inner: NDArray[np.float32]
    last: NDArray[np.float32]
    begins: NDArray[np.bool_]

    @property
    def separable(self) -> bool:
        """Whether a node's chance does not depend on its siblings."""
        return self.inner is self.last

    @property
    def depth(self) -> int:
        """D."""
        return int(self.inner.shape[1])

    @property
    def branching(self) -> int:
        """M, the most candidates of one node."""
        return int(self.inner.shape[2])

    @property
    def places(self) -> int:
        """Places at which a step can begin."""
        return int(np.count_nonzero(self.begins))

    def counts(self, nodes: Sequence[Node]) -> Doubles:
        """Expected accepted tokens of each node over all places, none with a later sibling.

        Falls from parent to child. Raises ValueError for a node beyond the depth or the branching.
        """
        ways = np.full((len(nodes), self.depth), -1, np.int64)
        for row, node in enumerate(nodes):
            self._check(len(node), max(node) + 1)
            ways[row, : len(node)] = node
        return np.asarray(_counts(self.last, ways))

    def kept(self, shape: TreeShape) -> Doubles:
        """P(a step that begins at t accepts more than i drafts of this shape), (N, depth of shape).

        Raises ValueError for a shape beyond the depth or the branching.
        """
        self._check(shape.depth, shape.width)
        tree = shape.arrays
        return np.asarray(
            _kept(
                self.inner, self.last, tree.parents, tree.ranks, tree.depths, tree.child_counts,
                shape.depth,
            )
        )  # fmt: skip

    def _check(self, depth: int, branching: int) -> None:
        if depth > self.depth or branching > self.branching:
            raise ValueError(
                f"a tree of depth {depth} and {branching} children was given; these chances reach "
                f"to depth {self.depth} and {self.branching} children"
            )


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
    begins = np.zeros(len(trace), np.bool_)
    held, rng = trace.processed, np.random.default_rng([seed, 0x7EE])
    count = draws * (branching - 1) if way == _WITHOUT_REPLACEMENT else 0

    def step(drafter: Drafter, texts: Texts, emitted: int, budget: int) -> None:
        going = texts.going
        if not going.size:
            return
        rows = texts.begins[going] + emitted
        begins[rows] = True
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
    return RankChances(inner, last, begins)


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


@njit(cache=True, nogil=True)
def _counts(chances: Any, ways: Any) -> Any:
    found = np.zeros(ways.shape[0])
    for v in range(ways.shape[0]):
        for t in range(chances.shape[0]):
            reach = 1.0
            for i in range(ways.shape[1]):
                if ways[v, i] < 0 or reach == 0:
                    break
                reach *= chances[t, i, ways[v, i]]
            found[v] += reach
    return found


@njit(cache=True, nogil=True)
def _kept(
    inner: Any, last: Any, parents: Any, ranks: Any, depths: Any, child_counts: Any, deepest: Any
) -> Any:
    """Sums of reach over the nodes of each depth; nodes come after their parents."""
    kept = np.zeros((inner.shape[0], deepest))
    reach = np.empty(parents.shape[0])
    for t in range(inner.shape[0]):
        reach[0] = 1.0
        for v in range(1, parents.shape[0]):
            above, i, j = parents[v], depths[v] - 1, ranks[v]
            chance = last[t, i, j] if j == child_counts[above] - 1 else inner[t, i, j]
            reach[v] = reach[above] * chance
            kept[t, i] += reach[v]
    return kept
