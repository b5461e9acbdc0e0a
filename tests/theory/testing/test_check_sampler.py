"""check_sampler on samplers of every make: pure, with noise of their own, odd, broken, subtle."""

import json

import numpy as np
import pytest

from theory.testing import assert_lossless, check_sampler, examine
from theory.testing.cases import Case
from theory.testing.draws import inverse_cdf, mass_of, residual
from theory.testing.right_verifiers import RIGHT, token, token_chain
from theory.testing.wrong_verifiers import WRONG


def own_noise(sampler, seed=0):
    """The same sampler, but deaf to the uniforms: it has a generator of its own."""
    rng = np.random.default_rng(seed)
    return lambda p, q, candidates, uniforms: sampler(p, q, candidates, rng.random(uniforms.shape))


def too_eager(excess):
    """The token rule accepting a little too often: TV is `excess` times what is refused."""

    def sampler(p, q, candidates, uniforms):
        x = candidates[:, 0]
        ratio = np.minimum(1.0, mass_of(p, x) / mass_of(q, x))
        accepted = uniforms[:, 0] < ratio + excess * (1 - ratio)
        return np.where(accepted, x, inverse_cdf(residual(p, q), uniforms[:, -1]))

    return sampler


def test_a_sampler_with_noise_of_its_own_is_tested_statistically():
    report = check_sampler(own_noise(token), vocabulary=3, candidates=1)
    assert report.verdict == "lossless", report
    assert not report.pure
    assert all(f.method == "statistical" for f in report.findings)
    assert report.visible <= 0.05
    assert "randomness of its own" in str(report)


@pytest.mark.parametrize("name", ["target_instead_of_residual", "kseq_with_rho_one", "coin_emits"])
def test_a_wrong_sampler_with_noise_of_its_own_is_refuted(name):
    wrong = WRONG[name]
    report = check_sampler(
        own_noise(wrong.sampler), vocabulary=3, candidates=2, drafts=wrong.drafts
    )
    assert report.verdict == "refuted"
    assert report.shrunk.case.complexity <= report.failing.case.complexity


def test_wrong_chains_with_noise_of_their_own_are_refuted():
    block = WRONG["block_up_to_the_first_failure"].sampler
    report = check_sampler(own_noise(block), vocabulary=[2], candidates=2, kind="chain")
    assert report.verdict == "refuted"
    right = check_sampler(own_noise(token_chain), vocabulary=[2], candidates=2, kind="chain")
    assert right.verdict == "lossless", right


def test_a_generator_seeded_in_every_call_is_seen_not_to_be_a_function_of_the_row():
    def sampler(p, q, candidates, uniforms):
        return token(p, q, candidates, np.random.default_rng(7).random(uniforms.shape))

    assert not check_sampler(sampler, vocabulary=[2], candidates=1, samples=2000).pure


def test_uniforms_used_in_another_way_than_by_thresholds_are_found_out():
    """u0 + u_last mod 1 is a uniform too, but the output is not constant on boxes of it."""

    def sampler(p, q, candidates, uniforms):
        uniforms[:, 0] = (uniforms[:, 0] + uniforms[:, -1]) % 1
        return token(p, q, candidates, uniforms)

    report = check_sampler(sampler, vocabulary=[3], candidates=1)
    assert report.verdict == "lossless", report
    assert report.pure
    assert all(f.method == "statistical" for f in report.findings)
    assert any("not constant on boxes" in note for note in report.notes)

    def wrong(p, q, candidates, uniforms):
        uniforms[:, 0] = (uniforms[:, 0] + uniforms[:, -1]) % 1
        return WRONG["target_instead_of_residual"].sampler(p, q, candidates, uniforms)

    assert check_sampler(wrong, vocabulary=[3], candidates=1).verdict == "refuted"


def test_float32_passes():
    def sampler(p, q, candidates, uniforms):
        p, q, uniforms = (a.astype(np.float32) for a in (p, q, uniforms))
        return token(p, q, candidates, uniforms)

    report = check_sampler(sampler, vocabulary=4, candidates=1)
    assert report.verdict == "lossless", report


def test_a_bias_of_one_in_a_thousand_is_refuted():
    report = check_sampler(too_eager(1e-3), vocabulary=[3], candidates=1)
    assert report.verdict == "refuted", report
    assert report.failing.tv < 1.1e-3
    assert report.failing.samples > 4096  # it needed a larger certificate than a coarse one


def test_what_is_too_small_to_be_certain_of_is_undecided():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    found = examine(too_eager(4e-5), Case.node(p, q, 1))
    assert 1e-5 < found.tv < 2e-5
    assert not found.refuted
    report = check_sampler(too_eager(2e-5), vocabulary=[3], candidates=1)
    assert report.verdict == "undecided", report
    assert any("too small to be certain" in note for note in report.notes)


def test_few_samples_are_undecided():
    report = check_sampler(own_noise(token), vocabulary=[3], candidates=1, samples=300)
    assert report.verdict == "undecided", report
    assert report.visible > 0.05
    assert "use more samples" in str(report)


def test_the_false_alarm_budget_is_kept():
    """With a budget of 0.3 at most 0.3 of right samplers are refuted; 60 runs, by Chernoff 1e-9."""
    refuted = sum(
        check_sampler(
            own_noise(token, seed), vocabulary=[2], candidates=1, samples=400, budget=0.3
        ).verdict
        == "refuted"
        for seed in range(60)
    )
    assert refuted <= 41


def test_the_power_is_what_is_said():
    """A TV of `visible`, at the least visible place, is refuted about 99 times in 100."""
    p, q = np.array([0.25, 0.25, 0.5]), np.array([0.5, 0.25, 0.25])
    case = Case.node(p, q, 1)
    visible = examine(own_noise(token), case, samples=5000).visible
    moved = np.array([visible, visible, -2 * visible]) / 2  # away from a set of mass 1/2

    def sampler(p, q, candidates, uniforms):
        return inverse_cdf(np.broadcast_to(case.p[0][0] + moved, p.shape), uniforms[:, -1])

    hits = sum(examine(own_noise(sampler, seed), case, samples=5000).refuted for seed in range(40))
    assert hits >= 36


def test_the_same_check_gives_the_same_report():
    one, two = (
        check_sampler(WRONG["kseq_with_rho_one"], vocabulary=3, candidates=2).to_json()
        for _ in range(2)
    )
    assert one == two


def test_reports_are_for_people_and_for_machines():
    report = check_sampler(WRONG["kseq_with_rho_one"], vocabulary=3, candidates=2)
    text, data = str(report), json.loads(report.to_json())
    assert "kseq_with_rho_one is NOT lossless" in text
    assert "shrunk:" in text
    assert "[1/2, 1/2]" in text
    assert "1e-09" in text
    assert data["format"] == "specproof-check/1"
    assert data["verdict"] == "refuted"
    assert data["shrunk"]["case"]["candidates"] == 2
    assert data["shrunk"]["case"]["vocabulary"] == 2
    assert data["shrunk"]["tv"] == pytest.approx(report.shrunk.tv)
    chain = str(check_sampler(WRONG["judged_by_the_first_row"], vocabulary=[2], candidates=1))
    assert "p(. | 0)" in chain
    assert "instead of" in chain


def test_candidates_and_vocabulary_say_what_is_tested():
    report = check_sampler(RIGHT["rrs"], vocabulary=6, candidates=3)
    shapes = {(f.case.size, f.case.n) for f in report.findings}
    assert shapes == {(v, k) for v in (2, 3, 4, 6) for k in (1, 2, 3)}
    report = check_sampler(RIGHT["rrs_without_replacement"], vocabulary=[2, 5], candidates=[2])
    assert {(f.case.size, f.case.n) for f in report.findings} == {(2, 2), (5, 2)}
    assert all(np.count_nonzero(f.case.q[0]) >= 2 for f in report.findings)


def test_wide_vocabularies_are_tested_statistically():
    report = check_sampler(
        RIGHT["token"], vocabulary=[1000], candidates=1, samples=10_000, resolution=0.1
    )
    assert report.verdict == "lossless", report
    assert {f.method for f in report.findings} == {"statistical"}
    wrong = check_sampler(
        WRONG["coin_emits"], vocabulary=[1000], candidates=1, samples=10_000, resolution=0.1
    )
    assert wrong.verdict == "refuted"


def test_tokens_outside_the_vocabulary_are_refuted():
    def sampler(p, q, candidates, uniforms):
        right = token(p, q, candidates, uniforms)
        return np.where(uniforms[:, 0] < 0.01, p.shape[1], right)

    for made in (sampler, own_noise(sampler)):
        report = check_sampler(made, vocabulary=[3], candidates=1)
        assert report.verdict == "refuted"
        assert report.failing.invalid > 0
        assert "no token" in str(report)


@pytest.mark.parametrize(
    "tokens",
    [[], [-1, 0, 1], [0, -1, 1], [0, 3, -1]],
    ids=["nothing", "a hole first", "a hole", "outside"],
)
def test_sequences_with_holes_are_refuted(tokens):
    row = np.array((tokens + [-1] * 3)[:3])
    report = check_sampler(
        lambda p, q, c, u: np.tile(row, (len(c), 1)), vocabulary=[3], candidates=[2], kind="chain"
    )
    assert report.verdict == "refuted"
    assert report.failing.invalid == pytest.approx(1)


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [
        (lambda p, q, c, u: p, "node"),
        (lambda p, q, c, u: c, "node"),
        (lambda p, q, c, u: c[:, 0].astype(float), "node"),
        (lambda p, q, c, u: c, "chain"),
    ],
)
def test_tokens_of_another_shape_or_type_are_an_error(sampler, kind):
    with pytest.raises(ValueError, match="must return integers of shape"):
        check_sampler(sampler, vocabulary=[3], candidates=[2], kind=kind)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 1}, "vocabulary must be"),
        ({"vocabulary": []}, "vocabulary must be"),
        ({"vocabulary": 2.5}, "vocabulary must be"),
        ({"candidates": 0}, "candidates must be"),
        ({"budget": 0}, "0 < budget < 1"),
        ({"samples": 0}, "samples >= 1"),
        ({"resolution": 0}, "tolerance < resolution"),
        ({"kind": "tree"}, "kind must be"),
        ({"drafts": "beam"}, "drafts must be"),
        ({"drafts": "top_plus_one", "candidates": [5]}, "larger vocabulary"),
        ({"kind": "chain", "vocabulary": [40], "candidates": [9]}, "smaller vocabulary"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_sampler(token, **{"vocabulary": [3], "candidates": 1, **options})


def test_assert_lossless_raises_the_report():
    assert assert_lossless(RIGHT["token"], vocabulary=[2], candidates=1).verdict == "lossless"
    with pytest.raises(AssertionError, match="residual_not_clipped is NOT lossless"):
        assert_lossless(WRONG["residual_not_clipped"], vocabulary=3, candidates=1)
    with pytest.raises(AssertionError, match="undecided"):
        assert_lossless(own_noise(token), vocabulary=[3], candidates=1, samples=100)
