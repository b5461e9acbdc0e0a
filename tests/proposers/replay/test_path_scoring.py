"""k candidates against exact enumeration of the rules, and what is drafted for them."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from small_traces import GivenDrafter, trace
from test_scoring import PROMPT, V, floats, weights

from proposers import PromptLookupDrafter
from proposers.replay import path_scoring, profile, score
from proposers.replay.path_scoring import PATH_RULES, score_paths
from proposers.replay.paths import _Behind, profile_paths
from theory.accepted_mass import LEGAL
from theory.candidates import set_law
from theory.exact import node_law
from theory.exact_sequences import SequenceLaw, Tokens, emitted_law

LENGTH, K = 4, 2
CASES = [
    (rule, drafts, k)
    for rule in PATH_RULES
    for drafts in LEGAL[rule]
    for k in (1, 2, 3)
    if (rule, drafts) != ("match", "without_replacement")
    and (rule, drafts) != ("match", "top_plus_one")
]


def one_step(target, draft, length: int, k: int, rule: str, drafts: str) -> SequenceLaw:
    """Law of the tokens of one step: the rule at its nodes, exactly."""
    if drafts == "iid" or not length:
        return emitted_law(target, draft, length, k, rule=rule, candidates="paths")
    law: SequenceLaw = {}
    for (_, y, accepted), chance in node_law(target(()), draft(()), k, rule=rule).items():
        after: SequenceLaw = {(): Fraction(1)}
        if accepted:
            after = emitted_law(
                lambda more, y=y: target((y, *more)),
                lambda more, y=y: draft((y, *more)),
                length - 1, 1, rule="token",
            )  # fmt: skip
        for rest, mass in after.items():
            law[y, *rest] = law.get((y, *rest), Fraction(0)) + chance * mass
    return law


def starts_after(rule: str, drafts: str, k: int) -> dict[Tokens, Fraction]:
    starts: dict[Tokens, Fraction] = {(y,): w for y, w in enumerate(weights(PROMPT, 0))}
    for n in range(1, LENGTH):
        for text in itertools.product(range(V), repeat=n):
            law = one_step(
                lambda more, text=text: weights(PROMPT + text + more, 0),
                lambda more, text=text: weights(PROMPT + text + more, 1),
                min(K, LENGTH + 1 - n - 1), k, rule, drafts,
            )  # fmt: skip
            for emitted, mass in law.items():
                after = (text + emitted)[:LENGTH]
                starts[after] = (
                    starts.get(after, Fraction(0)) + starts.get(text, Fraction(0)) * mass
                )
    return starts


@pytest.mark.parametrize(("rule", "drafts", "k"), CASES)
def test_expected_steps_are_those_of_the_enumerated_engine(rule, drafts, k) -> None:
    """Answer by answer, for all answers of four tokens.

    K-SEQ's exact rho is up to 2^-12 too large there, and sparse_optimal's coupling is one of
    several; summed over all answers, weighed by p, both agree up to that.
    """
    answers = list(itertools.product(range(V), repeat=LENGTH))
    recorded = trace(
        floats(0), list(enumerate(answers)), [PROMPT] * len(answers), max_tokens=LENGTH + 1
    )
    found = profile_paths(
        recorded, lambda: GivenDrafter(floats(1), draft_length=3), draft_length=3, candidates=k,
        drafts=drafts,
    )  # fmt: skip
    scored = score_paths(found, recorded, rule=rule, draft_length=K)
    starts = starts_after(rule, drafts, k)
    total = 0.0
    for y, steps in zip(answers, scored.steps, strict=True):
        expected, whole = Fraction(0), Fraction(1)
        for n in range(1, LENGTH):
            whole *= weights(PROMPT + y[: n - 1], 0)[y[n - 1]]
            expected += starts.get(y[:n], Fraction(0)) / whole
        whole *= weights(PROMPT + y[:-1], 0)[y[-1]]
        total += float(whole) * (steps - float(expected))
        if rule not in ("kseq", "sparse_optimal"):
            assert steps == pytest.approx(float(expected), rel=2e-6)
    assert abs(total) < (2**-11 if rule == "kseq" else 1e-5)


def drawn_trace(answers: int = 4, length: int = 25):
    rng = np.random.default_rng(8)
    given = [(0, rng.integers(0, V, length).tolist()) for _ in range(answers)]
    return trace(floats(0), given, [PROMPT], max_tokens=length + 5)


@pytest.mark.parametrize("drafts", ["iid", "without_replacement", "top_plus_one"])
def test_one_candidate_is_the_chain(drafts) -> None:
    recorded = drawn_trace()
    rule = next(rule for rule in PATH_RULES if drafts in LEGAL[rule] and rule != "match")

    def make() -> GivenDrafter:
        return GivenDrafter(floats(1), draft_length=3)

    chain = profile(recorded, make, draft_length=3)
    paths = profile_paths(recorded, make, draft_length=3, candidates=1, drafts=drafts)
    np.testing.assert_array_equal(paths.q, chain.q)
    for judge, how in ((rule, "token"), ("match", "match")):
        one = score_paths(paths, recorded, rule=judge, draft_length=3)
        other = score(chain, recorded, rule=how, draft_length=3)
        np.testing.assert_allclose(one.steps, other.steps, rtol=1e-6)


def test_more_candidates_take_fewer_steps_and_truncation_is_the_shorter_profile() -> None:
    recorded = drawn_trace()
    for rule in PATH_RULES:
        steps = []
        for k in (1, 2, 3):
            long = profile_paths(
                recorded, lambda: GivenDrafter(floats(1), draft_length=4), draft_length=4,
                candidates=k, drafts=LEGAL[rule][0],
            )  # fmt: skip
            steps.append(score_paths(long, recorded, rule=rule, draft_length=4).steps.sum())
            short = profile_paths(
                recorded, lambda: GivenDrafter(floats(1), draft_length=2), draft_length=2,
                candidates=k, drafts=LEGAL[rule][0],
            )  # fmt: skip
            both = [
                score_paths(found, recorded, rule=rule, draft_length=2).steps
                for found in (long, short)
            ]
            np.testing.assert_allclose(*both, rtol=1e-12)
        assert steps[0] > steps[1] > steps[2]


def test_what_is_drafted_is_counted_path_by_path() -> None:
    """Full chains: k paths of K tokens each; budgets near max_tokens cut all of them."""
    recorded = drawn_trace(answers=1, length=6)  # max_tokens 11
    for drafts in ("iid", "without_replacement", "top_plus_one"):
        found = profile_paths(
            recorded, lambda: GivenDrafter(floats(1), draft_length=3), draft_length=3,
            candidates=2, drafts=drafts,
        )  # fmt: skip
        assert found.lengths.tolist() == [[0, 0]] + [[3, 3]] * 5
        scored = score_paths(
            found, recorded, rule="match", draft_length=2, step_times=np.linspace(1, 2, 5)
        )
        assert scored.drafted.sum() == pytest.approx(4 * scored.steps.sum())
        assert scored.offered[0].tolist() == pytest.approx([scored.steps.sum()] * 2)
        assert scored.tokens_per_second == pytest.approx(scored.block_efficiency / 2)


def test_first_tokens_are_drawn_from_the_laws_of_their_geometry() -> None:
    """Counted over many draws against the enumerated law of the candidates' set."""
    law = np.array([0.1, 0.45, 0.0, 0.3, 0.15])
    for drafts in ("without_replacement", "top_plus_one"):
        behind = _Behind(2, drafts, np.random.default_rng(0))
        seen = Counter(tuple(sorted(behind._first(law).tolist())) for _ in range(20_000))
        expected = set_law(law.tolist(), 2, drafts)
        assert set(seen) == set(expected)
        for members, chance in expected.items():
            sd = np.sqrt(20_000 * chance * (1 - chance))
            assert abs(seen[members] - 20_000 * chance) < 6 * sd + 1e-9
    whole = _Behind(9, "without_replacement", np.random.default_rng(0))
    assert sorted(whole._first(law).tolist()) == [0, 1, 3, 4]


def test_a_point_mass_has_one_candidate_and_keeps_its_chain() -> None:
    rng = np.random.default_rng(5)
    answers = [(0, rng.integers(0, 2, 30).tolist()) for _ in range(3)]
    recorded = trace(lambda text: np.ones(2) / 2, answers, [[0, 1, 1, 0]], max_tokens=40)

    def make() -> PromptLookupDrafter:
        return PromptLookupDrafter(draft_length=4)

    chain = profile(recorded, make, draft_length=4)
    expected = score(chain, recorded, rule="token", draft_length=4)
    for rule in ("top_plus_one", "rrs_without_replacement", "sparse_optimal", "match", "kseq"):
        paths = profile_paths(recorded, make, draft_length=4, candidates=3, drafts=LEGAL[rule][0])
        found = score_paths(paths, recorded, rule=rule, draft_length=4)
        np.testing.assert_allclose(found.steps, expected.steps, rtol=1e-12)
        copies = 3 if LEGAL[rule][0] == "iid" else 1
        np.testing.assert_allclose(found.drafted, copies * expected.drafted, rtol=1e-12)


def test_tokens_outside_the_head_count_as_nothing_but_the_emitted_one_is_known() -> None:
    """Head of one token: acceptance falls, and never above what the whole law gives."""
    recorded = drawn_trace()
    cut = replace(recorded, ids=recorded.ids[:, :1], log_masses=recorded.log_masses[:, :1])
    found = profile_paths(
        recorded, lambda: GivenDrafter(floats(1), draft_length=3), draft_length=3, candidates=2,
        drafts="top_plus_one",
    )  # fmt: skip
    whole = score_paths(found, recorded, rule="top_plus_one", draft_length=3).steps
    np.testing.assert_allclose(
        score_paths(found, cut, rule="top_plus_one", draft_length=3).steps, whole, rtol=1e-6
    )  # needs no p but that of y
    iid = profile_paths(
        recorded, lambda: GivenDrafter(floats(1), draft_length=3), draft_length=3, candidates=2,
        drafts="iid",
    )  # fmt: skip
    known = score_paths(iid, recorded, rule="kseq", draft_length=3).steps.sum()
    less = score_paths(iid, cut, rule="kseq", draft_length=3).steps.sum()
    assert less != known
    assert np.isfinite(less)


def test_wrong_pairs_are_refused_with_the_legal_ones() -> None:
    recorded = drawn_trace(answers=1, length=4)
    found = profile_paths(
        recorded, lambda: GivenDrafter(floats(1), draft_length=2), draft_length=2, candidates=2,
        drafts="iid",
    )  # fmt: skip
    with pytest.raises(ValueError, match="'top_plus_one' is right for top_plus_one drafts"):
        score_paths(found, recorded, rule="top_plus_one", draft_length=2)
    with pytest.raises(ValueError, match="need one of the rules kseq, rrs, match"):
        score_paths(found, recorded, rule="block", draft_length=2)
    with pytest.raises(ValueError, match=r"the profile holds 1\.\.2"):
        score_paths(found, recorded, rule="kseq", draft_length=3)
    with pytest.raises(ValueError, match="both must be 1 or more"):
        profile_paths(
            recorded, lambda: GivenDrafter(floats(1), draft_length=2), draft_length=2,
            candidates=0, drafts="iid",
        )  # fmt: skip


def test_too_many_sequences_of_refusals_are_refused_in_words(monkeypatch) -> None:
    recorded = drawn_trace(answers=1, length=6)
    found = profile_paths(
        recorded, lambda: GivenDrafter(floats(1), draft_length=2), draft_length=2, candidates=3,
        drafts="without_replacement",
    )  # fmt: skip
    monkeypatch.setattr(path_scoring, "MOST_SEQUENCES", 5 * V**2)
    score_paths(found, recorded, rule="rrs_without_replacement", draft_length=2)
    monkeypatch.setattr(path_scoring, "MOST_SEQUENCES", 5 * V**2 - 1)
    with pytest.raises(ValueError, match="use a smaller k, or sparse_optimal or top_plus_one"):
        score_paths(found, recorded, rule="rrs_without_replacement", draft_length=2)
    score_paths(found, recorded, rule="sparse_optimal", draft_length=2)
