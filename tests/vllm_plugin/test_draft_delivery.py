"""Drafts come with a step's output, and are asked for where they did not."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, DraftTokenIds, ModelRunnerOutput

from vllm_plugin import draft_delivery, guard, hooks
from vllm_plugin.flat_drafts import FlatDrafts

DRAFTS = DraftTokenIds(["a", "b"], [[1, 2], []])


class Worker:
    """vLLM's, as far as it matters: a runner that has drafts, and outputs to give."""

    def __init__(self, output: Any, drafts: Any = DRAFTS, *, asynchronous: bool = False) -> None:
        self.output = output
        self.model_runner = SimpleNamespace(
            use_async_scheduling=asynchronous, take_draft_token_ids=lambda: drafts
        )

    @draft_delivery._sending
    def sample_tokens(self, grammar_output: Any) -> Any:
        assert grammar_output == "grammar"
        return self.output


class Scheduler:
    def __init__(self) -> None:
        self.drafts: list[Any] = []

    @draft_delivery._keeping
    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        return scheduler_output

    def update_draft_token_ids(self, drafts: Any) -> None:
        self.drafts.append(drafts)


class Core:
    """The engine core between two steps; counts the times it asks for drafts."""

    def __init__(self) -> None:
        self.scheduler, self.asked = Scheduler(), 0

    def step(self, output: Any) -> list[Any]:
        """What the scheduler is told of after a step with this output."""
        self.scheduler.drafts = []
        assert self.scheduler.update_from_output("scheduled", output) == "scheduled"
        self.post_step(True)
        return self.scheduler.drafts

    @draft_delivery._delivering
    def post_step(self, model_executed: bool) -> None:
        assert model_executed
        self.asked += 1


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[hooks.Hook]:
    """Hooks that would be installed, instead of installing them."""
    found: list[hooks.Hook] = []
    monkeypatch.setattr(hooks, "install", lambda hook, make: found.append(hook))
    return found


def output() -> ModelRunnerOutput:
    return ModelRunnerOutput(req_ids=["a", "b"], req_id_to_index={"a": 0, "b": 1})


def sent(worker: Worker) -> Any:
    """A worker's output as it arrives in the engine core's process."""
    return pickle.loads(pickle.dumps(worker.sample_tokens("grammar")))


def test_drafts_arrive_with_the_output_and_nobody_asks() -> None:
    core = Core()
    assert core.step(sent(Worker(output()))) == [DRAFTS]
    assert core.asked == 0


def test_what_paths_say_of_their_drafts_arrives_too() -> None:
    flat = FlatDrafts([1, 2, 3])
    flat.distinct = [0, 1, 1, 2]
    (drafts,) = Core().step(sent(Worker(output(), DraftTokenIds(["a"], [flat]))))
    (arrived,) = drafts.draft_token_ids
    assert list(arrived) == [1, 2, 3] and arrived.distinct == [0, 1, 1, 2]


def test_a_step_without_drafts_is_known_to_have_none() -> None:
    core = Core()
    assert core.step(sent(Worker(output(), None))) == []
    assert core.asked == 0


@pytest.mark.parametrize(
    "worker",
    [
        Worker(EMPTY_MODEL_RUNNER_OUTPUT),  # one object for all steps that sample nothing
        Worker(output(), asynchronous=True),
        Worker(None),
    ],
)
def test_other_outputs_are_left_alone_and_drafts_are_asked_for(worker: Worker) -> None:
    made = worker.sample_tokens("grammar")
    assert made is worker.output
    assert not hasattr(made, "specproof_drafts")
    core = Core()
    assert core.step(made or output()) == []
    assert core.asked == 1


def test_drafts_are_taken_once() -> None:
    core = Core()
    core.step(sent(Worker(output())))
    assert core.step(output()) == []
    assert core.asked == 1


def test_a_front_end_prepares_the_engine_cores_that_are_forked_from_it(
    installed: list[hooks.Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_check_table", lambda *given: None)
    monkeypatch.setattr(guard, "_mark", lambda *given: None)
    config = SimpleNamespace(model_config=None, speculative_config=None)
    create = guard._guarded(lambda arguments: config)
    given = {"model": "org/name", "additional_config": None, "speculative_config": None}
    workers = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}
    assert create(SimpleNamespace(**given, **workers)) is config
    assert installed == []  # speculation of somebody else's, or none
    given["speculative_config"] = {
        "method": "custom_class", "model": "vllm_plugin.Stand", "num_speculative_tokens": 4,
    }  # fmt: skip
    assert create(SimpleNamespace(**given, **workers)) is config
    assert {hooks.TAKE_OUTPUT, hooks.POST_STEP} <= set(installed)


def test_a_seam_that_does_not_fit_leaves_all_three_alone(
    installed: list[hooks.Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    draft_delivery.install_in_worker()
    draft_delivery.install_in_core()
    assert installed == list(hooks.DELIVERY)
    installed.clear()
    monkeypatch.setattr(hooks, "problem", {hooks.POST_STEP: "it takes something else"}.get)
    draft_delivery.install_in_worker()
    draft_delivery.install_in_core()
    assert installed == []
