"""The chain rules against their exact laws on the same uniforms, on grids that resolve them."""

from collections.abc import Callable
from fractions import Fraction as F
from itertools import product

import numpy as np
import pytest
import torch

from tests.vllm_plugin.node_cases import Floats, Ints, cells, products
from theory.exact import residual
from theory.exact_sequences import (
    SequenceLaw,
    block_constants,
    block_emitted_law,
    emitted_law,
)
from vllm_plugin import rules, rules_cpu
from vllm_plugin.rules import Chains

V, K = 3, 2
THIN = 1e-9
Law = tuple[F, ...]
Rule = Callable[[torch.Tensor, Chains, torch.Tensor, torch.Tensor], torch.Tensor]
RULES: dict[str, dict[str, Rule]] = {
    "torch": {
        "token": rules.verify_token, "block": rules.verify_block, "match": rules.verify_draws,
    },
    "numba": {
        "token": rules_cpu.verify_token, "block": rules_cpu.verify_block,
        "match": rules_cpu.verify_draws,
    },
}  # fmt: skip
# Markov laws by the last token; the last row is the start.
P: list[Law] = [
    (F(1, 2), F(3, 10), F(1, 5)),
    (F(1, 8), F(5, 8), F(1, 4)),
    (F(0), F(2, 3), F(1, 3)),
    (F(3, 5), F(3, 10), F(1, 10)),
]
Q: list[Law] = [
    (F(1, 10), F(1, 5), F(7, 10)),
    (F(3, 4), F(1, 4), F(0)),
    (F(1, 8), F(1, 4), F(5, 8)),
    (F(3, 10), F(1, 5), F(1, 2)),
]


def target(prefix: tuple[int, ...]) -> Law:
    return P[prefix[-1] if prefix else V]


def draft(prefix: tuple[int, ...]) -> Law:
    return Q[prefix[-1] if prefix else V]


def _quantile(law: Law, u: Floats) -> Ints:
    edges = np.cumsum([float(mass) for mass in law])
    return np.searchsorted(edges, u, side="right").clip(max=V - 1)


def _edges(laws: list[Law]) -> list[float]:
    return [float(sum(law[: i + 1])) for law in laws for i in range(V)]


def _exact(rule: str, drawn: tuple[int, ...]) -> tuple[list[list[float]], Callable[..., Ints]]:
    """Thresholds of each uniform, and what is emitted at given uniforms (n, K + 1)."""
    prefixes = [drawn[:i] for i in range(K + 1)]
    if rule == "match":
        laws = [target(prefix) for prefix in prefixes]

        def emitted(u: Floats) -> Ints:
            out = np.stack([_quantile(law, u[:, i]) for i, law in enumerate(laws)], axis=1)
            agreed = np.cumprod(out[:, :K] == np.array(drawn), axis=1).sum(1)
            return np.where(np.arange(K + 1) <= agreed[:, None], out, -1)

        return [_edges([law]) for law in laws], emitted
    if rule == "block":
        _, keep, corrections = block_constants(target, draft, drawn)
        chances = keep[1:]
    else:
        chances = [
            min(F(1), target(prefix)[x] / draft(prefix)[x])
            for prefix, x in zip(prefixes, drawn, strict=False)
        ]
        corrections = [residual(target(prefix), draft(prefix)) for prefix in prefixes[:K]]
        corrections.append(target(drawn))

    def decided(u: Floats) -> Ints:
        passed = u[:, :K] < np.array([float(chance) for chance in chances])
        if rule == "block":
            kept = (passed * np.arange(1, K + 1)).max(1)
        else:
            kept = np.cumprod(passed, axis=1).sum(1)
        out = np.tile(np.array([*drawn, -1]), (len(u), 1))
        for i, law in enumerate(corrections):
            out[kept == i, i] = _quantile(law, u[kept == i, K])
        return np.where(np.arange(K + 1) <= kept[:, None], out, -1)

    thresholds = [[float(chance)] for chance in chances]
    return [*thresholds, _edges([law for law in corrections if any(law)])], decided


def _law(rule: str) -> SequenceLaw:
    if rule == "block":
        return block_emitted_law(target, draft, K)
    return emitted_law(target, draft, K, 1, rule="token" if rule == "token" else "match")


@pytest.mark.parametrize("backend", RULES)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_every_point_and_the_joint_law_are_exact(rule: str, backend: str) -> None:
    found: dict[tuple[int, ...], float] = {}
    for drawn in product(range(V), repeat=K):
        chance = float(draft(())[drawn[0]] * draft(drawn[:1])[drawn[1]])
        if not chance:
            continue
        breaks, emitted = _exact(rule, drawn)
        axes = [cells(axis, THIN) for axis in breaks]
        points, widths = (products([axis[i] for axis in axes]) for i in (0, 1))
        sharp = ~products([axis[2].astype(float) for axis in axes]).any(1)
        out = _run(RULES[backend][rule], drawn, points)
        assert (out == emitted(points))[sharp].all()
        for tokens, mass in zip(out.tolist(), widths.prod(1) * chance, strict=True):
            key = tuple(token for token in tokens if token >= 0)
            found[key] = found.get(key, 0.0) + mass
    exact = {tokens: float(mass) for tokens, mass in _law(rule).items()}
    for tokens in found.keys() | exact.keys():
        assert found.get(tokens, 0.0) == pytest.approx(exact.get(tokens, 0.0), abs=1e-6), tokens


def _run(rule: Rule, drawn: tuple[int, ...], points: Floats) -> Ints:
    n = len(points)
    states = [V, *drawn]
    p = torch.tensor([[float(mass) for mass in P[s]] for s in states], dtype=torch.float64)
    q = torch.tensor([[float(mass) for mass in Q[s]] for s in states[:K]], dtype=torch.float64)
    chains = Chains(
        torch.zeros(n, dtype=torch.int64),
        torch.full((n,), K),
        torch.ones(n, dtype=torch.bool),
        torch.tensor(drawn).expand(n, K).contiguous(),
        torch.arange(V).expand(n, K, V).contiguous(),
        q.expand(n, K, V).contiguous(),
    )
    u = torch.from_numpy(points)
    return rule(p, chains, u[:, :K], u[:, K]).long().numpy()
