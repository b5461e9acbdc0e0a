"""Position-keyed noise: uniform, raced to the law p, and coupled as its closed form says.

Every statistical test spends FALSE_ALARM / TESTS, exactly guaranteed (theory.equivalence).
"""

import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numba import njit
from numpy.typing import NDArray

from proposers.noise import mix64, race, request_key, row_key, uniform
from proposers.stand import draw_race
from theory.equivalence import joint_counts, plan_fit

Law = NDArray[np.float64]
FALSE_ALARM, TESTS = 1e-10, 12
N = 300_000
GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1
KEYS = st.integers(1, MASK)


@njit
def uniforms(key, positions, tokens):
    """uniform(row_key(key, i), x) for i < positions, x < tokens."""
    found = np.empty((positions, tokens))
    for i in range(positions):
        for x in range(tokens):
            found[i, x] = uniform(row_key(key, i), x)
    return found


@njit
def winners(p, q_ids, q, key, positions):
    """At each position: the target's winner under p, and the draft's under the sparse law q."""
    found = np.empty((positions, 2), np.int64)
    for i in range(positions):
        row = row_key(key, i)
        found[i, 0] = race(p, row)
        found[i, 1] = draw_race(q_ids, q, q_ids.shape[0], row)
    return found


def assert_follows(sequences: NDArray[np.int64], law: Law) -> None:
    """Counts of sequences follow a law of shape (V,) * length, by a test that sees TV 0.02."""
    n = sequences.shape[0]
    plan = plan_fit(law, n, false_alarm=FALSE_ALARM, tests=TESTS)
    assert plan.power(0.02, simulations=200) > 0.99
    assert not plan.evaluate(joint_counts(sequences, law.shape[0])).rejected


def laws(sparse: bool) -> tuple[Law, NDArray[np.int32], Law]:
    """p over 12 tokens, and a q over some of them, ids in no order."""
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.full(12, 0.8))
    ids = rng.permutation(12)[: 5 if sparse else 12].astype(np.int32)
    return p, ids, rng.dirichlet(np.full(ids.size, 0.8))


def test_noise_is_uniform_and_independent_over_positions_and_tokens() -> None:
    cells = (uniforms(np.uint64(request_key(7)), N, 3) * 8).astype(np.int64)
    flat = np.full((8, 8), 1 / 64)
    assert_follows(cells[:, :2], flat)  # two tokens at one place
    assert_follows(np.stack([cells[:-1, 0], cells[1:, 0]], axis=1), flat)  # one token, two places
    assert_follows(np.stack([cells[:-1, 0], cells[1:, 1]], axis=1), flat)


def test_nearby_seeds_are_independent() -> None:
    one, two = (uniforms(np.uint64(request_key(seed)), N, 1)[:, 0] for seed in (0, 1))
    pairs = (np.stack([one, two], axis=1) * 8).astype(np.int64)
    assert_follows(pairs, np.full((8, 8), 1 / 64))


def unmixed(x: int) -> int:
    """The inverse of mix64."""
    x ^= (x >> 31) ^ (x >> 62)
    x = x * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    x ^= (x >> 27) ^ (x >> 54)
    x = x * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return x ^ (x >> 30) ^ (x >> 60)


@settings(deadline=None)
@given(KEYS)
def test_mix64_is_a_bijection(x: int) -> None:
    assert unmixed(int(mix64(np.uint64(x)))) == x


@pytest.mark.parametrize("bits", [0, MASK, 1 << 63, MASK - 2**12])
def test_uniform_stays_inside_the_open_interval(bits: int) -> None:
    """The extreme words of the generator, reached through its inverse; 1 would race to infinity."""
    u = uniform(np.uint64(unmixed(bits)), 0)
    assert 0 < u < 1
    assert abs(u - bits / 2**64) <= 2**-52


@pytest.mark.parametrize("sparse", [True, False])
def test_races_have_the_laws_p_and_q(sparse: bool) -> None:
    p, ids, q = laws(sparse)
    won = winners(p, ids, q, np.uint64(request_key(11)), N)
    assert_follows(won[:, :1], p)
    spread = np.zeros(12)
    spread[ids] = q
    assert_follows(won[:, 1:], spread)


@pytest.mark.parametrize("sparse", [True, False])
def test_coupled_races_meet_as_often_as_the_closed_form_says(sparse: bool) -> None:
    p, ids, q = laws(sparse)
    won = winners(p, ids, q, np.uint64(request_key(13)), N)
    dense = np.zeros(12)
    dense[ids] = q
    expected = sum(
        1 / sum(max(p[y] / p[x], dense[y] / dense[x]) for y in range(12))
        for x in range(12)
        if dense[x] > 0
    )
    hoeffding = math.sqrt(math.log(2 * TESTS / FALSE_ALARM) / (2 * N))
    assert abs((won[:, 0] == won[:, 1]).mean() - expected) < hoeffding
    assert expected - hoeffding > (p * dense).sum()  # so it is seen to beat independent draws
    assert expected <= np.minimum(p, dense).sum() + 1e-12


@settings(deadline=None)  # the first call compiles
@given(
    arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 1, allow_subnormal=False)),
    KEYS,
    st.integers(0, 2**31 - 1),
)
def test_race_is_the_naive_argmin(p: Law, key: int, position: int) -> None:
    assume(p.max() == 0 or p.max() > 1e-300)  # below, every score is infinite, and one as good
    row = np.uint64(row_key(np.uint64(key), position))
    scores = [
        -math.log1p(-uniform(row, x)) / mass if mass > 0 else math.inf for x, mass in enumerate(p)
    ]
    expected = int(np.argmin(scores)) if p.max() > 0 else -1
    assert race(p, row) == expected
    if expected >= 0 and p.max() > 1e-30:  # unnormalised laws in the target's precision too
        assert race(np.float32(3) * p.astype(np.float32), row) in close(scores)


def close(scores: list[float]) -> list[int]:
    """The tokens that single precision may take for the smallest score."""
    return [x for x, score in enumerate(scores) if score <= min(scores) * (1 + 1e-6)]


@settings(deadline=None)
@given(st.integers(-(2**63), MASK))
@example(-GOLDEN)
@example((-GOLDEN) & MASK)
@example(MASK)
def test_a_seed_never_has_the_key_of_no_seed(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy warns when a scalar overflows
        key = request_key(seed)
    assert 0 < key <= MASK
    assert key == request_key(seed)


def test_seeds_have_keys_of_their_own() -> None:
    assert len({request_key(seed) for seed in range(-500, 500)}) == 1000
