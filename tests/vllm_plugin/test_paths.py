"""Several paths of one request against the exact joint law of what a step emits."""

from collections.abc import Callable
from fractions import Fraction as F

import numpy as np
import pytest
import torch

from tests.vllm_plugin.node_cases import SCHEMES, Floats, Ints, draw
from theory.acceptance import Rule
from theory.equivalence import goodness_of_fit
from theory.exact_sequences import SequenceLaw, emitted_law, expected_tokens
from vllm_plugin import nodes, nodes_cpu, paths
from vllm_plugin.nodes import Nodes, Verdict
from vllm_plugin.paths import Paths

V, L, K = 3, 2, 2
N = 100_000
FALSE_ALARM = 1e-9 / 200  # each
IID = ("token", "match", "kseq", "rrs")
TREES = ("rrs_without_replacement", "sparse_optimal", "top_plus_one")
Walk = Callable[[str, torch.Tensor, Paths, torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]


def _with_torch(
    rule: str, p: torch.Tensor, batch: Paths, u: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return paths.walk(nodes.decide, rule, p, batch, u, v)


BACKENDS: dict[str, Walk] = {"torch": _with_torch, "numba": nodes_cpu.walk}

# Markov laws: row x is what follows token x, the last row is the start.
P = [
    (F(1, 2), F(3, 10), F(1, 5)),
    (F(1, 8), F(5, 8), F(1, 4)),
    (F(1, 3), F(1, 3), F(1, 3)),
    (F(3, 5), F(3, 10), F(1, 10)),
]
Q = [
    (F(1, 10), F(1, 5), F(7, 10)),
    (F(3, 4), F(1, 5), F(1, 20)),
    (F(1, 8), F(1, 4), F(5, 8)),
    (F(3, 10), F(1, 5), F(1, 2)),
]


def _floats(laws: list[tuple[F, ...]]) -> Floats:
    return np.array([[float(mass) for mass in law] for law in laws])


def _iid_paths(k: int, rng: np.random.Generator, n: int = N) -> tuple[Ints, Ints]:
    """n times k independent paths of L tokens, and the law's row after each prefix."""
    rows = np.full((n, k, L + 1), V)
    for d in range(L):
        drawn = draw(_floats(Q)[rows[:, :, d].ravel()], 1, "iid", rng)
        rows[:, :, d + 1] = drawn.reshape(n, k)
    return rows[:, :, 1:].copy(), rows


def _trees(rule: str, k: int, rng: np.random.Generator, n: int = N) -> tuple[Ints, Ints]:
    """k different children of every node, down to depth L, as k^L paths."""
    rows = np.full((n, 1, 1), V)
    for _ in range(L):
        width = rows.shape[1]
        children = draw(_floats(Q)[rows[:, :, -1].ravel()], k, SCHEMES[rule], rng)
        rows = np.repeat(rows, k, axis=1)
        rows = np.concatenate([rows, children.reshape(n, width * k, 1)], axis=2)
    return rows[:, :, 1:].copy(), rows


def _paths(tokens: Ints, states: Ints) -> Paths:
    """Markov laws stand in the rows of p by state, and q by the state a draft was drawn in."""
    shape = (*tokens.shape, V)
    arrays = (
        states,
        tokens,
        np.broadcast_to(np.arange(V), shape),
        _floats(Q)[states[:, :, :-1].clip(0, V)],
    )
    return Paths(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))


def _run(
    walk: Walk, rule: str, batch: Paths, seed: int = 1, p: list[tuple[F, ...]] = P
) -> tuple[Ints, Ints]:
    n, count, _ = batch.tokens.shape
    rng = np.random.default_rng(seed + 100)
    u = torch.from_numpy(rng.random((n, L, count)))
    v = torch.from_numpy(rng.random((n, L + 1)))
    emitted, winner = walk(rule, torch.from_numpy(_floats(p)).float(), batch, u, v)
    return emitted.long().numpy(), winner.numpy()


def _exact(rule: Rule, k: int, candidates: str) -> SequenceLaw:
    def model(laws: list[tuple[F, ...]]) -> Callable[[tuple[int, ...]], tuple[F, ...]]:
        return lambda prefix: laws[prefix[-1] if prefix else V]

    return emitted_law(model(P), model(Q), L, k, rule=rule, candidates=candidates)


def _fits(emitted: Ints, law: SequenceLaw) -> bool:
    """Whether emitted sequences (n, L + 1), -1 at their end, follow a joint law of sequences."""
    base = V + 1
    places = base ** np.arange(L, -1, -1)
    found = np.bincount((emitted + 1) @ places, minlength=base ** (L + 1))
    expected = np.zeros(base ** (L + 1))
    for tokens, mass in law.items():
        padded = np.pad(np.array(tokens) + 1, (0, L + 1 - len(tokens)))
        expected[padded @ places] += float(mass)
    return not goodness_of_fit(found, expected, false_alarm=FALSE_ALARM).rejected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", [*IID, *TREES])
def test_the_joint_law_of_what_is_emitted_is_exact(rule: Rule, backend: str) -> None:
    """Lengths and tokens together; that this law is lossless is proved in tests/theory."""
    rng = np.random.default_rng(5)
    if rule in IID:
        drawn, law = _iid_paths(3, rng), _exact(rule, 3, "paths")
    else:
        drawn, law = _trees(rule, K, rng), _exact(rule, K, "tree")
    emitted, winner = _run(BACKENDS[backend], rule, _paths(*drawn))
    assert _fits(emitted, law)
    lengths = (emitted >= 0).sum(1)
    assert lengths.mean() == pytest.approx(float(expected_tokens(law)), abs=6 * L / N**0.5)
    accepted = np.arange(L) < lengths[:, None] - 1
    lies_on = drawn[0][np.arange(N), winner]
    assert (np.where(accepted, lies_on, 0) == np.where(accepted, emitted[:, :L], 0)).all()


@pytest.mark.parametrize("rule", [*IID, *TREES])
def test_both_back_ends_emit_the_same(rule: str) -> None:
    """Ragged and absent paths and rows that were not evaluated included."""
    rng = np.random.default_rng(6)
    n = 20_000
    drawn = _iid_paths(3, rng, n) if rule in IID else _trees(rule, K, rng, n)
    tokens, states = _cut(*drawn, rng)
    batch = _paths(tokens, states)
    runs = [_run(walk, rule, batch) for walk in BACKENDS.values()]
    assert (runs[0][0] != runs[1][0]).any(axis=1).sum() <= 2  # rounding of float32 sums
    assert (runs[0][1] != runs[1][1]).sum() <= 2


def _cut(tokens: Ints, states: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Paths end at random depths; some are absent, some lack their last row."""
    n, count, _ = tokens.shape
    lengths = rng.integers(0, L + 1, (n, count))
    rows = np.where(np.arange(L + 1) <= lengths[:, :, None], states, -1)
    unevaluated = (rng.random((n, count)) < 0.2) & (lengths > 0)
    rows[unevaluated, lengths[unevaluated]] = -1
    absent = rng.random((n, count)) < 0.2
    absent[:, 0] = False
    rows[absent] = -1
    tokens = np.where(np.arange(L) < np.where(absent, 0, lengths)[:, :, None], tokens, -1)
    return tokens, rows


@pytest.mark.parametrize("rule", [*IID])
def test_ragged_paths_are_lossless(rule: str) -> None:
    """The first tokens of cut paths, continued by the target, follow the target's joint law."""
    rng = np.random.default_rng(7)
    tokens, states = _iid_paths(3, rng)
    tokens, rows = _cut(tokens, states, rng)
    emitted, _ = _run(nodes_cpu.walk, rule, _paths(tokens, rows))
    assert (emitted[:, 0] >= 0).all()
    _completed_fits(emitted, rng)


def _completed_fits(emitted: Ints, rng: np.random.Generator, *, fits: bool = True) -> None:
    p = _floats(P)
    completed = emitted.copy()
    for d in range(L + 1):
        before = completed[:, d - 1] if d else np.full(len(emitted), V)
        following = draw(p[before], 1, "iid", rng)[:, 0]
        completed[:, d] = np.where(emitted[:, d] >= 0, emitted[:, d], following)
    law = p[V][:, None, None] * p[:V][:, :, None] * p[:V][None]
    counts = np.bincount(completed @ V ** np.arange(L, -1, -1), minlength=V ** (L + 1))
    rejected = goodness_of_fit(counts, law.ravel(), false_alarm=FALSE_ALARM).rejected
    assert rejected is not fits


def _constants_of_all(
    rule: str, p: torch.Tensor, batch: Nodes, u: torch.Tensor, v: torch.Tensor
) -> Verdict:
    """K-SEQ whose rho and residual are those of three candidates, however many survived."""
    held, q = nodes.on_support(p, batch.rows, batch.law_ids, batch.law)
    whole = Nodes(batch.rows, batch.law_ids[:, :1].expand(-1, 3), batch.law_ids, batch.law)
    chances, weights = nodes.judge("kseq", held, q, batch)
    _, wrong = nodes.judge("kseq", held, q, whole)
    offered = (batch.candidates >= 0).any(dim=1, keepdim=True)
    accepted = nodes.first_below(u, chances)
    token = nodes.emit(p, batch.rows, batch.law_ids, held, torch.where(offered, wrong, weights), v)
    return nodes.landed(rule, batch.candidates, accepted, token)


def test_constants_of_the_wrong_number_of_survivors_are_refuted() -> None:
    rng = np.random.default_rng(8)
    batch = _paths(*_iid_paths(3, rng))

    def wrong(
        rule: str, p: torch.Tensor, batch: Paths, u: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return paths.walk(_constants_of_all, rule, p, batch, u, v)

    emitted, _ = _run(wrong, "kseq", batch)
    _completed_fits(emitted, rng, fits=False)


def test_top_plus_one_goes_on_at_a_top_candidate() -> None:
    """If the residual token is a top candidate the walk goes on there; elsewhere it must not."""
    rng = np.random.default_rng(9)
    drawn = _trees("top_plus_one", K, rng)
    emitted, _ = _run(nodes_cpu.walk, "top_plus_one", _paths(*drawn))
    tokens = drawn[0]
    top = np.array([max(range(V), key=lambda i: (Q[V][i], -i))])
    landed = (emitted[:, 0] == top) & (tokens[:, 0, 0] == top)
    assert landed.mean() > 0.05
    assert ((emitted[landed] >= 0).sum(1) >= 2).all()


def test_siblings_in_the_wrong_order_are_refuted() -> None:
    rng = np.random.default_rng(10)
    tokens, states = _trees("rrs_without_replacement", K, rng)
    order = np.lexsort((tokens[:, :, 1], tokens[:, :, 0]), axis=-1)
    tokens = np.take_along_axis(tokens, order[:, :, None], 1)
    states = np.take_along_axis(states, order[:, :, None], 1)
    emitted, _ = _run(nodes_cpu.walk, "rrs_without_replacement", _paths(tokens, states))
    _completed_fits(emitted, rng, fits=False)


def test_the_lossless_walks_pass_what_refutes_the_wrong_ones() -> None:
    rng = np.random.default_rng(11)
    emitted, _ = _run(nodes_cpu.walk, "kseq", _paths(*_iid_paths(3, rng)))
    _completed_fits(emitted, rng)
    drawn = _trees("rrs_without_replacement", K, rng)
    emitted, _ = _run(nodes_cpu.walk, "rrs_without_replacement", _paths(*drawn))
    _completed_fits(emitted, rng)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_without_paths_or_rows(backend: str) -> None:
    """No draft gives one token of p, no row gives none, and a row that is no law gives none."""
    rng = np.random.default_rng(12)
    tokens, states = _iid_paths(2, rng, 4)
    tokens[0] = -1
    states[0, :, 1:] = -1
    tokens[1], states[1] = -1, -1
    p = [*P, (F(0), F(0), F(0))]
    states[2, :, 0] = V + 1
    emitted, winner = _run(BACKENDS[backend], "kseq", _paths(tokens, states), p=p)
    assert (emitted[0] >= 0).sum() == 1
    assert (emitted[1] < 0).all()
    assert (emitted[2] < 0).all()
    assert emitted[3, 0] >= 0
    assert (winner < 2).all()
