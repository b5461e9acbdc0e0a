"""Drafting schemes: draws follow the law that is enumerated, and misuse is refused."""

import numpy as np
import pytest

from theory.equivalence import goodness_of_fit
from theory.testing import Scheme
from theory.testing.adversarial import pairs
from theory.testing.cases import Case
from theory.testing.schemes import IID, TOP_PLUS_ONE, WITHOUT_REPLACEMENT, draw_iid, scheme
from theory.testing.wrong_verifiers import WRONG

SCHEMES = [IID, WITHOUT_REPLACEMENT, TOP_PLUS_ONE, WRONG["unnormalised_draft_law"].drafts]
FALSE_ALARM, TESTS, N = 1e-10, 8, 20_000


@pytest.mark.parametrize("drafts", SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("k", [1, 2])
def test_draws_follow_the_enumerated_law(drafts, k):
    q = np.array([0.1, 0.4, 0.2, 0.3])
    rng = np.random.default_rng(k)
    drawn = drafts.draw(np.tile(q, (N, 1)), rng.random((N, k)))
    law = np.zeros((5,) * k)
    for members, chance in drafts.law(q, k).items():
        law[tuple(members + (-1,) * (k - len(members)))] += chance
    flat = np.ravel_multi_index(tuple((drawn % 5).T), law.shape)
    counts = np.bincount(flat, minlength=law.size)
    assert not goodness_of_fit(counts, law, false_alarm=FALSE_ALARM * TESTS, tests=TESTS).rejected


def test_nothing_is_offered_beyond_the_support():
    q = np.array([[0.5, 0.5, 0.0]])
    noise = np.full((1, 3), 0.3)
    assert WITHOUT_REPLACEMENT.draw(q, noise).tolist() == [[0, 1, -1]]
    assert TOP_PLUS_ONE.draw(np.array([[1.0, 0.0, 0.0]]), noise[:, :2]).tolist() == [[0, -1]]


def test_a_scheme_that_shares_noise_cannot_be_enumerated_apart_from_it():
    with pytest.raises(ValueError, match="leave law=None"):
        Scheme("x", draw_iid, law=IID.law, share=lambda noise, uniforms: uniforms)


def test_names_are_schemes():
    assert scheme("iid") is IID
    assert scheme(IID) is IID
    with pytest.raises(ValueError, match="drafts must be"):
        scheme("beam")


@pytest.mark.parametrize("size", [2, 3, 4, 7, 1000])
def test_adversarial_pairs_are_laws(size):
    found = pairs(size, seed=0)
    for name, p, q in found:
        for law in (p, q):
            assert law.shape == (size,), name
            assert law.min() >= 0, name
            assert law.sum() == pytest.approx(1), name
    names = [name for name, _, _ in found]
    assert len(set(names)) == len(names)
    if size <= 4:
        by_name = {name: (p, q) for name, p, q in found}
        assert np.minimum(*by_name["disjoint"]).sum() == 0
        assert np.array_equal(*by_name["equal"])
        assert 0 < by_name["nearly zero"][1].min() < 1e-11
        assert by_name["cut p"][0][0] == 0
        assert by_name["narrow q"][1][-1] == 0


def test_cases_are_laws_of_your_own():
    with pytest.raises(ValueError, match="shape"):
        Case.node(np.full((2, 2), 0.5), np.full((2, 2), 0.5), 1)
    with pytest.raises(ValueError, match="sums to 1"):
        Case.chain(lambda h: [0.5, 0.6], lambda h: [0.5, 0.5], 1, 2)
