"""The clock of steps: what a step holds, what its time covers, and what it is not told of."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_plugin import hooks
from vllm_plugin.step_clock import StepClock, held


def scheduled(new: tuple[str, ...] = (), drafts: Any = None, **tokens: int) -> Any:
    return SimpleNamespace(
        num_scheduled_tokens=tokens,
        scheduled_spec_decode_tokens=drafts or {},
        scheduled_new_reqs=list(new),
    )


@pytest.mark.parametrize(
    ("output", "tokens", "requests", "decoding"),
    [
        (scheduled(a=1, b=1), 2, 2, True),
        (scheduled(a=4, b=1, drafts={"a": [5, 6, 7]}), 5, 2, True),
        (scheduled(a=1, b=9, new=("b",)), 10, 2, False),
        (scheduled(a=1, new=("a",)), 1, 1, False),
        (scheduled(a=4, b=200, drafts={"a": [5, 6, 7]}), 204, 2, False),
        (scheduled(), 0, 0, True),
    ],
)
def test_what_a_step_holds(output: Any, tokens: int, requests: int, decoding: bool) -> None:
    assert held(output) == (tokens, requests, decoding)


class Runner:
    """Two calls a step, as the V1 runner has them."""

    def execute_model(self, scheduler_output: Any, intermediate_tensors: Any = None) -> None:
        time.sleep(0.004)

    def sample_tokens(self, grammar_output: Any) -> str:
        time.sleep(0.004)
        return "output"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A runner of a class that is hooked as vLLM's would be."""

    class Hooked(Runner):
        pass

    def install(hook: Any, make: Any) -> None:
        name = hook.target.rpartition(".")[2]
        original = getattr(Hooked, name)
        if not hasattr(original, "__specproof_original__"):
            replaced = make(original)
            replaced.__specproof_original__ = original
            setattr(Hooked, name, replaced)

    monkeypatch.setattr(hooks, "install", install)
    return Hooked()


def test_every_step_is_told_of_with_its_time(runner: Runner) -> None:
    steps: list[Any] = []
    StepClock.install(runner, lambda *step: steps.append(step))
    for output in (scheduled(a=1), scheduled(a=3, b=1, drafts={"a": [1, 2]}), scheduled(a=5)):
        runner.execute_model(output)
        time.sleep(0.002)
        assert runner.sample_tokens(None) == "output"
    assert [step[:3] for step in steps] == [(1, 1, True), (4, 2, True), (5, 1, False)]
    assert all(0.010 <= step[3] < 60 for step in steps)


def test_steps_without_tokens_or_without_a_beginning_are_not_told_of(runner: Runner) -> None:
    steps: list[Any] = []
    StepClock.install(runner, lambda *step: steps.append(step))
    runner.sample_tokens(None)  # the step in which the clock was installed
    runner.execute_model(scheduled())
    runner.sample_tokens(None)
    assert steps == []
    runner.execute_model(scheduled(a=1))
    runner.sample_tokens(None)
    runner.sample_tokens(None)
    assert len(steps) == 1


def test_other_runners_and_a_second_clock(runner: Runner) -> None:
    """A runner without a clock works as ever; a second clock takes the first one's place."""
    first: list[Any] = []
    second: list[Any] = []
    other = type(runner)()
    StepClock.install(runner, lambda *step: first.append(step))
    StepClock.install(runner, lambda *step: second.append(step))
    other.execute_model(scheduled(a=1))
    assert other.sample_tokens(None) == "output"
    runner.execute_model(scheduled(a=1))
    runner.sample_tokens(None)
    assert (len(first), len(second)) == (0, 1)


def test_a_seam_that_does_not_fit_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner()
    monkeypatch.setattr(hooks, "problem", lambda hook: f"{hook.target} takes (self)")
    with pytest.raises(RuntimeError, match=r"cannot time steps: vllm.*execute_model takes"):
        StepClock.install(runner, lambda *step: None)
    assert not hasattr(runner, "specproof_step_clock")
