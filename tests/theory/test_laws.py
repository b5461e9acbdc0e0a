"""Bad vectors are refused at the door, nearly good ones renormalised."""

import numpy as np
import pytest

from theory import acceptance_rate, kseq_rho, optimal_acceptance, output_law, transport_plan
from theory.laws import as_law, top_tokens

GOOD = [0.5, 0.3, 0.2]
CALLS = {
    "optimal_acceptance": optimal_acceptance,
    "acceptance_rate": lambda p, q, k: acceptance_rate(p, q, k, rule="kseq"),
    "output_law": lambda p, q, k: output_law(p, q, k, rule="rrs"),
    "kseq_rho": kseq_rho,
    "transport_plan": transport_plan,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize(
    ("p", "q", "k", "sentence"),
    [
        ([0.5, 0.6, -0.1], GOOD, 2, "p holds -0.1"),
        (GOOD, [0.5, float("nan"), 0.5], 2, "q holds NaN"),
        (GOOD, [float("inf"), 0.5, 0.5], 2, "q holds NaN or infinite"),
        ([0.5, 0.3, 0.20001], GOOD, 2, "p sums to 1 within 1e-05"),
        (GOOD, [0.5, 0.5], 2, "one vocabulary"),
        ([], [], 2, "V >= 1"),
        ([0.5, 0.3, 0.2j], GOOD, 2, "p must hold real numbers"),
        (GOOD, ["a", "b", "c"], 2, "q must hold real numbers"),
        (GOOD, [[0.5, 0.5], [1.0]], 2, "q must hold real numbers"),
        (GOOD, GOOD, 0, "k must be an integer >= 1; got 0"),
        (GOOD, GOOD, 1.5, "k must be an integer >= 1; got 1.5"),
        (GOOD, GOOD, True, "k must be an integer >= 1; got True"),
    ],
)
def test_bad_input_is_refused_with_what_was_given(call, p, q, k, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        call(p, q, k)


def test_leading_dimensions_must_broadcast():
    with pytest.raises(ValueError, match="do not broadcast"):
        optimal_acceptance(np.full((2, 4), 0.25), np.full((3, 4), 0.25), 2)


def test_distinct_candidates_need_the_support():
    for drafts in ("without_replacement", "top_plus_one"):
        with pytest.raises(ValueError, match="q has 2"):
            optimal_acceptance(GOOD, [0.5, 0.5, 0.0], 3, drafts=drafts)
    for rule in ("rrs_without_replacement", "top_plus_one", "sparse_optimal"):
        with pytest.raises(ValueError, match="q has 2"):
            acceptance_rate(GOOD, [0.5, 0.5, 0.0], 3, rule=rule)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="drafts must be one of"):
        optimal_acceptance(GOOD, GOOD, 2, drafts="with_replacement")
    with pytest.raises(ValueError, match="rule must be one of"):
        acceptance_rate(GOOD, GOOD, 2, rule="best")
    with pytest.raises(ValueError, match="drafts must be one of"):
        transport_plan(GOOD, GOOD, 2, drafts="?")


def test_sums_within_1e_6_are_renormalised():
    assert as_law([0.5, 0.5 + 9e-7], "p").sum() == pytest.approx(1, abs=1e-15)
    assert as_law(np.full(1000, 1e-3, dtype=np.float32), "p").dtype == np.float64


def test_top_tokens_break_ties_by_index():
    mask = top_tokens(np.array([[0.2, 0.3, 0.2, 0.3, 0.0]]), 3)
    assert mask.tolist() == [[True, True, False, True, False]]
    assert not top_tokens(np.array([[0.2, 0.8]]), 0).any()
