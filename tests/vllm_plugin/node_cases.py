"""Laws, candidates drawn from them as each rule wants, and nodes made of both."""

from fractions import Fraction as F

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_plugin.nodes import DISTINCT, Nodes
from vllm_plugin.paths import Paths
from vllm_plugin.rules import Chains

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SCHEMES = {
    "token": "iid",
    "match": "iid",
    "kseq": "iid",
    "rrs": "iid",
    "rrs_without_replacement": "without_replacement",
    "sparse_optimal": "without_replacement",
    "top_plus_one": "top_plus_one",
}
EXACT = {
    "random": (
        (F(1, 2), F(1, 10), F(3, 10), F(1, 10)),
        (F(1, 5), F(2, 5), F(1, 10), F(3, 10)),
    ),
    "reversed": (
        (F(5, 8), F(1, 4), F(1, 8), F(0)),
        (F(1, 20), F(1, 8), F(1, 4), F(23, 40)),
    ),
    "equal": ((F(1, 2), F(1, 3), F(1, 6)), (F(1, 2), F(1, 3), F(1, 6))),
    "disjoint": ((F(0), F(0), F(1, 3), F(2, 3)), (F(1, 4), F(3, 4), F(0), F(0))),
    "truncated": ((F(3, 4), F(1, 4), F(0), F(0)), (F(0), F(1, 7), F(4, 7), F(2, 7))),
    "greedy": ((F(0), F(1), F(0)), (F(1, 4), F(1, 4), F(1, 2))),
    "point": ((F(1, 4), F(3, 4)), (F(1), F(0))),
}


def draw(q: Floats, k: int, scheme: str, rng: np.random.Generator) -> Ints:
    """k candidates from each row of q (B, E): indices, -1 where q has no further token."""
    with np.errstate(divide="ignore"):
        scores = np.log(q)
    if scheme == "iid":
        columns = [(scores + rng.gumbel(size=q.shape)).argmax(1) for _ in range(k)]
        return np.stack(columns, axis=1)
    if scheme == "without_replacement":
        scores = scores + rng.gumbel(size=q.shape)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return _padded(np.where(np.take_along_axis(q, order, 1) > 0, order, -1), k)
    assert scheme == "top_plus_one"
    support = (q > 0).sum(1)
    top = np.argsort(-q, axis=1, kind="stable")[:, : k - 1]
    top = np.where(np.arange(top.shape[1]) < np.minimum(k, support)[:, None] - 1, top, -1)
    rest = scores + rng.gumbel(size=q.shape)
    for column in top.T:
        rest[column >= 0, column[column >= 0]] = -np.inf
    drawn = rest.argmax(1)
    candidates = _padded(top, k)
    candidates[np.arange(len(q)), np.minimum(k, support) - 1] = drawn
    return candidates


def _padded(candidates: Ints, k: int) -> Ints:
    return np.pad(candidates, ((0, 0), (0, k - candidates.shape[1])), constant_values=-1)


def nodes(rows: Ints, candidates: Ints, ids: Ints, law: Floats) -> Nodes:
    """Tensors of arrays (B,), (B, k), (B, E), (B, E)."""
    arrays = (rows, candidates, ids, law)
    return Nodes(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))


def random_nodes(
    rule: str, batch: int, size: int, entries: int, k: int, seed: int, *, unused: bool = False
) -> tuple[torch.Tensor, Nodes, torch.Tensor, torch.Tensor]:
    """p (batch, size) float64, nodes with random sparse laws, and uniforms."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(size, 0.5), batch)
    p[rng.random(p.shape) < 0.1] = 0
    p[:, 0] += p.sum(1) == 0
    p /= p.sum(1, keepdims=True)
    ids = rng.permuted(np.tile(np.arange(size), (batch, 1)), axis=1)[:, :entries]
    law = rng.dirichlet(np.full(entries, 0.6), batch)
    if unused:
        law[:, -1] = 0
        ids[:, -1] = ids[:, 0]
        law /= law.sum(1, keepdims=True)
    slots = draw(law, k, SCHEMES[rule], rng)
    candidates = np.where(slots >= 0, np.take_along_axis(ids, slots.clip(min=0), 1), -1)
    return (
        torch.from_numpy(p),
        nodes(np.arange(batch), candidates, ids, law),
        torch.from_numpy(rng.random((batch, k))),
        torch.from_numpy(rng.random(batch)),
    )


def random_chains(
    batch: int, size: int, steps: int, seed: int
) -> tuple[torch.Tensor, Chains, torch.Tensor, torch.Tensor]:
    """p of every row, chains of at most ``steps`` random drafts, and uniforms."""
    rng = np.random.default_rng(seed)
    entries = min(5, size)
    p = rng.dirichlet(np.full(size, 0.5), batch * (steps + 1))
    ids = rng.permuted(np.tile(np.arange(size), (batch * steps, 1)), axis=1)[:, :entries]
    law = rng.dirichlet(np.full(entries, 0.6), batch * steps)
    slots = rng.integers(0, entries, (batch * steps, 1))
    tokens = np.take_along_axis(ids, slots, 1).reshape(batch, steps)
    arrays = (
        np.arange(batch) * (steps + 1),
        rng.integers(0, steps + 1, batch),
        rng.random(batch) < 0.7,
        tokens,
        ids.reshape(batch, steps, entries),
        law.reshape(batch, steps, entries),
    )
    return (
        torch.from_numpy(p),
        Chains(*(torch.from_numpy(a) for a in arrays)),
        torch.from_numpy(rng.random((batch, steps))),
        torch.from_numpy(rng.random(batch)),
    )


def random_paths(
    rule: str, batch: int, seed: int
) -> tuple[torch.Tensor, Paths, torch.Tensor, torch.Tensor]:
    """Random paths over four tokens, one law of q and one row of p a depth."""
    rng = np.random.default_rng(seed)
    size, count, steps = 4, 3, 2
    p = torch.from_numpy(rng.dirichlet(np.full(size, 0.7), steps + 1))
    rows = np.broadcast_to(np.arange(steps + 1), (batch, count, steps + 1)).copy()
    tokens = rng.integers(0, size, (batch, count, steps))
    if rule in DISTINCT:
        tokens[:, :, 0] = rng.permuted(np.tile(np.arange(size), (batch, 1)), axis=1)[:, :count]
    rows[rng.random(rows.shape) < 0.1] = -1
    shape = (batch, count, steps, size)
    law = np.broadcast_to(rng.dirichlet(np.ones(size), steps), shape)
    arrays = (rows, tokens, np.broadcast_to(np.arange(size), shape), law)
    return (
        p,
        Paths(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)),
        torch.from_numpy(rng.random((batch, steps, count))),
        torch.from_numpy(rng.random((batch, steps + 1))),
    )


def cells(breaks: list[float], thin: float) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Midpoints and widths of cells that cover [0, 1), and whether a cell lies across a break.

    Beside each break stand cells that reach from one to two times ``thin`` from it: whoever has
    another threshold than the break, by more than that, decides at least one midpoint otherwise.
    """
    inner = [b for b in breaks if thin * 4 < b < 1 - thin * 4]
    edges = {0.0, 1.0}
    edges.update(b + side * thin for b in inner for side in (-2, -1, 1, 2))
    ordered = np.array(sorted(edges))
    middle = (ordered[1:] + ordered[:-1]) / 2
    across = np.array([any(abs(m - b) < thin * 0.75 for b in inner) for m in middle])
    return middle, np.diff(ordered), across


def products(axes: list[Floats]) -> Floats:
    """All combinations of the axes' values, (n, len(axes))."""
    return np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
