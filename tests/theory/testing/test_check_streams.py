"""check_streams: independent streams pass, every way of sharing noise is found."""

import numpy as np
import pytest

from theory.testing import check_streams

N = 60_000


def streams(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random(N) for name in ("draft", "accept", "emit")}


def test_independent_streams_pass_with_stated_power():
    report = check_streams(streams())
    assert report.independent, report
    assert report.power > 0.99
    assert "independent" in str(report)
    assert len(report.pairs) == 3 * 9 + 3 * 4


@pytest.mark.parametrize("lag", [0, 1, -3])
def test_a_shared_stream_is_found_at_its_lag(lag):
    noise = streams()
    noise["accept"] = np.roll(noise["draft"], lag)
    found = [pair for pair in check_streams(noise).pairs if pair.dependent]
    assert [(pair.first, pair.second, pair.lag) for pair in found] == [("draft", "accept", lag)]
    assert found[0].correlation == pytest.approx(1, abs=0.01)


def test_dependence_without_correlation_is_found():
    noise = streams()
    noise["emit"] = np.abs(2 * noise["draft"] - 1)
    found = [pair for pair in check_streams(noise).pairs if pair.dependent]
    assert [(pair.first, pair.second, pair.lag) for pair in found] == [("draft", "emit", 0)]
    assert abs(found[0].correlation) < 0.05


def test_noise_used_twice_is_found():
    """Noise made ahead in bulk, and each number used in two places running."""
    noise = streams()
    noise["draft"] = np.repeat(noise["draft"][: N // 2], 2)
    assert not check_streams(noise).independent


def test_noise_that_is_not_uniform_is_found():
    noise = streams()
    noise["emit"] = noise["emit"] ** 1.3
    assert not check_streams(noise).independent


def test_bad_streams_are_refused():
    with pytest.raises(ValueError, match="one length"):
        check_streams({"a": np.zeros(2000), "b": np.zeros(1999)})
    with pytest.raises(ValueError, match="in \\[0, 1\\)"):
        check_streams({"a": np.ones(2000)})
