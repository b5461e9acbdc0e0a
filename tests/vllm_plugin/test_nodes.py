"""The node rules against exact laws, on the same uniforms, and their acceptance's closed form."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

import theory
from tests.vllm_plugin.node_cases import (
    EXACT,
    SCHEMES,
    Floats,
    Ints,
    cells,
    draw,
    nodes,
    products,
)
from theory.acceptance import Rule
from theory.accepted_mass import LEGAL
from theory.candidates import tuple_law
from theory.equivalence import goodness_of_fit, sample_size
from theory.exact import kseq_rho, kseq_verdict, node_law
from theory.judgement import RHO_BITS, judgement
from vllm_plugin import nodes as node_rules
from vllm_plugin import nodes_cpu
from vllm_plugin.nodes import DISTINCT, LANDING, RULES, Nodes, Verdict

Decide = Callable[[str, torch.Tensor, Nodes, torch.Tensor, torch.Tensor], Verdict]
BACKENDS = {"torch": node_rules.decide, "numba": nodes_cpu.decide}
Law = dict[tuple[tuple[int, ...], int, bool], float]
N = 200_000
FALSE_ALARM = 1e-9 / 500  # each


def test_rules_and_schemes_are_theirs() -> None:
    assert set(RULES) == set(theory.RULES) - {"coupled"}
    assert set(DISTINCT) == set(theory.acceptance.DISTINCT)
    assert set(LEGAL) == set(RULES)
    assert all(SCHEMES[rule] in LEGAL[rule] for rule in RULES)


def _exact(p: tuple[Fraction, ...], q: tuple[Fraction, ...], k: int, rule: Rule) -> Law:
    """Joint law of (candidates, token, accepted), by theory.exact."""
    if rule != "kseq":
        return {key: float(mass) for key, mass in node_law(p, q, k, rule=rule).items()}
    rho = kseq_rho(p, q, k, bits=RHO_BITS)
    return {
        (drawn, y, accepted): float(chance * mass)
        for drawn, chance in tuple_law(q, k, "iid").items()
        for (y, accepted), mass in kseq_verdict(p, q, drawn, rho).items()
    }


def _expected(
    rule: str, chances: Floats, law: Floats, drawn: tuple[int, ...], points: Floats
) -> tuple[Ints, Ints]:
    """What theory.judgement's chances and law decide at uniforms (n, k + 1)."""
    below = points[:, :-1] < chances
    accepted = np.where(below.any(1), below.argmax(1), -1)
    token = np.searchsorted(law.cumsum(), points[:, -1], side="right").clip(max=law.size - 1)
    if rule in LANDING:
        for j in reversed(range(len(drawn))):
            accepted = np.where(~below.any(1) & (token == drawn[j]), j, accepted)
    return np.where(below.any(1), np.array(drawn)[accepted], token), accepted


def _on_grid(
    decide: Decide, name: str, k: int, rule: Rule, dtype: torch.dtype, thin: float
) -> tuple[Law, int]:
    """The runtime's joint law by integration over a grid, and how many points it decides otherwise.

    sparse_optimal may have found another optimal coupling, so its points are not compared.
    """
    p, q = EXACT[name]
    tuples = tuple_law(q, k, SCHEMES[rule])  # type: ignore[arg-type]
    ids = np.array([i for i, mass in enumerate(q) if mass])
    law = np.array([float(q[i]) for i in ids])
    row = torch.tensor([[float(mass) for mass in p]], dtype=torch.float64).to(dtype)
    found: Law = {}
    different = 0
    for drawn, chance in tuples.items():
        exact_chances, exact_law = judgement(p, q, drawn, rule=rule)
        chances = np.array([float(c) for c in exact_chances])
        residual = np.array([float(m) for m in exact_law])
        if rule == "sparse_optimal":  # the coupling's own thresholds
            chances, residual = _coupling_of(row, ids, law, drawn)
        axes = [cells([c], thin) for c in chances]
        axes.append(cells(list(residual.cumsum()), thin))
        points = products([axis[0] for axis in axes])
        weights = products([axis[1] for axis in axes]).prod(1)
        sharp = ~products([axis[2].astype(float) for axis in axes]).any(1)
        n = len(points)
        batch = nodes(
            np.zeros(n, np.int64), np.tile(np.array(drawn), (n, 1)), np.tile(ids, (n, 1)),
            np.tile(law, (n, 1)),
        )  # fmt: skip
        u = torch.from_numpy(points)
        token, accepted = decide(rule, row, batch, u[:, :-1], u[:, -1])
        for y, ok, mass in zip(token.tolist(), (accepted >= 0).tolist(), weights, strict=True):
            key = (tuple(sorted(drawn)) if rule == "sparse_optimal" else drawn, y, ok)
            found[key] = found.get(key, 0.0) + float(chance) * mass
        if residual.any():
            wanted = _expected(rule, chances, residual, drawn, points)
            wrong = (token.numpy() != wanted[0]) | (accepted.numpy() != wanted[1])
            different += int((wrong & sharp).sum())
    return found, different


def _coupling_of(
    row: torch.Tensor, ids: Ints, law: Floats, drawn: tuple[int, ...]
) -> tuple[Floats, Floats]:
    batch = nodes(np.zeros(1, np.int64), np.array([drawn]), ids[None], law[None])
    held, q = node_rules.on_support(row, batch.rows, batch.law_ids, batch.law)
    chances, weights = node_rules.judge("sparse_optimal", held, q, batch)
    left = row[0].double().clone()
    left[batch.law_ids[0]] = weights[0]
    return chances[0].numpy(), (left / left.sum().clamp(min=1e-300)).numpy()


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_exact_rule_on_a_grid(backend: str, rule: Rule, name: str) -> None:
    """Every decision as in Fractions within 2e-9 of a threshold, and the joint law to 1e-6."""
    q = EXACT[name][1]
    for k in (1, 2, 3):
        if rule in DISTINCT and k > sum(mass > 0 for mass in q):
            continue
        if k == 3 and (backend == "torch" or name not in ("random", "reversed")):
            continue
        found, different = _on_grid(BACKENDS[backend], name, k, rule, torch.float64, 1e-9)
        assert different == 0
        assert sum(found.values()) == pytest.approx(1, abs=1e-9)
        if rule == "sparse_optimal":
            _compare_coupling(found, name, k)
            continue
        exact = _exact(*EXACT[name], k, rule)
        for key in found.keys() | exact.keys():
            assert found.get(key, 0.0) == pytest.approx(exact.get(key, 0.0), abs=1e-6), key


def _compare_coupling(found: Law, name: str, k: int) -> None:
    """Another optimal coupling than theory's has the same marginals."""
    p, q = EXACT[name]
    exact = node_law(p, q, k, rule="sparse_optimal")
    for y in range(len(p)):
        emitted = sum(mass for (_, token, _), mass in found.items() if token == y)
        assert emitted == pytest.approx(float(p[y]), abs=1e-6)
    for drawn in {key[0] for key in exact}:
        offered = sum(mass for (members, _, _), mass in found.items() if members == drawn)
        assert offered == pytest.approx(
            float(sum(mass for key, mass in exact.items() if key[0] == drawn)), abs=1e-6
        )
    accepted = sum(mass for (_, _, ok), mass in found.items() if ok)
    best = float(sum(mass for (_, _, ok), mass in exact.items() if ok))
    assert accepted == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_laws_move_nothing_by_more_than_their_rounding(backend: str, rule: Rule) -> None:
    found, different = _on_grid(BACKENDS[backend], "random", 2, rule, torch.float32, 1e-6)
    assert different == 0
    if rule != "sparse_optimal":
        exact = _exact(*EXACT["random"], 2, rule)
        for key in found.keys() | exact.keys():
            assert found.get(key, 0.0) == pytest.approx(exact.get(key, 0.0), abs=1e-5), key


def _sampled(
    decide: Decide, rule: str, p: Floats, q: Floats, k: int, *, seed: int = 1, n: int = N
) -> tuple[Ints, Ints, Ints]:
    """Candidates, tokens and accepted indices of n independent nodes with laws p and q (V,)."""
    rng = np.random.default_rng(seed)
    ids = np.flatnonzero(q)
    law = np.tile(q[ids], (n, 1))
    slots = draw(law, k, SCHEMES[rule], rng)
    candidates = np.where(slots >= 0, ids[slots.clip(min=0)], -1)
    batch = nodes(np.zeros(n, np.int64), candidates, np.tile(ids, (n, 1)), law)
    u = torch.from_numpy(rng.random((n, k + 1)))
    row = torch.from_numpy(p).float()[None]
    token, accepted = decide(rule, row, batch, u[:, :k], u[:, k])
    return candidates, token.numpy(), accepted.numpy()


def _wide(seed: int) -> tuple[Floats, Floats]:
    """p over 40 tokens and q over 7 of them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(40, 0.3))
    likely = np.argsort(-p)[:10]
    q = np.zeros(40)
    q[rng.permutation(likely)[:7]] = rng.dirichlet(np.full(7, 0.8))
    return p, q


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("rule", RULES)
def test_acceptance_is_the_closed_form(rule: Rule, k: int) -> None:
    """Within its confidence interval, and the emitted law is p; p in float32."""
    for seed in range(3):
        p, q = _wide(seed)
        _, token, accepted = _sampled(nodes_cpu.decide, rule, p, q, k)
        alpha = float(theory.acceptance_rate(p, q, k, rule=rule))
        # Bernstein's inequality: P(beyond) below FALSE_ALARM for every n
        level = np.log(2 / FALSE_ALARM)
        reach = np.sqrt(2 * alpha * (1 - alpha) * level / N) + level / N
        assert abs((accepted >= 0).mean() - alpha) < reach
        assert reach < 0.01  # so a rule that loses one acceptance in a hundred is noticed
        assert not _refuted(token, p)


def _refuted(token: Ints, p: Floats) -> bool:
    counts = np.bincount(token, minlength=p.size)
    return goodness_of_fit(counts, p, false_alarm=FALSE_ALARM).rejected


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_logits_give_their_own_law(rule: str) -> None:
    """Logits rounded to bfloat16, then float32: p is the softmax of what was rounded."""
    p, q = _wide(3)
    logits = torch.from_numpy(np.log(p + 1e-9)).bfloat16().float()
    law = logits.softmax(-1).double().numpy()
    _, token, _ = _sampled(nodes_cpu.decide, rule, law, q, 3)
    assert not _refuted(token, law)


def _rrs_unnormalised(
    p: torch.Tensor, q: torch.Tensor, slots: torch.Tensor, offered: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refused candidates leave q, which is not renormalised."""
    weights, left = p, q
    beyond = (1 - p.sum(1)).clamp(min=0)
    chances = torch.zeros_like(slots, dtype=p.dtype)
    for j in range(slots.shape[1]):
        slot = slots[:, j : j + 1]
        scaled = left * (weights.sum(1) + beyond)[:, None]
        chances[:, j : j + 1] = weights.gather(1, slot) / scaled.gather(1, slot)
        weights = (weights - scaled).clamp(min=0)
        left = left.scatter(1, slot, 0.0)
    return chances, weights


def _sorted_siblings(
    rule: str, p: torch.Tensor, batch: Nodes, u: torch.Tensor, v: torch.Tensor
) -> Verdict:
    order = batch.candidates.sort(dim=1).values
    return node_rules.decide(rule, p, Nodes(batch.rows, order, batch.law_ids, batch.law), u, v)


def _residual_forgotten(
    rule: str, p: torch.Tensor, batch: Nodes, u: torch.Tensor, v: torch.Tensor
) -> Verdict:
    token, accepted = node_rules.decide(rule, p, batch, u, v)
    plain = Nodes(batch.rows, batch.candidates * 0 - 1, batch.law_ids, batch.law)
    return torch.where(accepted < 0, node_rules.decide(rule, p, plain, u, v)[0], token), accepted


def _shared_noise(
    rule: str, p: torch.Tensor, batch: Nodes, u: torch.Tensor, v: torch.Tensor
) -> Verdict:
    return node_rules.decide(rule, p, batch, v[:, None].expand_as(u), v)


def _other_rule(other: str) -> Decide:
    return lambda _, p, batch, u, v: node_rules.decide(other, p, batch, u, v)


WRONG: dict[str, tuple[str, Decide]] = {
    "siblings in the wrong order": ("rrs_without_replacement", _sorted_siblings),
    "top candidates in the place of the draw": ("top_plus_one", _sorted_siblings),
    "distinct draws verified as iid": ("rrs_without_replacement", _other_rule("rrs")),
    "distinct draws verified by K-SEQ": ("rrs_without_replacement", _other_rule("kseq")),
    "top candidates taken for draws": ("top_plus_one", _other_rule("rrs_without_replacement")),
    "residual forgotten": ("rrs", _residual_forgotten),
    "residual forgotten, optimal": ("sparse_optimal", _residual_forgotten),
    "acceptance and residual share their noise": ("kseq", _shared_noise),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rules_are_refuted(name: str) -> None:
    rule, decide = WRONG[name]
    p, q = _laws_of_controls()
    assert not _refuted(_sampled(node_rules.decide, rule, p, q, 3)[1], p)
    assert _refuted(_sampled(decide, rule, p, q, 3)[1], p)


def test_rrs_without_renormalising_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = _laws_of_controls()
    monkeypatch.setitem(node_rules._JUDGEMENTS, "rrs_without_replacement", _rrs_unnormalised)
    assert _refuted(_sampled(node_rules.decide, "rrs_without_replacement", p, q, 3)[1], p)


def test_kseq_with_rho_one_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = _laws_of_controls()
    monkeypatch.setattr(node_rules, "_offers", lambda p, *_: torch.ones_like(p[:, 0]))
    assert _refuted(_sampled(node_rules.decide, "kseq", p, q, 3)[1], p)


def test_kseq_with_a_larger_rho_is_lossless_and_accepts_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p, q = _laws_of_controls()
    _, _, best = _sampled(node_rules.decide, "kseq", p, q, 3)
    monkeypatch.setattr(node_rules, "BISECTIONS", 0)  # rho = k
    _, token, accepted = _sampled(node_rules.decide, "kseq", p, q, 3)
    assert not _refuted(token, p)
    assert (accepted >= 0).mean() < (best >= 0).mean() - 0.005


def test_the_controls_have_power() -> None:
    """N tokens find TV 0.015 with probability above 0.99."""
    p, _ = _laws_of_controls()
    assert sample_size(p, 0.015, power=0.99, false_alarm=FALSE_ALARM) <= N


def _laws_of_controls() -> tuple[Floats, Floats]:
    p = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
    return p, np.array([0.15, 0.1, 0.35, 0.4, 0.0])
