"""Heads of laws: exact where everything is known, and never further off than they say."""

import numpy as np
import pytest

from theory.head_law import head_distance, tempered_head


def law_at(p: np.ndarray, temperature: float) -> np.ndarray:
    weights = p ** (1 / temperature)
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.6])
def test_a_whole_law_is_tempered_exactly(temperature: float) -> None:
    p = np.random.default_rng(0).dirichlet(np.full(40, 0.4))
    head = tempered_head(np.arange(40), np.log(p), temperature, vocabulary=40)
    assert head.slack == 0
    assert head.tail == pytest.approx(0, abs=1e-12)
    assert head.masses == pytest.approx(law_at(p, temperature)[head.tokens])
    assert np.all(np.diff(head.masses) <= 0)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.6])
@pytest.mark.parametrize("vocabulary", [60, None])
@pytest.mark.parametrize("flatness", [0.05, 0.4, 3.0])
def test_the_truth_lies_within_the_slack(
    temperature: float, vocabulary: int | None, flatness: float
) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        p = rng.dirichlet(np.full(60, flatness)) + 1e-12
        p /= p.sum()
        best = np.argsort(-p)[:8]
        head = tempered_head(best, np.log(p[best]), temperature, vocabulary=vocabulary)
        truth = law_at(p, temperature)[head.tokens]
        gap = truth - head.masses
        distance = (np.abs(gap).sum() + abs(gap.sum())) / 2
        assert distance <= head.slack + 1e-9
    if temperature > 1 and vocabulary is None:
        assert head.slack > 0.1  # nothing bounds the number of improbable tokens
    if temperature == 1:
        assert head.slack < 1e-9


def test_a_short_head_keeps_the_mass_of_what_it_drops() -> None:
    p = np.array([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
    head = tempered_head(np.arange(6), np.log(p), 1.0, vocabulary=6, keep=2)
    assert head.tokens.tolist() == [0, 1]
    assert head.tail == pytest.approx(0.3)
    assert head.mass_of(1) == pytest.approx(0.2)
    assert head.mass_of(5) is None


def test_ties_are_ordered_by_token_whatever_the_order_of_the_input() -> None:
    """vLLM puts a text's own token first; it must not gain a rank by that."""
    logs = np.log([0.3, 0.3, 0.2, 0.2])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [1, 0, 3, 2]):
        assert tempered_head(order, logs[order], 0.7).tokens.tolist() == [0, 1, 2, 3]


def test_distance_does_not_see_the_tails() -> None:
    p = np.array([0.5, 0.3, 0.2])
    whole = tempered_head(np.arange(3), np.log(p), 1.0, vocabulary=3)
    part = tempered_head(np.arange(2), np.log(p[:2]), 1.0, vocabulary=3)
    assert head_distance(whole, part) == pytest.approx(0)
    other = tempered_head(np.arange(3), np.log([0.6, 0.2, 0.2]), 1.0, vocabulary=3)
    assert head_distance(whole, other) == pytest.approx(0.1)
    assert head_distance(whole, tempered_head([7], [0.0], 1.0)) == 1


@pytest.mark.parametrize(
    ("tokens", "logs", "temperature", "words"),
    [
        ([0], [0.0], 0.0, "temperature must be positive; got 0.0"),
        ([0, 1], [0.0], 1.0, "as many tokens as log masses"),
        ([], [], 1.0, "as many tokens as log masses"),
        ([0], [0.5], 1.0, "at most 0 and not NaN"),
        ([0], [float("nan")], 1.0, "at most 0 and not NaN"),
    ],
)
def test_bad_input_is_refused(
    tokens: list[int], logs: list[float], temperature: float, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        tempered_head(tokens, logs, temperature)
