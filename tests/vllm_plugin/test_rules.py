"""The rules against exact laws on a Markov toy: every batch row is one decoding step."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from theory.equivalence import goodness_of_fit, joint_counts, sample_size
from vllm_plugin import rules, rules_cpu
from vllm_plugin.emission import emit, on_support
from vllm_plugin.rules import Chains

Law = NDArray[np.float64]
Rule = Callable[[torch.Tensor, Chains, torch.Tensor, torch.Tensor], torch.Tensor]
V, K = 4, 3
N = 150_000
FALSE_ALARM = 1e-10  # each; the suite of this file stays below 1e-9 by a union over TESTS
TESTS = 64


def _laws(name: str) -> tuple[Law, Law]:
    """Markov laws p[last, next] and q[last, next]; the last state V is the start."""
    rng = np.random.default_rng(7)
    p = rng.dirichlet(np.full(V, 0.7), V + 1)
    if name == "random":
        return p, rng.dirichlet(np.full(V, 0.7), V + 1)
    if name == "reversed":
        order = p.argsort(axis=1)
        q = np.empty_like(p)
        np.put_along_axis(q, order, np.take_along_axis(p, order[:, ::-1], axis=1), axis=1)
        return p, q
    if name == "equal":
        return p, p.copy()
    if name == "point":
        return p, np.eye(V)[rng.integers(0, V, V + 1)]
    if name == "disjoint":
        p[:, :2] = 0
        q = np.zeros_like(p)
        q[:, :2] = rng.dirichlet(np.ones(2), V + 1)
        return p / p.sum(1, keepdims=True), q
    assert name == "truncated"  # p cut by top-p, q narrower than p's vocabulary
    p[:, 3] = 0
    q = rng.dirichlet(np.ones(V), V + 1)
    q[:, 0] = 0
    return p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)


def _draw(laws: Law, rng: np.random.Generator) -> NDArray[np.int64]:
    u = rng.random(laws.shape[0])[:, None] * laws.sum(1, keepdims=True)
    return (laws.cumsum(1) <= u).sum(1).clip(max=V - 1)


def _decode(
    rule: Rule,
    p: Law,
    q: Law,
    *,
    has_bonus: bool = True,
    ragged: bool = False,
    published: Law | None = None,
    drop: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
    seed: int = 1,
) -> NDArray[np.int64]:
    """N sequences of K + 1 tokens: one verified step each, then plain tokens from p."""
    rng = np.random.default_rng(seed)
    published = q if published is None else published
    tokens = np.zeros((N, K), np.int64)
    rows = np.empty((N, K + 1), np.int64)
    rows[:, 0] = V
    for i in range(K):
        tokens[:, i] = _draw(q[rows[:, i]], rng)
        rows[:, i + 1] = tokens[:, i]
    lengths = rng.integers(0, K + 1, N) if ragged else np.full(N, K)
    if drop is not None:  # the drafter gives up at a token it does not like: biased (trap 1)
        dropped = drop(tokens)
        lengths = np.where(dropped.any(1), dropped.argmax(1), lengths)
    if not has_bonus:
        lengths = np.maximum(lengths, 1)
    chains = Chains(
        torch.arange(N) * (K + 1),
        torch.from_numpy(lengths),
        torch.full((N,), has_bonus),
        torch.from_numpy(tokens),
        torch.arange(V).expand(N, K, V).contiguous(),
        torch.from_numpy(published[rows[:, :K]]),
    )
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand((N, K + 1), generator=generator, dtype=torch.float64)
    law = torch.from_numpy(p[rows].reshape(-1, V)).float()
    out = rule(law, chains, u[:, :K], u[:, K]).long().numpy()
    assert out.shape == (N, K + 1)
    emitted = (out >= 0).sum(1)
    assert (emitted >= 1).all()
    assert (emitted <= lengths + has_bonus).all()
    for i in range(K + 1):
        before = out[:, i - 1] if i else np.full(N, V)
        out[:, i] = np.where(i < emitted, out[:, i], _draw(p[before], rng))
    return out


def _joint(p: Law) -> Law:
    law = p[V]
    for _ in range(K):
        law = (law[..., None] * p[:V]).reshape(*law.shape, V)
    return law


def _fit(sequences: NDArray[np.int64], p: Law) -> bool:
    result = goodness_of_fit(
        joint_counts(sequences, V), _joint(p).ravel(), false_alarm=FALSE_ALARM * TESTS, tests=TESTS
    )
    return not result.rejected


LAWS = ("random", "reversed", "equal", "point", "disjoint", "truncated")
RULES = {
    "token": rules.verify_token,
    "block": rules.verify_block,
    "match": rules.verify_draws,
    "token, CPU": rules_cpu.verify_token,
    "block, CPU": rules_cpu.verify_block,
    "match, CPU": rules_cpu.verify_draws,
}
WITH_Q = [rule for rule in RULES if not rule.startswith("match")]


def test_power() -> None:
    """N sequences find a law that is off by TV 0.02 with probability above 0.99."""
    p, _ = _laws("random")
    need = sample_size(_joint(p).ravel(), 0.02, power=0.99, false_alarm=FALSE_ALARM)
    assert need <= N


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rule", RULES)
def test_emits_p(rule: str, law: str) -> None:
    p, q = _laws(law)
    assert _fit(_decode(RULES[rule], p, q), p)


@pytest.mark.parametrize("rule", RULES)
def test_emits_p_when_lengths_differ(rule: str) -> None:
    p, q = _laws("random")
    assert _fit(_decode(RULES[rule], p, q, ragged=True), p)


@pytest.mark.parametrize("rule", RULES)
def test_emits_p_without_a_bonus_row(rule: str) -> None:
    p, q = _laws("random")
    assert _fit(_decode(RULES[rule], p, q, has_bonus=False, ragged=True), p)


def _block_efficiency(rule: Rule, p: Law, q: Law) -> float:
    rng = np.random.default_rng(3)
    tokens = np.zeros((N, K), np.int64)
    rows = np.full((N, K + 1), V)
    for i in range(K):
        tokens[:, i] = _draw(q[rows[:, i]], rng)
        rows[:, i + 1] = tokens[:, i]
    chains = Chains(
        torch.arange(N) * (K + 1),
        torch.full((N,), K),
        torch.ones(N, dtype=torch.bool),
        torch.from_numpy(tokens),
        torch.arange(V).expand(N, K, V).contiguous(),
        torch.from_numpy(q[rows[:, :K]]),
    )
    u = torch.rand((N, K + 1), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    law = torch.from_numpy(p[rows].reshape(-1, V)).float()
    return float((rule(law, chains, u[:, :K], u[:, K]) >= 0).sum(1).double().mean())


def _token_efficiency(p: Law, q: Law) -> float:
    """Expected tokens a step of the token rule: 1 + sum over depths of prod accepted, exactly."""
    alive, total = np.eye(V + 1)[V], 1.0
    for _ in range(K):
        step = alive @ np.pad(np.minimum(p, q), ((0, 0), (0, 1)))
        total += step.sum()
        alive = step
    return float(total)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
@pytest.mark.parametrize("has_bonus", [True, False])
def test_both_back_ends_emit_the_same_tokens(rule: str, law: str, has_bonus: bool) -> None:
    p, q = _laws(law)
    runs = [
        _decode(RULES[name], p, q, has_bonus=has_bonus, ragged=True)
        for name in (rule, f"{rule}, CPU")
    ]
    different = (runs[0] != runs[1]).any(axis=1).sum()
    assert different <= 3  # a uniform within rounding of a threshold


@pytest.mark.parametrize("law", LAWS)
def test_token_rule_reaches_its_closed_form(law: str) -> None:
    p, q = _laws(law)
    assert _block_efficiency(rules.verify_token, p, q) == pytest.approx(
        _token_efficiency(p, q), abs=6 * K / N**0.5
    )


@pytest.mark.parametrize("law", LAWS)
def test_match_rule_accepts_what_the_target_draws_too(law: str) -> None:
    p, q = _laws(law)
    alive, expected = np.eye(V + 1)[V], 1.0
    for _ in range(K):
        alive = np.append(alive @ (p * q), 0.0)
        expected += alive.sum()
    assert _block_efficiency(rules.verify_draws, p, q) == pytest.approx(
        expected, abs=6 * K / N**0.5
    )


@pytest.mark.parametrize("law", LAWS)
def test_block_rule_is_never_below_the_token_rule(law: str) -> None:
    p, q = _laws(law)
    gain = _block_efficiency(rules.verify_block, p, q) - _token_efficiency(p, q)
    if law == "point":
        assert gain == pytest.approx(0, abs=6 * K / N**0.5)
    elif law == "random":
        assert gain > 0.01
    else:
        assert gain > -6 * K / N**0.5


def _finish(
    p: torch.Tensor, chains: Chains, kept: torch.Tensor, scale: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """The kept drafts and one token from norm((scale p - q)+)."""
    each = torch.arange(N)
    place = kept.clamp(max=K - 1)
    rows = chains.first_rows + kept
    ids, law = chains.law_ids[each, place], chains.law[each, place]
    held, q = on_support(p, rows, ids, law)
    left = torch.where((kept == K)[:, None], held, (held - q / scale[:, None]).clamp(min=0))
    return rules.assemble(chains, kept, emit(p, rows, ids, held, left, v))


def _without_residual(
    p: torch.Tensor, chains: Chains, u: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Refusals answered from p."""
    kept = (rules.verify_token(p, chains, u, v) >= 0).sum(1) - 1
    return _finish(p, chains, kept, torch.full_like(v, 1e300), v)


def _equality(p: torch.Tensor, chains: Chains, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A draw from p compared with a stochastic draft, with the residual of another rule."""
    argmax = p.argmax(-1)[chains.first_rows[:, None] + torch.arange(K)]
    kept = (argmax == chains.tokens).long().cumprod(1).sum(1)
    return _finish(p, chains, kept, torch.ones_like(v), v)


def _block_stops_early(
    p: torch.Tensor, chains: Chains, u: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """The block rule kept up to its first failure instead of its last success."""
    rows = chains.first_rows[:, None] + torch.arange(K)
    held, q = on_support(p, rows, chains.law_ids, chains.law)
    drawn = chains.law_ids == chains.tokens[:, :, None]
    ratios = torch.where(drawn, held, 0.0).sum(-1) / torch.where(drawn, q, 0.0).sum(-1)
    walk = ratios.log().cumsum(1)
    reach = (walk - walk.cummax(1).values.clamp(min=0)).exp()
    mass = (reach[:, :-1, None] * held[:, 1:] - q[:, 1:]).clamp(min=0).sum(-1)
    thresholds = reach.clone()
    thresholds[:, :-1] = mass / (mass + 1 - reach[:, :-1])
    kept = (u < thresholds).long().cumprod(1).sum(1)
    scale = torch.cat([torch.ones_like(v)[:, None], reach], 1).gather(1, kept[:, None])[:, 0]
    return _finish(p, chains, kept, scale, v)


@pytest.mark.parametrize("wrong", [_without_residual, _equality, _block_stops_early])
def test_wrong_rules_are_refuted(wrong: Rule) -> None:
    p, q = _laws("random")
    assert not _fit(_decode(wrong, p, q), p)


@pytest.mark.parametrize("rule", WITH_Q)
def test_a_q_that_was_not_drawn_from_is_refuted(rule: str) -> None:
    p, q = _laws("random")
    other = 0.8 * q + 0.2 / V
    assert not _fit(_decode(RULES[rule], p, q, published=other), p)


@pytest.mark.parametrize("rule", RULES)
def test_an_unnormalised_q_is_normalised(rule: str) -> None:
    """Whatever draws from unnormalised weights draws from their normalised law."""
    p, q = _laws("random")
    assert _fit(_decode(RULES[rule], p, q, published=0.8 * q), p)


@pytest.mark.parametrize("rule", WITH_Q)
def test_dropping_a_draft_for_its_value_is_refuted(rule: str) -> None:
    p, q = _laws("random")
    assert not _fit(_decode(RULES[rule], p, q, drop=lambda x: x == 0), p)


def test_match_rule_follows_the_choices() -> None:
    chains = Chains(
        torch.arange(4) * 3,
        torch.tensor([2, 2, 1, 0]),
        torch.ones(4, dtype=torch.bool),
        torch.tensor([[5, 6], [5, 6], [5, 0], [0, 0]]),
        torch.zeros(4, 2, 1, dtype=torch.long),
        torch.ones(4, 2, 1, dtype=torch.float64),
    )
    choices = torch.tensor([[5, 6, 7], [5, 9, 9], [5, 8, 9], [3, 9, 9]])
    assert rules.verify_match(choices, chains).tolist() == [
        [5, 6, 7],
        [5, 9, -1],
        [5, 8, -1],
        [3, -1, -1],
    ]


def test_a_residual_of_zero_mass_still_emits_a_token() -> None:
    """p = q to the last bit, and a uniform at the very top: no token out of range."""
    p = torch.full((2, V), 1 / V)
    chains = Chains(
        torch.tensor([0]),
        torch.tensor([1]),
        torch.tensor([True]),
        torch.tensor([[1]]),
        torch.arange(V).expand(1, 1, V).contiguous(),
        torch.full((1, 1, V), 1 / V, dtype=torch.float64),
    )
    top = torch.full((1, 1), 1 - 2**-53, dtype=torch.float64)
    for rule in WITH_Q:
        tokens = RULES[rule](p, chains, top, top[:, 0])
        assert ((tokens >= 0) & (tokens < V)).all()
