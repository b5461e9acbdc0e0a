"""Audits of simulated engines: right ones pass, wrong ones do not, and no promise is broken."""

import math
from itertools import product

import numpy as np
import pytest
from markov_engine import (
    VOCABULARY,
    audit,
    distance,
    heads,
    target,
    under_a_grammar,
    wrong_law,
)

from theory.audit_bets import TILTS, PrefixBets, tilted_log_factors
from theory.audit_events import EVENTS, TextMemory, event_row
from theory.audit_statistics import SequentialAudit
from theory.head_law import HeadLaw, tempered_head
from theory.wrong_rules import WRONG_RULES

P = target()
OF_GRAMMARS = ("grammar_refusal_from_p", "renormalised_over_valid_tokens")


def test_a_right_engine_passes_with_margin() -> None:
    statistics = audit(P, P, most=60_000)
    assert statistics.cleared
    assert not statistics.refuted
    assert statistics.tv_bound < statistics.resolution
    assert statistics.log_evidence < 2 < statistics.threshold  # 13.8
    assert statistics.tested < 40_000


@pytest.mark.parametrize("name", WRONG_RULES)
def test_every_wrong_rule_is_refuted(name: str) -> None:
    p = under_a_grammar(P) if name in OF_GRAMMARS else P
    wrong = wrong_law(WRONG_RULES[name], p)
    assert distance(p, wrong) > 0.03  # the fault shows at all
    # Short texts: faults whose sign changes from prefix to prefix show where prefixes come back.
    statistics = audit(p, wrong, most=150_000, length=8, clear=False)
    assert statistics.refuted
    assert not statistics.cleared


@pytest.mark.parametrize("temperature", [0.8, 1.2])
def test_a_wrong_temperature_is_refuted(temperature: float) -> None:
    wrong = P ** (1 / temperature)
    assert audit(P, wrong / wrong.sum(axis=1, keepdims=True), most=20_000).refuted


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_argmax_in_place_of_a_draw_is_refuted(share: float) -> None:
    """What uninitialised temperatures of drafted rows look like, for a share of the tokens."""
    greedy = np.eye(VOCABULARY)[P.argmax(axis=1)]
    assert audit(P, (1 - share) * P + share * greedy, most=40_000).refuted


def test_a_token_that_cannot_occur_is_refuted_soon() -> None:
    """A whole law with an impossible token, emitted in 2 % of the draws."""
    possible = P.copy()
    possible[:, 5] = 0
    possible /= possible.sum(axis=1, keepdims=True)
    tested = SequentialAudit(tolerance=1e-4)
    laws = heads(np.maximum(possible, 1e-9))
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = [int(rng.choice(VOCABULARY, p=possible[0])) for _ in range(20)]
        text = [5 if rng.random() < 0.02 else x for x in text]
        tested.observe([0], text, [laws[0]] * 20)
    assert tested.refuted


def test_a_deviation_within_the_tolerance_is_not_refuted() -> None:
    """Laws measured with noise: whatever stays within the slack must not look like evidence."""
    off = 0.995 * P + 0.005 * np.eye(VOCABULARY)[P.argmax(axis=1)]
    assert np.abs(off - P).sum(axis=1).max() / 2 < 0.005
    tolerant = audit(P, off, most=60_000, tolerance=0.005, resolution=0.03, clear=False)
    assert not tolerant.refuted
    assert tolerant.log_evidence < 2


@pytest.mark.parametrize("slack", [0.0, 0.01])
@pytest.mark.parametrize("p", [0.0, 1e-6, 0.03, 0.5, 0.99, 1.0])
def test_no_tilt_gains_on_average_within_the_slack(p: float, slack: float) -> None:
    """Exact: the mean factor is at most 1 for every law within the slack, and reaches 1 at one."""
    happened, not_happened = (
        np.exp(tilted_log_factors(np.array([[p]]), np.array([[x]]), np.array([slack])))[0]
        for x in (1.0, 0.0)
    )
    edges = np.clip([p - slack, p, p + slack], 0, 1)
    means = np.array([q * happened + (1 - q) * not_happened for q in edges])
    assert means.max() <= 1 + 1e-12
    assert means.max(axis=0) == pytest.approx(np.ones(TILTS.size))


def test_an_event_that_is_not_posed_costs_and_gains_nothing() -> None:
    rows = tilted_log_factors(np.array([[np.nan]]), np.array([[0.0]]), np.array([0.01]))
    assert rows == pytest.approx(np.zeros((1, TILTS.size)))


@pytest.mark.parametrize("slack", [0.0, 0.02])
def test_bets_after_a_prefix_are_fair(slack: float) -> None:
    """Exact, by enumeration of four visits: mean wealth 1, and at most 1 within the slack."""
    p = np.array([0.6, 0.3, 0.1])
    law = tempered_head(np.arange(3), np.log(p), 1.0, vocabulary=3)
    for true in (p, p + slack * np.array([1, -1, 0]), p + slack * np.array([-1, 0, 1])):
        mean = 0.0
        for tokens in product(range(3), repeat=4):
            bets = PrefixBets()
            bets.bet((), law, 0, slack)  # the first visit of a prefix is not bet on
            for x in tokens:
                bets.bet((), law, x, slack)
            mean = mean + math.prod(true[x] for x in tokens) * np.exp(bets.log_wealth)
        assert np.all(mean <= 1 + 1e-9)
        if slack == 0:
            assert mean == pytest.approx(np.ones(3))


def test_false_alarms_keep_their_budget() -> None:
    """Rate of right engines ever refuted within 250 tokens, at a budget that can be counted."""
    budget, runs = 0.2, 150
    alarms = sum(
        audit(P, P, most=250, seed=seed, clear=False, budget=budget, length=9).refuted
        for seed in range(runs)
    )
    # P(binomial(150, 0.2) >= 45) = 0.2 %; a test that cannot fail would be one with alarms == 0
    assert 0 < alarms < 45


def rows(rng: np.random.Generator, n: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Rank-1 chances between 0.3 and 0.9 and draws in which it happens more often by ``shift``."""
    p = rng.uniform(0.3, 0.9, n)
    u = rng.random(n)
    none = np.full(n, np.nan)
    chances = np.column_stack([p, 0.8 * (1 - p), 0.2 * (1 - p), none, p, p])
    first = u < p + shift
    second = ~first & (u < p + shift + 0.8 * (1 - p - shift))
    happened = np.column_stack([first, second, ~first & ~second, first & False, first, first])
    return chances, happened.astype(float)


def test_the_bound_holds_at_every_moment() -> None:
    """Engines that deviate by the resolution: ever cleared in at most 5 % of the audits."""
    runs, wrong = 200, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        statistics = SequentialAudit(budget=1e-300, resolution=0.03, miss=0.05)
        for _ in range(40):
            statistics.settle(*rows(rng, 250, 0.03), np.full(250, 1e-4))
            if statistics.cleared:
                wrong += 1
                break
    assert wrong <= 0.05 * runs


def test_the_bound_falls_and_covers() -> None:
    rng = np.random.default_rng(0)
    statistics = SequentialAudit(budget=1e-300)
    bounds = []
    for _ in range(6):
        statistics.settle(*rows(rng, 4000, 0.01), np.full(4000, 1e-4))
        bounds.append(statistics.look().tv_bound)
    assert min(bounds) > 0.01
    assert bounds[-1] < 0.03 < bounds[0]
    assert [look.tested for look in statistics.curve] == [4000 * i for i in range(1, 7)]


@pytest.mark.parametrize("n", [1500, 3000, 6000])
def test_power_is_a_lower_estimate(n: int) -> None:
    runs, refuted, powers = 60, 0, []
    for seed in range(runs):
        statistics = SequentialAudit()
        statistics.settle(*rows(np.random.default_rng(seed), n, 0.05), np.full(n, 1e-4))
        refuted += statistics.refuted
        powers.append(statistics.power(0.05))
    rate = refuted / runs
    assert np.mean(powers) <= rate + 2 * math.sqrt(max(rate * (1 - rate), 0.02) / runs)
    if n == 6000:
        assert np.mean(powers) > 0.9


def test_tokens_whose_law_is_not_determined_are_counted_and_left_out() -> None:
    statistics = SequentialAudit()
    vague = HeadLaw(np.arange(6), np.full(6, 0.1), 0.2)
    sharp = heads(P)[0]
    statistics.observe([0], [1, 2, 3, 4], [vague, sharp, vague, sharp])
    assert (statistics.tested, statistics.undetermined) == (2, 1)
    with pytest.raises(ValueError, match="3 tokens need as many laws; got 1"):
        statistics.observe([0], [1, 2, 3], [sharp])


def test_an_audit_without_tokens_knows_nothing() -> None:
    statistics = SequentialAudit()
    assert statistics.tv_bound == 1
    assert statistics.power(0.02) == 0
    assert not statistics.cleared
    assert not statistics.refuted


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": 0.0}, "budget must lie strictly between 0 and 1; got 0.0"),
        ({"resolution": 1.0}, "resolution must lie"),
        ({"miss": -1.0}, "miss must lie"),
        ({"tolerance": 0.03}, "must be at least 0 and below the resolution, 0.02"),
        ({"tolerance": -0.1}, "must be at least 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SequentialAudit(**settings)


def test_memory_recalls_what_followed() -> None:
    memory = TextMemory()
    memory.learn([1, 2, 3, 1, 2, 4])
    assert memory.echo([9, 1, 2]) == 4  # last seen before 4
    assert memory.echo([3, 1, 2]) == 4
    assert memory.echo([7]) is None
    assert memory.habit([1]) == 2
    memory.learn([2, 3])
    assert memory.habit([2]) == 3
    assert memory.echo([2]) == 3


def test_events_of_a_position() -> None:
    p = np.array([0.05, 0.4, 0.2, 0.15, 0.1, 0.06, 0.04])
    law = tempered_head(np.arange(7), np.log(p), 1.0, vocabulary=7, keep=5)
    chances, happened = event_row(law, 2, echo=2, habit=1)
    assert dict(zip(EVENTS, chances, strict=True)) == pytest.approx(
        {
            "rank 1": 0.4,
            "ranks 2-4": 0.45,
            "ranks above 4": 0.15,
            "rare": np.nan,  # the tail has 9 %
            "echo": 0.2,
            "habit": 0.4,
        },
        nan_ok=True,
    )
    assert happened.tolist() == [0, 1, 0, 0, 1, 0]
    chances, happened = event_row(law, 0, echo=0, habit=None)  # outside the head: not posed
    assert np.isnan(chances[-2:]).all()
    assert happened.tolist() == [0, 0, 1, 0, 0, 0]


def test_rare_tokens_are_the_least_probable_ones() -> None:
    p = np.array([0.9, 0.096, 0.002, 0.0015, 0.0005])
    law = tempered_head(np.arange(5), np.log(p), 1.0, vocabulary=5)
    for token, rare in enumerate([0, 0, 1, 1, 1]):
        chances, happened = event_row(law, token, None, None)
        assert chances[EVENTS.index("rare")] == pytest.approx(0.004)
        assert happened[EVENTS.index("rare")] == rare
    whole = tempered_head(np.arange(2), np.log([0.7, 0.3]), 1.0, vocabulary=2)
    assert event_row(whole, 1, None, None)[0][EVENTS.index("rare")] == pytest.approx(0)
