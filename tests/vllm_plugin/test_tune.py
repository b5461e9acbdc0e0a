"""Whatever `specproof tune` may write, the engine takes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from proposers.replay import make_drafter
from proposers.replay.drafters import DRAFTERS
from proposers.replay.tune_cli import _config, _speculative
from proposers.replay.tuning import first_guesses, suggest
from vllm_plugin import guard
from vllm_plugin.config import Options, read_options


class Corner:
    """Chooses an end of every range, as a coin says."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return low if self.rng.random() < 0.5 else high

    def suggest_float(self, name: str, low: float, high: float, step: float) -> float:
        return low if self.rng.random() < 0.5 else high

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return choices[self.rng.integers(len(choices))]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_every_choice_goes_through_the_door_of_the_engine(temperature: float) -> None:
    choices = [suggest(Corner(seed), temperature) for seed in range(64)]
    for options in (*choices, *first_guesses(temperature)):
        config = json.loads(json.dumps(_config(options, "block")))
        read = read_options(config)
        assert {name: getattr(read, name) for name in options} == options
        for draft_length in (1, 128):
            speculative = json.dumps(_speculative(draft_length))
            assert guard.check("org/name", speculative, json.dumps(config)) is True
        make_drafter("stand", options, draft_length=4)


@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_rules_are_those_of_the_engine(rule: str) -> None:
    assert read_options(_config({}, rule)).rule == rule


def test_the_first_guess_is_the_engine_s_default() -> None:
    options = Options()
    for name, value in first_guesses(0.7)[0].items():
        assert getattr(options, name) == value
        assert DRAFTERS["stand"].defaults[name] == value
