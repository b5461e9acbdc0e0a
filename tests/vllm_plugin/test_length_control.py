"""What a length policy is asked and told by the engine, step by step."""

import math
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from proposers import Drafts, PromptLookupDrafter, StandDrafter, StandTable, VerifiedRows
from proposers.length.baselines import BatchTable, Confidence, EntropyBound
from proposers.length.features import NAMES, bare_features
from proposers.length.never_slower import NeverSlower
from proposers.length.policy import Candidates, Outcome, Refusal
from proposers.length.predictor import AcceptancePredictor
from proposers.length.step_times import StepTimes
from proposers.length.threshold import Threshold
from tests.proposers.batches import requests, verified
from vllm_plugin import length_control, length_report, metrics
from vllm_plugin.config import ConfigurationError, Options
from vllm_plugin.length_control import Batch, LengthControl
from vllm_plugin.length_settings import make_control, with_length
from vllm_plugin.metric_families import DECILES
from vllm_plugin.step_clock import Held

K = 4
NONE_APART = np.zeros(4, np.bool_)


class Listener:
    """A policy that keeps what it is asked and told, and gives what it is given."""

    def __init__(self, given: list[int] | None = None, ahead: int = K) -> None:
        self.given, self.most = given, ahead
        self.asked: list[Candidates] = []
        self.told: list[Outcome] = []
        self.finished: list[int] = []

    def ahead(self, handles: Any, longest: int) -> int:
        return min(self.most, longest)

    def lengths(self, step: Candidates) -> Any:
        self.asked.append(step)
        return np.array(self.given if self.given is not None else step.caps, np.int64)

    def floor(self, requests: int) -> float:
        return 0.25

    def observe(self, outcome: Outcome) -> None:
        self.told.append(outcome)

    def finish(self, handle: int) -> None:
        self.finished.append(handle)


def longs(*given: int) -> Any:
    return np.array(given, np.int64)


def chains(*lengths: int) -> Drafts:
    """Drafts without features."""
    count = len(lengths)
    tokens = np.where(np.arange(K) < np.array(lengths)[:, None], 7, -1).astype(np.int32)
    return Drafts(
        tokens,
        longs(*lengths),
        tokens[:, :, None],
        np.ones((count, K, 1)) * (tokens >= 0)[..., None],
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    held = SimpleNamespace(now=10.0)
    monkeypatch.setattr(length_control.time, "perf_counter", lambda: held.now)
    return held


def test_a_step_lasts_from_one_drafting_to_the_next(clock: Any) -> None:
    policy, times = Listener(), StepTimes()
    control = LengthControl(policy, K, step_times=times)
    for decoding, spent in ((False, 0.5), (True, 0.125), (True, 0.25)):
        control.verified(longs(1, 2), longs(3, 0), longs(2, 0))
        control.begin(Held(5, 2, decoding))
        clock.now += 0.0625  # drafting, for the next step
        control.end()
        clock.now += spent
    first, second, third = policy.told
    assert math.isnan(first.seconds)  # a prompt was in it
    assert (second.seconds, second.overhead) == (0.5625, 0.0625)
    assert (third.seconds, third.overhead) == (0.1875, 0.0625)
    assert third.drafted.tolist() == [3, 0] and third.emitted == 4
    assert times.steps == 2  # the seconds without the drafting


def test_a_policy_sees_all_requests_and_cuts_those_that_draft(clock: Any) -> None:
    policy = Listener(given=[9, 2, 0])
    control = LengthControl(policy, K, predictor=AcceptancePredictor())
    step = Batch(longs(5, 6, 7), longs(3, 4, 0), others=2, room=11)
    assert control.ahead(step) == K
    found = control.cut(step, longs(0, 1), chains(2, 4), np.array([1.0, 0.0]), NONE_APART[:2])
    assert found.tolist() == [2, 2]  # never more than there are
    (asked,) = policy.asked
    assert (asked.budget, asked.others, asked.caps.tolist()) == (11, 2, [3, 4, 0])
    assert np.isfinite(asked.acceptance).sum(axis=1).tolist() == [2, 4, 0]
    assert asked.features is not None
    assert asked.features[1, 0, NAMES.index("temperature")] == 0.0


def test_without_a_policy_all_drafts_within_a_request_s_limit_are_verified(clock: Any) -> None:
    control = LengthControl(None, K)
    step = Batch(longs(1, 2), longs(4, 1))
    assert control.ahead(step) == K
    found = control.cut(step, longs(0, 1), chains(3, 1), np.ones(2), NONE_APART[:2])
    assert found.tolist() == [3, 1]
    assert control.floor(step) == 0.0
    assert not control.wants_times


def test_what_was_predicted_is_held_against_what_came(
    clock: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    """Requests are met again by handle; of one that is new nothing was predicted."""
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    sent: list[Any] = []
    monkeypatch.setattr(metrics, "report", lambda *words: sent.append(words))
    predictor = AcceptancePredictor()
    control = LengthControl(Listener(given=[2, 3]), K, predictor=predictor)
    step = Batch(longs(8, 9), longs(4, 4))
    control.ahead(step)
    drafts = chains(4, 4)
    control.cut(step, longs(0, 1), drafts, np.ones(2), NONE_APART[:2])
    chance = predictor.predict_drafts(bare_features(drafts.lengths, K, np.ones(2)))
    control.verified(longs(9, 8, 3), longs(3, 2, 0), longs(1, 2, 0))
    control.begin(Held(8, 3, True))
    control.report.send()
    ((counters, gauges, lengths),) = sent
    judged = [(chance[1, 0], 1), (chance[1, 1], 0), (chance[0, 0], 1), (chance[0, 1], 1)]
    for name, values in (
        ("predicted_acceptances", [a for a, _ in judged]),
        ("realised_acceptances", [hit for _, hit in judged]),
        ("judged_drafts", [1 for _ in judged]),
    ):
        expected = dict.fromkeys(DECILES, 0.0)
        for (a, _), value in zip(judged, values, strict=True):
            expected[DECILES[min(int(a * 10), 9)]] += value
        found = dict.fromkeys(DECILES, 0.0) | counters[name]
        assert found == pytest.approx(expected)
    assert counters["draft_tokens"] == {"accepted": 3, "wasted": 2}
    assert counters["emitted_tokens"] == {"": 6}
    assert counters["length_stops"] == {"does_not_pay": 2}
    assert lengths == {2: 1, 3: 1}
    assert gauges == {}
    control.report.send()
    assert len(sent) == 1  # nothing came in since


def test_stops_have_their_reasons(clock: Any) -> None:
    control = LengthControl(Listener(given=[1, 2, 3, 4]), K, predictor=AcceptancePredictor())
    step = Batch(longs(1, 2, 3, 4), longs(4, 2, 4, 4))
    control.cut(step, longs(0, 1, 2, 3), chains(2, 2, 3, 4), np.ones(4), NONE_APART)
    assert control.report.tally.stops.tolist() == [1, 1, 1, 1, 0]
    control.policy = Listener(ahead=0)
    assert control.ahead(step) == 0
    assert control.report.tally.stops.tolist() == [1, 1, 1, 1, 4]
    assert control.report.tally.chosen.tolist() == [4, 1, 1, 1, 1]


TABLE_ROWS = ([[1], [5]], [{5: 0.5, 6: 0.5}, {7: 1.0}])
"""Contexts and laws that a table was taught."""
HEAD_IDS = np.array([[5, 6], [7, 8], [3, 4], [5, 6]], np.int32)
HEADS = np.array([[0.8, 0.2], [0.4, 0.2], [0.9, 0.1], [0.6, 0.4]], np.float32)
"""Of the rows behind 1, 5 and 7 of one text, and behind 1 of another."""
TAIL = 0.4 * 0.2  # what the second head lacks, as if of tokens like its last
LABELS = [0.5 / (0.64 / 0.68), 1.0 / max(1.0, 0.16 / (0.2 + TAIL)), np.nan, 1.0]
"""min(1, q/p) of 5, 7, 3 and, in the other text, 6, at temperature 0.5; behind 7 all is unknown."""
assert 0.5 / (0.16 / 0.52) > 1


def taught() -> tuple[StandDrafter, LengthControl, list[Any]]:
    table = StandTable(order=1, budget_bytes=2**16, emitted_weight=0.0)
    table.observe(verified(*TABLE_ROWS))
    predictor, learned = AcceptancePredictor(), []
    predictor.learn = lambda *words: learned.append(words)  # type: ignore[method-assign]
    drafter = StandDrafter(table, draft_length=K, interpolation=0.0)
    return drafter, LengthControl(Listener(), K, predictor=predictor), learned


def test_emitted_tokens_teach_what_drafts_would_have_been_worth(clock: Any) -> None:
    """From the rows themselves, a row without an emitted token among them."""
    drafter, control, learned = taught()
    rows = VerifiedRows(
        np.array([1, 5, 7, 3, 1], np.int32),
        np.array([0, 0, 0, 0, 4]),
        np.array([1, 2, 3, 4, 5]),
        np.concatenate([HEAD_IDS[:3], HEAD_IDS[:1], HEAD_IDS[3:]]),
        np.concatenate([HEADS[:3], HEADS[:1], HEADS[3:]]),
        np.array([5, 7, 3, -1, 6], np.int32),
        np.full(5, 0.5),
    )
    control.shadow(drafter, rows)
    ((features, labels),) = learned
    np.testing.assert_allclose(labels, [*LABELS[:3], np.nan, LABELS[3]], rtol=1e-6)
    assert features[:, NAMES.index("depth")][[0, 1, 4]].tolist() == [0, 1, 0]
    texts = requests([[1], [1, 5], [1]], [1, 1, 1], temperature=0.5)
    drafted = drafter.draft(texts).features
    assert drafted is not None
    expected = drafted[:, 0].copy()
    expected[1, NAMES.index("depth")] = 1
    np.testing.assert_array_equal(features[[0, 1, 4]], expected)  # what a draft would have shown


def test_other_drafters_follow_the_emitted_tokens(clock: Any) -> None:
    drafter, control, learned = taught()
    texts = requests([[9, 1], [9, 1]], [3, 1], temperature=0.5)
    emitted = np.array([[5, 7, 3, -1], [6, -1, -1, -1]], np.int32)
    rows = np.array([[0, 1, 2, 3], [3, 4, 5, 6]])
    control.follow(drafter, texts, emitted, rows, (HEAD_IDS, HEADS))
    ((features, labels),) = learned
    assert features.shape == (2, K, len(NAMES))
    expected = [[*LABELS[:3], np.nan], [LABELS[3], np.nan, np.nan, np.nan]]
    np.testing.assert_allclose(labels, expected, rtol=1e-6)
    lookup = PromptLookupDrafter(draft_length=K)
    texts = requests([[1, 2, 3, 1, 2]], [2])
    control.follow(lookup, texts, np.array([[3, 9, -1, -1]], np.int32), rows[:1], None)
    assert learned[1][1].tolist()[0][:2] == [1.0, 0.0]


@pytest.mark.parametrize("trees", [False, True])
def test_options_make_the_policy(trees: bool, tmp_path: Any) -> None:
    assert make_control(Options(length="fixed"), K, trees=trees, hardware="x").policy is None
    refusal = make_control(Options(h=0.6), K, trees=trees, hardware="x")
    assert refusal.policy == Refusal(0.6)
    times = StepTimes()
    for _ in range(20):
        times.observe(1, 0.5)
    path = tmp_path / "times.json"
    times.save(path, {"hardware": "x"})
    made = make_control(Options(step_times_path=str(path)), K, trees=trees, hardware="x")
    assert isinstance(made.policy, NeverSlower) and isinstance(made.policy.inner, Threshold)
    assert made.step_times is made.policy.step_times is made.policy.inner.step_times
    assert made.step_times is not None and made.step_times.seconds(1) == pytest.approx(0.5, rel=0.1)
    assert (made.predictor is None) == trees
    with pytest.raises(ConfigurationError, match=r"step_times_path: .* measured on x"):
        make_control(Options(step_times_path=str(path)), K, trees=trees, hardware="y")


def test_a_policy_s_drafter_is_not_cut_by_another_rule_unless_asked() -> None:
    assert with_length(Options()).min_survival == 0.0
    assert with_length(Options(min_survival=0.05)).min_survival == 0.05
    assert with_length(Options(length="fixed")).min_survival == 0.05


def test_a_request_that_ends_is_forgotten(clock: Any) -> None:
    policy = Listener()
    LengthControl(policy, K).finish(3)
    assert policy.finished == [3]


def test_reports_go_out_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step follows the last one, so they cannot wait for it."""
    monkeypatch.setattr(length_report, "EVERY", 0.01)
    sent = threading.Event()
    monkeypatch.setattr(metrics, "report", lambda *words: sent.set())
    control = LengthControl(None, K)
    control.verified(longs(1), longs(0), longs(0))
    control.report.step(None, 1, 0.5)
    control.report.start()
    assert sent.wait(10)


def test_lists_that_may_push_out_others_depend_on_themselves_alone(clock: Any) -> None:
    """Their lengths come from the floor; the policy decides on the rest, given them."""
    policy = Listener(given=[0, 3, 0])
    policy.floor = lambda requests: 0.1  # type: ignore[method-assign]
    control = LengthControl(policy, K, predictor=AcceptancePredictor())
    step = Batch(longs(5, 6, 7), longs(4, 4, 4), others=1, room=20)
    apart = np.array([True, False, True])
    drafts = chains(4, 4, 1)
    found = control.cut(step, longs(0, 1, 2), drafts, np.ones(3), apart)
    (asked,) = policy.asked
    survival = np.cumprod(asked.acceptance, axis=1)
    own = int((survival[0] >= 0.1).sum())
    assert 0 < own < 4
    assert found.tolist() == [own, 3, 1]
    assert asked.caps.tolist() == [0, 4, 0]
    assert (asked.others, asked.budget) == (1 + own + 1, 20 - own - 1)
    narrow = Batch(longs(5, 6, 7), longs(4, 4, 4), room=4)
    for drafts in (chains(4, 4, 1), chains(1, 4, 1)):  # however long: a list tells of its tokens
        assert control.cut(narrow, longs(0, 1, 2), drafts, np.ones(3), apart).tolist() == [0, 3, 0]


@pytest.mark.parametrize(
    "made", [lambda: BatchTable([(3, 2)]), lambda: EntropyBound(target=0.5), Confidence]
)
def test_policies_that_decide_for_each_request_alone_go_on_doing_so(clock: Any, made: Any) -> None:
    step = Batch(longs(5, 6, 7), longs(4, 4, 4))
    places, drafts = longs(0, 1, 2), chains(4, 4, 1)
    found = []
    for apart in (np.zeros(3, bool), np.array([True, False, True])):
        control = LengthControl(made(), K, predictor=AcceptancePredictor())
        found.append(control.cut(step, places, drafts, np.ones(3), apart).tolist())
    assert found[0] == found[1] and sum(found[0]) > 0


@pytest.mark.parametrize("temperature", [0.01, 0.05, 1e-3])
def test_a_temperature_near_nothing_teaches_or_does_not_but_never_fails(
    clock: Any, temperature: float
) -> None:
    """p of an emitted token may underflow, and so may entries of q."""
    table = StandTable(order=1, budget_bytes=2**16, emitted_weight=0.0)
    table.observe(verified([[1]], [{5: 0.9, 6: 0.1, 7: 1e-6}]))
    drafter = StandDrafter(table, draft_length=K, interpolation=0.0)
    for token in (5, 6, 7, 9):  # 9 is not among the head's entries
        rows = VerifiedRows(
            np.array([1], np.int32), longs(0), longs(1),
            np.array([[5, 6, 7]], np.int32), np.array([[0.9, 0.1, 1e-6]], np.float32),
            np.array([token], np.int32), np.array([temperature]),
        )  # fmt: skip
        control = LengthControl(Listener(), K, predictor=AcceptancePredictor())
        control.shadow(drafter, rows)
        assert control.predictor is not None
        assert control.predictor.learned in ((1,) if token == 5 else (0, 1))
    features = drafter.draft(requests([[1]], [1], temperature=temperature)).features
    assert features is not None
    assert np.isfinite(features[0, 0]).all()
    assert features[0, 0, NAMES.index("entropy")] == pytest.approx(0.0, abs=1e-6)
