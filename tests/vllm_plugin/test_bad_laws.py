"""Bad input of a rule has the result that its documentation states, and harms nobody else."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.vllm_plugin.node_cases import draw, nodes, random_nodes
from theory.equivalence import goodness_of_fit
from vllm_plugin import nodes as node_rules
from vllm_plugin import nodes_cpu, rules, rules_cpu, sparse_flow
from vllm_plugin.nodes import DISTINCT, RULES, Nodes, Verdict
from vllm_plugin.rules import Chains

N = 30_000
FALSE_ALARM = 1e-9 / 100  # each
Decide = Callable[[str, torch.Tensor, Nodes, torch.Tensor, torch.Tensor], Verdict]
BACKENDS: dict[str, Decide] = {"torch": node_rules.decide, "numba": nodes_cpu.decide}
CHAINS = {
    "token": (rules.verify_token, rules_cpu.verify_token),
    "block": (rules.verify_block, rules_cpu.verify_block),
    "match": (rules.verify_draws, rules_cpu.verify_draws),
}
P = np.array([0.35, 0.3, 0.2, 0.1, 0.05])
Q = np.array([0.1, 0.2, 0.3, 0.4])


def _tokens(
    decide: Decide,
    rule: str,
    candidates: np.ndarray,
    law: np.ndarray = Q,
    p: np.ndarray = P,
    ids: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    n, k = candidates.shape
    ids = np.arange(len(law)) if ids is None else ids
    batch = nodes(np.zeros(n, np.int64), candidates, np.tile(ids, (n, 1)), np.tile(law, (n, 1)))
    u = torch.from_numpy(np.random.default_rng(3).random((n, k + 1)))
    token, accepted = decide(rule, torch.from_numpy(p).float()[None], batch, u[:, :k], u[:, k])
    return token.numpy(), accepted.numpy()


def _fits(tokens: np.ndarray, p: np.ndarray) -> bool:
    counts = np.bincount(tokens, minlength=p.size)
    return not goodness_of_fit(counts, p, false_alarm=FALSE_ALARM).rejected


def _drawn(rule: str, k: int, law: np.ndarray = Q) -> np.ndarray:
    scheme = "iid" if rule not in DISTINCT else "without_replacement"
    if rule == "top_plus_one":
        scheme = rule
    return draw(np.tile(law / law.sum(), (N, 1)), k, scheme, np.random.default_rng(4))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [float("nan"), 0.0])
def test_a_row_that_is_no_law_gives_no_token_and_harms_no_neighbour(
    backend: str, rule: str, bad: float
) -> None:
    p, batch, u, v = random_nodes(rule, 50, 70, 5, 3, seed=1)
    whole = BACKENDS[backend](rule, p, batch, u, v)
    p[::2] = bad
    token, accepted = BACKENDS[backend](rule, p, batch, u, v)
    assert (token[::2] == -1).all()
    assert (accepted[::2] == -1).all()
    assert torch.equal(token[1::2], whole[0][1::2])
    assert torch.equal(accepted[1::2], whole[1][1::2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_a_row_outside_p_gives_no_token(backend: str, rule: str) -> None:
    p, batch, u, v = random_nodes(rule, 4, 9, 4, 2, seed=2)
    batch.rows[:] = torch.tensor([-1, 4, 2**40, 0])
    token, accepted = BACKENDS[backend](rule, p, batch, u, v)
    assert token[:3].tolist() == accepted[:3].tolist() == [-1, -1, -1]
    assert token[3] >= 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("factor", [0.6, 1.7])
def test_a_q_that_does_not_sum_to_one_is_normalised(backend: str, rule: str, factor: float) -> None:
    candidates = _drawn(rule, 3)
    token, accepted = _tokens(BACKENDS[backend], rule, candidates, Q * factor)
    assert _fits(token, P)
    assert np.array_equal(accepted, _tokens(BACKENDS[backend], rule, candidates)[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("law", [Q * 0, Q * float("nan"), -Q])
def test_a_q_without_mass_offers_nothing(backend: str, rule: str, law: np.ndarray) -> None:
    token, accepted = _tokens(BACKENDS[backend], rule, _drawn(rule, 2), law)
    assert _fits(token, P)
    if rule not in node_rules.LANDING:
        assert (accepted == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stranger", [-7, 4, 10**9])
@pytest.mark.parametrize("place", [0, 2])
def test_a_candidate_that_q_cannot_have_drawn_ends_the_offers(
    backend: str, rule: str, stranger: int, place: int
) -> None:
    """Token 4 has p > 0 but no q; the others are no tokens at all. The law stays p."""
    candidates = _drawn(rule, 3)
    candidates[:, place] = stranger
    if rule == "top_plus_one" and (place == 0 or stranger < 0):
        return  # the last candidate from 0 on is then no draw from q without the others
    token, accepted = _tokens(BACKENDS[backend], rule, candidates)
    assert _fits(token, P)
    if rule not in node_rules.LANDING:
        assert (accepted < place).all()
    landed = accepted >= 0
    assert (np.take_along_axis(candidates, accepted.clip(min=0)[:, None], 1)[landed, 0]
            == token[landed]).all()  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "sparse_optimal"])
def test_a_q_published_without_some_of_its_tokens_keeps_the_law(backend: str, rule: str) -> None:
    """Drawn from five tokens, published with three: draws of the other two end the offers."""
    full = np.array([0.1, 0.3, 0.25, 0.15, 0.2])
    token, _ = _tokens(BACKENDS[backend], rule, _drawn(rule, 3, full), full[:3])
    assert _fits(token, P)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_more_candidates_than_support(backend: str, rule: str) -> None:
    """Distinct draws stop when q has no further token: -1 follows, and the law stays p."""
    law = np.array([0.3, 0.7])
    candidates = _drawn(rule, 4, law)
    if rule in DISTINCT:
        assert (candidates[:, 2:] == -1).all()
    token, accepted = _tokens(BACKENDS[backend], rule, candidates, law)
    assert _fits(token, P)
    assert (accepted >= 0).mean() > 0.2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", ["rrs_without_replacement", "sparse_optimal"])
def test_a_repeated_candidate_of_a_distinct_rule_ends_the_offers(backend: str, rule: str) -> None:
    candidates = _drawn(rule, 3)
    candidates[:, 2] = candidates[:, 0]
    token, accepted = _tokens(BACKENDS[backend], rule, candidates)
    assert _fits(token, P)
    assert (accepted < 2).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_temperature_zero_emits_the_one_token(backend: str, rule: str) -> None:
    greedy = np.array([0.0, 0.0, 1.0, 0.0, 0.0])
    candidates = _drawn(rule, 3)
    token, accepted = _tokens(BACKENDS[backend], rule, candidates, p=greedy)
    assert (token == 2).all()
    offered = candidates if rule != "token" else candidates[:, :1]
    if rule in ("match", "rrs", "rrs_without_replacement", "top_plus_one", "token"):
        assert np.array_equal(accepted >= 0, (offered == 2).any(1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_a_drafted_token_beyond_the_vocabulary_is_refused(backend: str, rule: str) -> None:
    """q knows a token that p does not: its p is 0."""
    ids = np.array([0, 1, 2, 77])
    slots = _drawn(rule, 2)
    token, accepted = _tokens(BACKENDS[backend], rule, ids[slots], ids=ids)
    assert _fits(token, P)
    chosen = np.take_along_axis(ids[slots], accepted.clip(min=0)[:, None], 1)[:, 0]
    assert (chosen[accepted >= 0] != 77).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_support_too_wide_for_the_optimal_coupling_is_refused(backend: str) -> None:
    wide = sparse_flow.MAX_SUPPORT + 1
    p, batch, u, v = random_nodes("sparse_optimal", 2, 40, wide, 2, seed=0)
    with pytest.raises(ValueError, match="at most 16 entries, got 17"):
        BACKENDS[backend]("sparse_optimal", p, batch, u, v)


def _chains(tokens: list[int], law_ids: list[list[int]], law: np.ndarray = Q) -> Chains:
    steps = len(tokens)
    return Chains(
        torch.arange(N) * 0,
        torch.full((N,), steps),
        torch.ones(N, dtype=torch.bool),
        torch.tensor(tokens).expand(N, steps).contiguous(),
        torch.tensor(law_ids).expand(N, steps, 4).contiguous(),
        torch.from_numpy(law).expand(N, steps, 4).contiguous(),
    )


@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize("rule", CHAINS)
@pytest.mark.parametrize("stranger", [-1, 4, 10**9])
def test_a_chain_ends_before_a_draft_that_q_cannot_have_drawn(
    rule: str, back: int, stranger: int
) -> None:
    chains = _chains([stranger, 0], [[0, 1, 2, 3]] * 2)
    p = torch.from_numpy(np.tile(P, (3, 1))).float()
    u = torch.rand((N, 3), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    out = CHAINS[rule][back](p, chains, u[:, :2], u[:, 2]).numpy()
    assert _fits(out[:, 0], P)
    if rule != "match":
        assert (out[:, 1:] == -1).all()


@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize("rule", CHAINS)
@pytest.mark.parametrize("bad", [float("nan"), 0.0])
def test_a_chain_ends_before_a_row_that_is_no_law(rule: str, back: int, bad: float) -> None:
    chains = _chains([0, 1], [[0, 1, 2, 3]] * 2)
    p = torch.from_numpy(np.stack([P, np.full(5, bad), P])).float()
    u = torch.rand((N, 3), generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    out = CHAINS[rule][back](p, chains, u[:, :2], u[:, 2]).numpy()
    assert (out[:, 1:] == -1).all()
    assert ((out[:, 0] >= 0) & (out[:, 0] < 5)).all()
    out = CHAINS[rule][back](p * bad, chains, u[:, :2], u[:, 2]).numpy()
    assert (out == -1).all()
