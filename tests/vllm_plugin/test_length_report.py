"""What is reported about draft lengths: what was tallied, once, and how the policy stands."""

from typing import Any

import numpy as np
import pytest

from proposers.length.never_slower import NeverSlower
from proposers.length.policy import Fixed
from proposers.length.step_times import StepTimes
from proposers.length.tally import Tally
from proposers.length.threshold import Threshold
from vllm_plugin import metrics
from vllm_plugin.length_report import LengthReport

Sent = list[tuple[dict[str, Any], dict[str, float], dict[int, int]]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    made: Sent = []
    monkeypatch.setattr(metrics, "report", lambda *given: made.append(given))
    return made


def test_a_second_is_summed_up_and_begun_anew(sent: Sent) -> None:
    tally = Tally(4)
    report = LengthReport(tally)
    lengths = np.array([2, 0])
    tally.cut(lengths, np.array([3, 0]), np.array([4, 4]))
    tally.verified(np.full((2, 4), 0.75), np.array([0, 1]), lengths, np.array([1, 0]))
    report.step(Fixed(4), 2, 0.4)
    report.step(Fixed(4), 2, 0.2)
    report.step(Fixed(4), 2, float("nan"))
    report.send()
    report.send()  # nothing since
    ((counters, gauges, chosen),) = sent
    assert counters["draft_tokens"] == {"accepted": 1, "wasted": 1}
    assert counters["emitted_tokens"] == {"": 3}
    assert counters["length_stops"] == {"does_not_pay": 1, "no_context": 1}
    assert counters["length_seconds"] == pytest.approx({"on": 0.6, "off": 0, "trial": 0})
    assert gauges == {"tokens_per_second": 3}
    assert chosen == {0: 1, 2: 1}
    assert tally.emitted == 0


@pytest.mark.parametrize("guarded", [True, False])
def test_a_threshold_policy_says_what_a_token_must_bring(sent: Sent, guarded: bool) -> None:
    times = StepTimes()
    threshold = Threshold(times, rate=50.0)
    report = LengthReport(Tally(4))
    report.step(NeverSlower(threshold, times) if guarded else threshold, 3, 0.1)
    report.send()
    ((_, gauges, _),) = sent
    expected = {
        "length_threshold": min(threshold.floor(3), 1.0), "achieved_speedup": threshold.speedup(3),
    }  # fmt: skip
    assert gauges == pytest.approx(expected)
    assert expected["length_threshold"] > 0 and expected["achieved_speedup"] >= 1
