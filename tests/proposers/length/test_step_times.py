"""Step times: never falling, right under heavy noise, quick to follow, and refused when broken."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proposers.length.rising_curve import RECENT
from proposers.length.step_times import StepTimes
from proposers.length.step_times_file import KNOTS, StepTimesError

EVERY = np.concatenate([np.arange(1, 300), np.geomspace(300, 20_000, 40)])
SEEN = (1, 2, 3, 4, 5, 6, 9, 12, 17, 20, 30, 36)
CURVES = {
    "cpu": lambda n: 0.012 + 0.0005 * n,
    "gpu": lambda n: np.full_like(np.asarray(n, np.float64), 0.009),
    "bent": lambda n: 0.010 + 0.0002 * np.asarray(n) + 0.001 * np.maximum(np.asarray(n) - 12, 0),
    "steep": lambda n: 0.002 * np.asarray(n),
}


def serve(times, curve, steps, rng, *, tokens=SEEN, noise=0.03, pauses=0.05):
    """Steps of a server: log-normal noise, and pauses of a heavy tail."""
    for _ in range(steps):
        n = int(rng.choice(tokens))
        seconds = float(curve(n)) * math.exp(rng.normal(0, noise))
        if rng.random() < pauses:
            seconds *= 2 + rng.pareto(1.0)
        times.observe(n, seconds)


steps = st.lists(st.tuples(st.integers(1, 10_000), st.floats(1e-6, 1e4)), min_size=1, max_size=120)


@settings(deadline=None)
@given(steps)
def test_whatever_is_observed_times_are_positive_and_never_fall(observed):
    times = StepTimes()
    for n, seconds in observed:
        times.observe(n, seconds)
        got = times.seconds(EVERY)
        assert np.isfinite(got).all() and got.min() > 0
        assert np.diff(got).min() >= 0
    assert times.marginal(EVERY).min() >= 0
    np.testing.assert_allclose(
        times.marginal(EVERY), times.seconds(EVERY + 1) - times.seconds(EVERY), atol=1e-12
    )


@settings(deadline=None)
@given(steps, st.floats(1e-3, 1e3))
def test_another_unit_of_time_changes_nothing(observed, unit):
    ours, theirs = StepTimes(), StepTimes()
    for n, seconds in observed[:30]:
        ours.observe(n, seconds)
        theirs.observe(n, seconds * unit)
    np.testing.assert_allclose(theirs.seconds(EVERY), unit * ours.seconds(EVERY), rtol=1e-6)


@pytest.mark.parametrize("name", CURVES)
def test_a_known_curve_is_found_under_pauses(name):
    curve, times, rng = CURVES[name], StepTimes(), np.random.default_rng(0)
    serve(times, curve, 1000, rng)
    n = np.arange(1, 37)
    np.testing.assert_allclose(times.seconds(n), curve(n), rtol=0.04)
    slope = np.diff(curve(np.array([1.0, 36.0])))[0]
    assert np.sum(times.marginal(n[:-1])) == pytest.approx(slope, abs=0.04 * float(curve(36)))


def test_a_mean_would_not_have_found_it():
    """The negative control of the noise above: its pauses are worth more than the tolerance."""
    rng = np.random.default_rng(0)
    pauses = np.where(rng.random(4000) < 0.05, 2 + rng.pareto(1.0, 4000), 1.0)
    assert pauses.mean() > 1.1


@pytest.mark.parametrize("slow", range(4))
def test_a_pause_among_the_first_steps_sets_no_level(slow):
    times = StepTimes()
    for step in range(8):
        times.observe(1 + step % 3, 1.0 if step == slow else 0.01)
    assert times.seconds(1) == pytest.approx(0.01, rel=0.1)


def test_a_prior_is_there_before_the_first_step_and_scaled_by_it():
    times = StepTimes()
    assert np.diff(times.seconds(EVERY)).min() > 0
    times.observe(1, 3.0)
    assert times.seconds(1) == pytest.approx(3.0)
    assert 3.0 < times.seconds(36) < 12.0


@pytest.mark.parametrize("factor", [3.0, 0.4])
def test_a_machine_that_changes_is_followed_everywhere(factor):
    """Also where nothing is observed after the change: all steps now have 4 tokens or fewer."""
    curve, times, rng = CURVES["cpu"], StepTimes(), np.random.default_rng(1)
    serve(times, curve, 600, rng)
    serve(times, lambda n: factor * curve(n), 3 * RECENT, rng, tokens=(1, 2, 3, 4))
    n = np.arange(1, 37)
    np.testing.assert_allclose(times.seconds(n), factor * curve(n), rtol=0.08)


def test_a_curve_that_changes_its_shape_is_followed():
    times, rng = StepTimes(), np.random.default_rng(2)
    serve(times, CURVES["cpu"], 600, rng)
    serve(times, CURVES["bent"], 3000, rng)
    n = np.array(SEEN)
    np.testing.assert_allclose(times.seconds(n), CURVES["bent"](n), rtol=0.06)


def test_what_is_not_visited_for_a_while_is_remembered():
    curve, times, rng = CURVES["bent"], StepTimes(), np.random.default_rng(3)
    serve(times, curve, 1000, rng)
    serve(times, curve, 2000, rng, tokens=(1, 2))
    assert times.seconds(36) == pytest.approx(float(curve(36)), rel=0.06)


def test_new_lengths_are_learned_beside_well_known_ones():
    """The line that goes on from 1..4 tokens is far off at 36; a few steps there say so."""
    curve, times, rng = CURVES["bent"], StepTimes(), np.random.default_rng(4)
    serve(times, curve, 1000, rng, tokens=(1, 2, 3, 4))
    assert times.seconds(36) < 0.8 * float(curve(36))
    for _ in range(30):
        serve(times, curve, 5, rng, tokens=(1, 2, 3, 4))
        serve(times, curve, 1, rng, tokens=(36,))
    assert times.seconds(36) == pytest.approx(float(curve(36)), rel=0.06)
    assert times.seconds(2) == pytest.approx(float(curve(2)), rel=0.03)


def test_memory_does_not_grow():
    times, rng = StepTimes(), np.random.default_rng(5)
    serve(times, CURVES["cpu"], 100, rng)
    before = {name: np.size(value) for name, value in vars(times).items()}
    serve(times, CURVES["cpu"], 2000, rng)
    assert {name: np.size(value) for name, value in vars(times).items()} == before
    assert times.observed().max() <= times.memory
    assert times.steps == 2100


def test_observing_and_asking_is_cheap():
    """In numpy's interpolations on so many knots, a step; both times the best of several tries."""
    times, knots = StepTimes(), np.arange(20.0)
    times.observe(5, 0.01)

    def observe_and_ask():
        times.observe(5, 0.01)
        times.marginal(5)

    def best(work):
        tries = []
        for _ in range(10):
            began = time.perf_counter()
            for _ in range(200):
                work()
            tries.append(time.perf_counter() - began)
        return min(tries)

    assert best(observe_and_ask) < 40 * best(lambda: np.interp(5.0, knots, knots))


@pytest.mark.parametrize(
    ("tokens", "seconds"),
    [(0, 0.1), (-1, 0.1), (1, 0.0), (1, -1.0), (1, math.nan), (1, math.inf), (math.nan, 0.1)],
)
def test_what_is_no_step_is_refused(tokens, seconds):
    times = StepTimes()
    before = times.seconds(EVERY)
    with pytest.raises(ValueError, match="1 or more tokens"):
        times.observe(tokens, seconds)
    np.testing.assert_array_equal(times.seconds(EVERY), before)


@pytest.mark.parametrize("memory", [0, -1, math.nan])
def test_a_memory_below_one_step_is_refused(memory):
    with pytest.raises(ValueError, match="1 or more"):
        StepTimes(memory)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    times = StepTimes()
    serve(times, CURVES["cpu"], 200, np.random.default_rng(6))
    path = tmp_path / "curve.json"
    times.save(path, {"hardware": "an abacus, 2 cores"})
    return path


def test_a_saved_curve_comes_back_and_goes_on_as_if_never_saved(file, tmp_path):
    times = StepTimes()
    serve(times, CURVES["cpu"], 200, np.random.default_rng(6))
    loaded = StepTimes.load(file, hardware="an abacus, 2 cores")
    np.testing.assert_array_equal(loaded.seconds(EVERY), times.seconds(EVERY))
    assert loaded.about["hardware"] == "an abacus, 2 cores" and loaded.steps == 200
    for one in (times, loaded):
        serve(one, CURVES["cpu"], RECENT // 2, np.random.default_rng(7), pauses=0)
    np.testing.assert_allclose(loaded.seconds(EVERY), times.seconds(EVERY), rtol=1e-9)
    loaded.save(tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["about"]["hardware"] == "an abacus, 2 cores"


def test_a_long_memory_is_cut_when_it_is_loaded(tmp_path):
    times = StepTimes(memory=1e9)
    serve(times, CURVES["cpu"], 3000, np.random.default_rng(8))
    assert times.observed().max() > 200
    times.save(tmp_path / "curve.json")
    loaded = StepTimes.load(tmp_path / "curve.json")
    assert loaded.observed().max() == pytest.approx(loaded.memory)
    np.testing.assert_array_equal(loaded.seconds(EVERY), times.seconds(EVERY))
    loaded.observe(1, float(times.seconds(1)))
    n = np.arange(1, 37)
    np.testing.assert_allclose(loaded.seconds(n), times.seconds(n), rtol=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "a tree"}, "holds no step times"),
        ({"version": 2}, "version 2"),
        ({"version": True}, "version True"),
        ({"tokens": [1, 2]}, "not the knots"),
        ({"seconds": [1.0]}, "seconds are not"),
        ({"seconds": ["x"] * KNOTS.size}, "damaged"),
        ({"seconds": (0.01 / KNOTS).tolist()}, "they fall"),
        ({"seconds": (KNOTS - 1).tolist()}, "not positive"),
        ({"seconds": [math.nan] * KNOTS.size}, "seconds are not"),
        ({"sums": None}, "damaged"),
        ({"sums": [[-1.0] * 5] * (KNOTS.size - 1)}, "negative"),
        ({"sums": [[1.0, 2.0, 1.0, 1.0, 1.0]] * (KNOTS.size - 1)}, "of no steps"),
        ({"spreads": [0.0] * (KNOTS.size - 1)}, "negative"),
        ({"steps": -3}, "number of steps"),
        ({"steps": "many"}, "number of steps"),
        ({"about": 3}, "damaged"),
    ],
)
def test_a_broken_file_is_refused_with_one_sentence(file, change, words):
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StepTimesError, match=words) as refused:
        StepTimes.load(file)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["tokens", "seconds", "sums", "spreads", "steps", "about"])
def test_a_missing_part_is_refused(file, key):
    held = json.loads(file.read_text())
    del held[key]
    file.write_text(json.dumps(held))
    with pytest.raises(StepTimesError, match=f"damaged .*{key}"):
        StepTimes.load(file)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00\xff", "[" * 100_000])
def test_what_is_no_curve_is_refused(tmp_path, text):
    path = tmp_path / "curve.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(StepTimesError, match="holds no step times"):
        StepTimes.load(path)


def test_no_file_and_another_machine_are_refused(file, tmp_path):
    with pytest.raises(StepTimesError, match="cannot be read: No such file"):
        StepTimes.load(tmp_path / "none.json")
    with pytest.raises(StepTimesError, match="measured on an abacus, 2 cores, but this one is a"):
        StepTimes.load(file, hardware="a slide rule")
