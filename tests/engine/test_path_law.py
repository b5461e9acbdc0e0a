"""Losslessness of several paths in the engine, against the exact law of the model's logits.

As ``test_law``, for every way of drafting with every rule that is lossless for it: one engine is
given one pair after the other. False-alarm budget: 1e-9 for the module, split over ``TESTS`` tests.
Power: a deviation of TV 0.08 is found with probability above 0.95 (``test_power``);
``benchmarks/paths_proof.py`` finds TV 0.02 at every temperature.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine import tiny
from tests.engine.engines import counters
from tests.engine.exact import ExactModel, Law
from tests.engine.path_pairs import (
    SETTINGS,
    drop_by_token,
    path_engine,
    publish_another_law,
    switch,
    temperatures,
)
from tests.engine.sampled_laws import CHILDREN, PROMPT, fits, plan, sample

N = 6_144
TESTS = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny"), sharpness=2.2)


@pytest.fixture(scope="module")
def exact(model: Path) -> Any:
    reference = ExactModel(model)

    @cache
    def law(name: str) -> Law:
        return reference.joint_after_first(PROMPT, SETTINGS[name], prune=1e-8)

    return law


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[Any]:
    with path_engine(model) as started:
        sample(started, SETTINGS["T=1"], 256)  # a table that knows some contexts
        yield started


@pytest.mark.parametrize("name", ["T=0.7", "T=1", "T=0.7, top-p"])
def test_power(exact: Any, name: str) -> None:
    assert exact(name).sum() == pytest.approx(1, abs=1e-6)
    assert plan(exact(name), N, TESTS).power(0.08) > 0.95


@pytest.mark.parametrize(
    ("drafting", "rule", "name"),
    [*temperatures(), ("without_replacement", "rrs_without_replacement", "T=0.7, top-p")],
)
def test_drafted_positions_follow_the_target_law(
    llm: Any, exact: Any, drafting: str, rule: str, name: str
) -> None:
    llm.collective_rpc(switch, args=(drafting, rule))
    before = counters(llm)
    tokens = sample(llm, SETTINGS[name], N)
    after = counters(llm)
    drafted, accepted, steps = (
        after[c] - before[c] for c in ("num_draft_tokens", "num_accepted_tokens", "num_drafts")
    )
    assert drafted > 3 * N  # the positions under test are really drafted, by several paths
    assert 0.3 < accepted / steps < 2.7  # and q is neither p nor hopeless
    assert fits(tokens, exact(name), TESTS)


def test_requests_with_a_seed_among_others(llm: Any, exact: Any) -> None:
    llm.collective_rpc(switch, args=("top_plus_one", "top_plus_one"))
    tokens = sample(llm, SETTINGS["T=0.7"], 2 * N, seeded=True)
    half = np.arange(2 * N) // CHILDREN % 2 == 1
    assert fits(tokens[half], exact("T=0.7"), TESTS), "requests with a seed"
    assert fits(tokens[~half], exact("T=0.7"), TESTS), "requests without a seed"


@pytest.mark.parametrize(
    ("mistake", "drafting", "rule"),
    [
        (publish_another_law, "without_replacement", "rrs_without_replacement"),
        (drop_by_token, "iid", "kseq"),
    ],
)
def test_a_mistake_is_found_out(
    llm: Any, exact: Any, mistake: Any, drafting: str, rule: str
) -> None:
    llm.collective_rpc(switch, args=(drafting, rule))
    llm.collective_rpc(mistake)
    assert not fits(sample(llm, SETTINGS["T=1"], N), exact("T=1"), TESTS)
