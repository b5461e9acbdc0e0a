"""The acceptance predictor: its prior, what it learns and forgets, its file, its survival."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from proposers.length.features import (
    COUNT,
    DEPTH,
    ENTROPY,
    KEPT,
    MATCHED,
    MEAN_TOP,
    NAMES,
    TEMPERATURE,
    TOP,
)
from proposers.length.policy import Candidates
from proposers.length.predictor import DRIFT, LEAST, MOST, AcceptancePredictor
from proposers.length.prior import SIZE, WEIGHTS, design
from proposers.length.shadow import shadow_labels
from proposers.length.threshold import Threshold
from proposers.replay.lengths import GivenTimes


def places(count: int, *, matched: int = 3, top: float = 0.6, visits: float = 2.0) -> NDArray:
    found = np.zeros((count, len(NAMES)), np.float32)
    found[:, [MATCHED, COUNT, TOP, MEAN_TOP, KEPT]] = matched, visits, top, top, 0.95
    found[:, ENTROPY] = -top * np.log(top) - (1 - top) * np.log((1 - top) / 8)
    found[:, [DEPTH, TEMPERATURE]] = 0, 0.7
    return found


def test_without_data_it_is_the_prior() -> None:
    rng = np.random.default_rng(1)
    shown = places(40)
    shown[:, MATCHED] = rng.integers(1, 9, 40)
    shown[:, TOP] = shown[:, MEAN_TOP] = rng.random(40)
    basis = np.zeros((40, SIZE))
    design(shown, basis)
    want = 1 / (1 + np.exp(-basis @ WEIGHTS))
    found = AcceptancePredictor().predict(shown.reshape(8, 5, -1))
    np.testing.assert_allclose(found.ravel(), np.clip(want, LEAST, MOST), rtol=1e-12)


def test_the_prior_says_what_everybody_would_expect() -> None:
    made = AcceptancePredictor()
    sure, flat = places(1, top=0.95)[None], places(1, top=0.2)[None]
    often, once = places(1, matched=6, visits=8)[None], places(1, matched=1, visits=1)[None]
    assert made.predict(sure) > made.predict(flat) + 0.3
    assert made.predict(often) > made.predict(once) + 0.1


@pytest.mark.parametrize("matched", [0, 3, 6])
def test_it_learns_and_follows_a_change(matched: int) -> None:
    made, rng = AcceptancePredictor(keep=0.99), np.random.default_rng(2)
    one = places(1, matched=matched)[None]
    for truth in (0.9, 0.1):
        made.learn(places(2000, matched=matched), (rng.random(2000) < truth).astype(float))
        assert made.predict(one)[0, 0] == pytest.approx(truth, abs=0.12)
    assert made.learned == 4000


def test_deep_drafts_are_trusted_less() -> None:
    made, shown = AcceptancePredictor(), places(8)[None]
    factors = made.predict_drafts(shown) / made.predict(shown)
    np.testing.assert_allclose(factors[0], [1, 1, *[DRIFT] * 6])


def test_it_becomes_calibrated_where_the_prior_is_wrong() -> None:
    """Everything half as likely as the prior says."""
    rng = np.random.default_rng(3)
    made = AcceptancePredictor()
    errors, predicted = [], []
    for _ in range(300):
        shown = places(32)
        shown[:, MATCHED] = rng.integers(1, 7, 32)
        shown[:, TOP] = shown[:, MEAN_TOP] = rng.random(32)
        truth = AcceptancePredictor().predict(shown[None])[0] / 2
        predicted.append(made.predict(shown[None])[0])
        errors.append(predicted[-1] - truth)
        made.learn(shown, (rng.random(32) < truth).astype(float))
    late, at = np.concatenate(errors[100:]), np.concatenate(predicted[100:])
    parts = np.array_split(np.argsort(at), 15)
    assert sum(abs(late[part].sum()) for part in parts) / late.size < 0.03


def test_nan_stays_nan_and_teaches_nothing() -> None:
    made = AcceptancePredictor()
    shown = places(3)
    shown[1] = np.nan
    found = made.predict(shown[None])
    assert np.isnan(found[0]).tolist() == [False, True, False]
    made.learn(shown, np.array([np.nan, 1.0, np.nan]))
    assert made.learned == 0
    np.testing.assert_array_equal(made.predict(shown[None]), found)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.data())
def test_it_stays_within_its_bounds(labels: list[float], data: st.DataObject) -> None:
    made = AcceptancePredictor(shrinkage=0.5, keep=0.9)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shown = places(len(labels))
    shown[:, MATCHED] = rng.integers(0, 9, len(labels))
    shown[:, TOP] = shown[:, MEAN_TOP] = rng.random(len(labels))
    made.learn(shown, np.array(labels))
    found = made.predict(shown[None])
    assert ((found >= LEAST) & (found <= MOST)).all()


def test_a_file_brings_everything_back(tmp_path: Path) -> None:
    made, rng = AcceptancePredictor(shrinkage=9, keep=0.97), np.random.default_rng(4)
    made.learn(places(100), rng.random(100))
    made.save(tmp_path / "a.json")
    again = AcceptancePredictor.load(tmp_path / "a.json")
    for each in (made, again):
        each.learn(places(10, matched=6), np.zeros(10))
    np.testing.assert_array_equal(made.predict(places(4)[None]), again.predict(places(4)[None]))
    assert again.learned == 110


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ({"format": "other"}, "format"),
        ({"version": 9}, "version 9"),
        ({"weights": [1.0]}, "broken"),
        ({"errors": None}, "broken"),
        ({"counts": ["x"]}, "broken"),
        ({"keep": 2.0}, "broken"),
        ({"learned": "many"}, "broken"),
    ],
)
def test_broken_files_are_refused(change: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    AcceptancePredictor().save(path)
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        assert isinstance(change, dict)
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        AcceptancePredictor.load(path)


def test_more_error_than_labels_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    made = AcceptancePredictor()
    made.errors[0] = 5.0
    made.save(path)
    with pytest.raises(ValueError, match="broken"):
        AcceptancePredictor.load(path)


def test_wrong_shapes_and_labels_are_refused() -> None:
    made = AcceptancePredictor()
    with pytest.raises(ValueError, match="features must have shape"):
        made.predict(places(3))
    with pytest.raises(ValueError, match="shape of accepted"):
        made.learn(places(3), np.zeros(2))
    with pytest.raises(ValueError, match="must lie in"):
        made.learn(places(1), np.array([1.5]))
    with pytest.raises(ValueError, match="weights must be"):
        AcceptancePredictor(np.zeros(3))
    with pytest.raises(ValueError, match="shrinkage"):
        AcceptancePredictor(shrinkage=0)
    with pytest.raises(ValueError, match="keep"):
        AcceptancePredictor(keep=0)


def test_shadow_labels_are_the_acceptance_in_the_mean() -> None:
    """E min(1, q(y)/p(y)) over y ~ p is sum min(p, q), exactly."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        p, q = rng.dirichlet(np.ones(6), 2)
        labels = shadow_labels(q[:, None], p[:, None])[:, 0]
        assert p @ labels == pytest.approx(np.minimum(p, q).sum(), rel=1e-12)


def test_shadow_labels_end_where_nothing_is_known() -> None:
    q = np.array([[0.5, 0.0, 0.7, 0.1], [0.2, -1.0, -1.0, -1.0], [0.3, 0.3, 0.3, 0.3]])
    p = np.array([[0.25, 0.5, 0.5, 0.5], [0.4, 0.4, 0.4, 0.4], [0.6, 0.0, 0.3, 0.1]])
    found = shadow_labels(q, p)
    nan = np.nan
    want = [[1.0, 0.0, nan, nan], [0.5, nan, nan, nan], [0.5, nan, 1.0, 1.0]]
    np.testing.assert_allclose(found, want)
    with pytest.raises(ValueError, match="one shape"):
        shadow_labels(q, p[:2])


@pytest.mark.parametrize("shadow", [True, False])
def test_who_learns_from_drafted_places_only_starves(shadow: bool) -> None:
    """Traffic is hard for a while, then easy: one of the two policies never finds out."""
    rng = np.random.default_rng(6)
    made = AcceptancePredictor(keep=0.99)
    policy = Threshold(GivenTimes([1, 2], [1.0, 1.3]), rate=1.0)  # wants 0.3 and more
    chosen = []
    for step in range(1500):
        truth = 0.02 if step < 500 else 0.95
        shown = places(1)[None]
        length = int(
            policy.lengths(
                Candidates(np.zeros(1, np.int64), made.predict(shown), np.ones(1, np.int64))
            )[0]
        )
        chosen.append(length)
        if shadow or length:  # the label: of what was emitted, or of the verdict
            made.learn(shown[0], np.array([float(rng.random() < truth)]))
    assert chosen[0] == 1 and sum(chosen[400:500]) == 0
    assert sum(chosen[1200:]) == (300 if shadow else 0)
