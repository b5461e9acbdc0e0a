"""The search finds settings that are known to be best, judged where it did not look."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tuned_traces import drifting_trace, noisy, recorded, three_tokens

from proposers.batch import VerifiedRows
from proposers.replay import make_drafter, most_tokens
from proposers.replay.tuning import (
    Search,
    Trial,
    Workload,
    _stretches,
    first_guesses,
    lasting,
    linear_times,
    rates,
    search,
    suggest,
)  # fmt: skip
from proposers.replay.tuning_report import by_hand, difference, judge, other_share, stand
from theory.trace_prompts import part_prompts, select_prompts
from theory.traces import Trace

LONGEST = 6


def workload(trace: Trace, *, price: float = 0.0, **more: object) -> Workload:
    return Workload(trace, "block", LONGEST, linear_times(price, LONGEST), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def deep() -> Trace:
    return recorded(three_tokens)


def rate(work: Workload, **options: object) -> float:
    """The rate of one choice of options, with its best K."""
    make = make_drafter(
        "stand", options, draft_length=work.longest, seed=work.seed,
        tokens=most_tokens(work.trace, work.share),
    )  # fmt: skip
    tokens, seconds = rates(work, work.trace, make)
    return float(tokens / seconds.min())


def test_a_target_of_three_tokens_needs_order_three(deep: Trace) -> None:
    stay, held_out = part_prompts(deep, 0.4, 0)
    work, unseen = workload(select_prompts(deep, stay)), workload(select_prompts(deep, held_out))
    found = search(work, trials=30)
    assert found.best.options["order"] >= 3
    assert found.best.rate >= found.trials[0].rate  # the defaults are the first trial
    assert found.best.rate > rate(work, **{**found.best.options, "order": 1}) + 0.2
    assert found.best.rate == pytest.approx(rate(work, **found.best.options), rel=1e-12)
    short, long = judge(
        unseen,
        [
            stand(unseen, {"order": 1}, found.best.draft_length, "order 1"),
            stand(unseen, found.best.options, found.best.draft_length, "found"),
        ],
    )
    assert long.gain is not None
    assert long.gain.low is not None
    assert long.gain.low > 0
    assert long.gain.value == pytest.approx(long.rate.value - short.rate.value)
    assert long.rate.value == pytest.approx(long.block_efficiency.value)  # a draft costs nothing


def test_old_laws_fade_where_the_target_drifts_and_stay_where_it_only_scatters() -> None:
    drift, scatter = workload(drifting_trace()), workload(recorded(noisy))
    moved, still = (search(work, trials=25).best for work in (drift, scatter))
    assert moved.options["decay"] <= 0.5 or moved.options["count_cap"] == 1.0
    assert moved.rate > rate(drift, **{**moved.options, "decay": 1.0, "count_cap": None}) + 0.05
    assert still.options["decay"] > 0.5
    assert still.rate > rate(scatter, **{**still.options, "decay": 0.1})


def test_a_dear_token_is_not_drafted_and_a_free_one_is(deep: Trace) -> None:
    free, dear = (search(workload(deep, price=price), trials=8).best for price in (0.0, 3.0))
    assert free.draft_length == LONGEST
    assert dear.draft_length == 1
    assert dear.rate < free.rate


@pytest.mark.parametrize("share", ["all", "prompt", "none"])
@pytest.mark.parametrize("order", ["sequential", "lockstep"])
def test_stretches_are_together_the_whole(deep: Trace, share, order) -> None:
    work = workload(deep, price=0.1, share=share, order=order)
    make = make_drafter("stand", {"table_mib": 1}, draft_length=LONGEST, seed=4)
    tokens, seconds = rates(work, deep, make)
    parts = _stretches(deep)
    assert [quarters for quarters, _ in parts] == [1, 2, 4]
    assert sum(part.prompts for _, part in parts) == deep.prompts
    again = lasting(make, share)
    pieces = [rates(work, part, again) for _, part in parts]
    assert sum(made for made, _ in pieces) == tokens
    assert np.sum([taken for _, taken in pieces], axis=0) == pytest.approx(seconds, rel=1e-12)


def test_few_prompts_make_fewer_stretches(deep: Trace) -> None:
    for prompts in (1, 2, 3):
        parts = _stretches(select_prompts(deep, list(range(prompts))))
        assert parts[-1][0] == 4
        assert sum(part.prompts for _, part in parts) == prompts
        assert all(part.prompts for _, part in parts)
        assert search(workload(select_prompts(deep, list(range(prompts)))), trials=2).best


def timeless(found: Search) -> list[Trial]:
    return [replace(trial, seconds=0.0) for trial in found.trials]


def test_the_seed_decides_all(deep: Trace) -> None:
    work = workload(deep, price=0.05)
    once, twice = search(work, trials=12), search(work, trials=12)
    assert timeless(once) == timeless(twice)
    assert {trial.state for trial in once.trials} == {"complete", "pruned"}
    assert timeless(search(replace(work, seed=1), trials=12)) != timeless(once)


class Clock:
    """Time that passes by the replays and by nothing else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.calls = 100.0, 0

        def replay(work: Workload, part: Trace, make: object) -> tuple[int, np.ndarray]:
            self.now += seconds
            self.calls += 1
            return 10, np.linspace(9.0, 8.0, LONGEST)

        monkeypatch.setattr("proposers.replay.tuning.rates", replay)

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("limit", [0.5, 3.0, 10.0, 29.5])
def test_the_time_is_kept_within_a_stretch(deep: Trace, monkeypatch, limit: float) -> None:
    clock = Clock(monkeypatch, 1.0)
    found = search(workload(deep), seconds=limit, clock=clock)
    assert found.trials[0].state == "complete"
    spent = clock.now - 100
    assert limit <= spent < max(limit + 1, 3.0 + 1e-9)  # one stretch at most, and the defaults
    assert found.trials[-1].seconds == pytest.approx(spent)
    assert found.best.draft_length == LONGEST


def test_equal_trials_are_replayed_once(deep: Trace, monkeypatch) -> None:
    clock = Clock(monkeypatch, 1.0)
    monkeypatch.setattr("proposers.replay.tuning.suggest", lambda trial, temperature: {"order": 2})
    found = search(workload(deep), trials=5)
    assert clock.calls == 3
    assert [trial.rate for trial in found.trials] == [found.trials[0].rate] * 5
    assert found.best.number == 0


def test_an_interrupt_keeps_what_was_found(deep: Trace) -> None:
    def told(trial: Trial) -> None:
        if trial.number == 3:
            raise KeyboardInterrupt

    found = search(workload(deep), trials=50, told=told)
    assert found.interrupted
    assert len(found.trials) == 4
    assert found.best.rate == max(t.rate for t in found.trials if t.state == "complete")


def test_what_cannot_be_searched(deep: Trace) -> None:
    with pytest.raises(ValueError, match="seconds or trials"):
        search(workload(deep))
    with pytest.raises(ValueError, match="trials must be above 0"):
        search(workload(deep), trials=0)
    with pytest.raises(ValueError, match="end at 3 drafted tokens, but up to 6"):
        Workload(deep, "block", 6, linear_times(0.1, 3))
    with pytest.raises(ValueError, match="rule must be one of token, block, match"):
        Workload(deep, "kseq", 6, linear_times(0.1, 6))
    with pytest.raises(ValueError, match="no trial was completed"):
        _ = Search().best


def test_emitted_tokens_are_no_choice_where_they_weigh_nothing() -> None:
    class Fixed:
        def suggest_int(self, name: str, low: int, high: int) -> int:
            return high

        def suggest_float(self, name: str, low: float, high: float, step: float) -> float:
            return high

        def suggest_categorical(self, name: str, choices: list) -> object:
            return choices[-1]

    assert "emitted_weight" in suggest(Fixed(), 0.99)
    assert "emitted_weight" not in suggest(Fixed(), 1.0)
    for temperature in (0.0, 0.7, 1.0):
        for guess in first_guesses(temperature):
            assert guess.keys() == suggest(Fixed(), temperature).keys()
    assert first_guesses(0.5)[1]["emitted_weight"] == 1.0  # 1.0 (1 - T) is the 0.5 by hand


def test_the_setting_by_hand_weighs_emitted_tokens_alike_at_every_temperature() -> None:
    cold, hot = (
        by_hand(workload(recorded(three_tokens, temperature=temperature)))
        for temperature in (0.0, 1.0)
    )
    law = np.array([[0.6, 0.4]], np.float32)
    rows = VerifiedRows(
        np.array([3], np.int32), np.array([0]), np.array([1]), np.array([[1, 2]], np.int32), law,
        np.array([2], np.int32), np.array([1.0]),
    )  # fmt: skip
    for contender in (cold, hot):
        drafter = contender.make()
        assert (drafter.table.order, drafter.interpolation, drafter.min_survival) == (6, 0.0, 0.0)
        drafter.observe(rows)
        known = drafter.table.look_up(np.array([3], np.int32))
        ids, probabilities = known[0], known[1]
        got = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
        assert got[2] == pytest.approx((0.4 + 0.5) / 1.5, rel=1e-6)
        assert got[1] == pytest.approx(0.6 / 1.5, rel=1e-6)


def test_differences_pair_and_the_other_traffic_is_another(deep: Trace) -> None:
    work = workload(deep, price=0.1)
    one, same = judge(work, [stand(work, {}, 4, "one"), stand(work, {}, 4, "same")])
    assert same.gain is not None
    assert (same.gain.value, same.gain.low, same.gain.high) == (0.0, 0.0, 0.0)
    assert difference(one.score, same.score).value == 0.0
    assert one.rate.low is not None
    assert one.rate.low < one.rate.value
    assert {share: other_share(share) for share in ("all", "prompt", "none")} == {
        "all": "prompt", "prompt": "all", "none": "all",
    }  # fmt: skip
