"""p from recorded heads: that of the whole law where it is known, else within its own bounds."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.engine.exact import Sampling as Shape
from tests.engine.exact import shape
from tests.theory.test_trace_file import assert_same, small
from theory.traces import Sampling, Trace, processed_heads, tail_log_weights

VOCABULARY = 400
PARAMETERS = [(0.3, 0, 1.0), (0.7, 0, 1.0), (1.0, 0, 1.0), (1.3, 0, 1.0), (0.7, 5, 1.0)]
PARAMETERS += [(0.7, 100, 1.0), (1.2, 300, 1.0), (0.8, 0, 0.6), (0.8, 40, 0.9), (1.0, 0, 0.999)]


def laws(seed: int = 0, rows: int = 40) -> NDArray[np.float64]:
    """Laws with tails of different weight: Zipf's with random exponents, shuffled a little."""
    rng = np.random.default_rng(seed)
    ranks = np.arange(1, VOCABULARY + 1)
    masses = ranks ** -rng.uniform(0.8, 3.0, (rows, 1)) * rng.uniform(0.5, 1, (rows, VOCABULARY))
    return masses / masses.sum(axis=1, keepdims=True)


def head(p: NDArray[np.float64], size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    ids = np.argsort(-p, axis=1)[:, :size]
    return ids, np.log(np.take_along_axis(p, ids, 1))


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("held", [64, 200, VOCABULARY])
def test_p_is_within_its_slack_of_the_whole_law(
    parameters: tuple[float, int, float], held: int
) -> None:
    p, sampling = laws(), Sampling(*parameters)
    exact = shape(np.log(p).astype(np.float64), Shape(*parameters))
    ids, logs = head(p, held)
    emitted = np.array([np.random.default_rng(1).choice(VOCABULARY, p=row) for row in exact])
    own = np.log(p[np.arange(len(p)), emitted])
    kept = min(held, 64)
    tails = tail_log_weights(logs, kept, sampling, VOCABULARY)
    found = processed_heads(
        logs[:, :kept].astype(np.float32), own.astype(np.float32), sampling, VOCABULARY, tails
    )
    truth = np.take_along_axis(exact, ids[:, :kept], 1)
    off = np.abs(found.masses / np.where(truth > 0, truth, 1) - (truth > 0))
    own_off = np.abs(found.emitted / exact[np.arange(len(p)), emitted] - 1)
    # Where the weight of the tail is uncertain, top-p may cut one token earlier or later.
    same = (found.masses > 0).sum(axis=1) == (truth > 0).sum(axis=1)
    assert same.mean() > (0.7 if 0 < parameters[2] < 1 and held < VOCABULARY else 0.999)
    assert np.all(off[same] <= found.slack[same, None] + 1e-5)
    assert np.all(own_off[same] <= found.slack[same] + 1e-5)
    np.testing.assert_allclose(found.kept, found.masses.sum(axis=1))
    if parameters[2] == 1 and (held == VOCABULARY or 0 < parameters[1] <= held):
        assert found.slack.max() < 1e-5


def test_more_log_probabilities_than_are_kept_tighten_p() -> None:
    p, sampling = laws(), Sampling(0.7)
    _, logs = head(p, 200)
    own = logs[:, 0].astype(np.float32)
    few, more = (
        processed_heads(
            logs[:, :64].astype(np.float32), own, sampling, VOCABULARY,
            tail_log_weights(logs[:, :held], 64, sampling, VOCABULARY),
        )
        for held in (64, 200)
    )  # fmt: skip
    assert more.slack.mean() < 0.4 * few.slack.mean()
    alone = processed_heads(logs[:, :64].astype(np.float32), own, sampling, VOCABULARY)
    np.testing.assert_allclose(alone.emitted, few.emitted, rtol=1e-5)


def test_at_temperature_0_p_is_a_point_mass() -> None:
    _, logs = head(laws(), 8)
    found = processed_heads(logs.astype(np.float32), logs[:, 0], Sampling(0.0), VOCABULARY)
    assert np.all(found.masses == np.eye(8)[0]) and np.all(found.emitted == 1)
    with pytest.raises(ValueError, match="temperature must be 0 or more"):
        processed_heads(logs.astype(np.float32), logs[:, 0], Sampling(-1.0), VOCABULARY)


def test_a_law_with_few_possible_tokens_has_no_tail() -> None:
    logs = np.array([[np.log(0.5), np.log(0.25), np.log(0.25), -np.inf]])
    found = processed_heads(logs.astype(np.float32), logs[:, 1], Sampling(0.5), 1000)
    np.testing.assert_allclose(found.masses, [[4 / 6, 1 / 6, 1 / 6, 0]], rtol=1e-6)
    assert found.slack.max() == 0


def tailed(trace: Trace) -> Trace:
    tails = np.zeros((len(trace), 2), np.float32)
    return replace(trace, tail_log_weights=tails)


def test_joined_traces_hold_all_answers_in_order() -> None:
    one, other = tailed(small(answers=3)), tailed(small(answers=2, seed=1))
    other = replace(other, max_tokens=3)
    both = Trace.joined([one, other], {"a": 1})
    assert (both.prompts, both.answers, len(both)) == (4, 5, 6 + 3)
    np.testing.assert_array_equal(both.answer_prompts, [0, 1, 0, 2, 3])
    for part, prompts, answers in ((one, 0, 0), (other, 2, 3)):
        for i in range(part.prompts):
            np.testing.assert_array_equal(both.prompt(prompts + i), part.prompt(i))
        for i in range(part.answers):
            for name in ("tokens", "ids", "log_masses", "emitted_log_masses", "tail_log_weights"):
                np.testing.assert_array_equal(
                    getattr(both, name)[both.answer(answers + i)],
                    getattr(part, name)[part.answer(i)],
                )
    assert both.provenance == {"a": 1}
    assert_same(Trace.joined([one], one.provenance), one)


def test_traces_that_differ_are_not_joined() -> None:
    with pytest.raises(ValueError, match="nothing to join"):
        Trace.joined([])
    for changed in (
        replace(small(), vocabulary=10),
        replace(small(), sampling=Sampling()),
        tailed(small()),
    ):
        with pytest.raises(ValueError, match="only traces of one vocabulary"):
            Trace.joined([small(), changed])
