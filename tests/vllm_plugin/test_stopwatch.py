"""The stopwatch: what it times is there, and a step's time falls to its parts."""

import inspect
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_plugin import stopwatch
from vllm_plugin.adapter_v1 import V1Adapter
from vllm_plugin.stopwatch import LAYOUT, STOCK, Stopwatch


@pytest.mark.parametrize(("part", "owner", "name"), stopwatch.parts())
def test_what_is_timed_is_there(part: str, owner: Any, name: str) -> None:
    """In the class itself: a method of a parent would be timed for its other children too."""
    held = vars(owner).get(name) if part != STOCK else inspect.getattr_static(owner, name)
    assert callable(held) or isinstance(held, staticmethod)


def test_an_engine_process_that_is_asked_times_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [(owner, name, inspect.getattr_static(owner, name)) for _, owner, name in watched()]
    monkeypatch.setenv(stopwatch.ENVIRONMENT, str(tmp_path / "steps.json"))
    try:
        stopwatch.install_if_asked()
        for owner, name, was in held:
            now = inspect.getattr_static(owner, name)
            assert now is not was
            assert isinstance(now, staticmethod) == isinstance(was, staticmethod)
        once = V1Adapter.sample
        stopwatch.install_if_asked()
        assert V1Adapter.sample is once
    finally:
        for owner, name, was in held:
            setattr(owner, name, was)


def watched() -> list[tuple[str, Any, str]]:
    return [*stopwatch.parts(), ("", V1Adapter, "sample"), ("", V1Adapter, "propose")]


def test_time_falls_to_its_parts_and_steps_without_drafts_are_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    watch = Stopwatch(file)
    nap = watch.timed(STOCK, time.sleep)
    layout = watch.timed(LAYOUT, lambda: None)
    verify = watch.timed("verify", lambda: nap(0.002))

    def sampled(adapter: Any, runner: Any, logits: Any, metadata: Any, stock: Any) -> None:
        verify()

    sample, propose = watch.step(sampled), watch.end(lambda: None)
    runner = SimpleNamespace(input_batch=SimpleNamespace(num_reqs=2))
    logits = SimpleNamespace(shape=(7, 3))
    for number in range(101):
        layout()
        sample(None, runner, logits, None if number == 0 else "drafts", None)
        propose()
    steps = json.loads(file.read_text())["steps"]
    assert len(steps) == 100
    for step in steps:
        assert (step["requests"], step["rows"]) == (2, 7)
        assert step[LAYOUT] >= 0
        assert step["sample"] >= step["verify"] >= step[STOCK] == step["stock in verify"] >= 0.002
