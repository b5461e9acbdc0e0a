"""What vLLM refuses under speculation is let through to our proposers, and to nobody else."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from vllm_plugin import guard, let_through

OTHERS: list[Any] = [
    SimpleNamespace(method="ngram", model=None),
    SimpleNamespace(method="custom_class", model="somebody.Else"),
    SimpleNamespace(method="ngram", model="vllm_plugin.Stand"),
]


def config(speculative: Any) -> Any:
    return SimpleNamespace(speculative_config=speculative, name="kept")


@pytest.fixture(autouse=True)
def installed() -> None:
    let_through.install_in_frontend()


@pytest.mark.parametrize("proposer", guard.PROPOSERS)
@pytest.mark.parametrize("settings", [{"min_p": 0.1}, {"logit_bias": {3: 1.0}}])
def test_requests_to_our_proposers_pass(proposer: str, settings: dict[str, Any]) -> None:
    ours: Any = SimpleNamespace(method="custom_class", model=proposer)
    SamplingParams(**settings)._validate_spec_decode(ours)


@pytest.mark.parametrize("speculative", OTHERS)
@pytest.mark.parametrize("settings", [{"min_p": 0.1}, {"logit_bias": {3: 1.0}}])
def test_other_speculation_refuses_as_before(speculative: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(VLLMValidationError, match="not yet supported with speculative decoding"):
        SamplingParams(**settings)._validate_spec_decode(speculative)


def test_without_speculation_nothing_is_refused() -> None:
    SamplingParams(min_p=0.1)._validate_spec_decode(None)


@pytest.mark.parametrize("proposer", guard.PROPOSERS)
def test_processors_are_built_as_without_speculation(proposer: str) -> None:
    seen: list[Any] = []
    build = let_through._built(lambda *words, **named: seen.append((words, named)))
    ours = config(SimpleNamespace(method="custom_class", model=proposer))
    build(ours, "cpu", False, False, ("a:B",))
    ((given, *rest), named) = seen[0]
    assert given.speculative_config is None
    assert given.name == "kept"
    assert ours.speculative_config is not None  # the engine's own configuration is as it was
    assert (rest, named) == (["cpu", False, False, ("a:B",)], {})


@pytest.mark.parametrize("speculative", [*OTHERS, None])
def test_other_engines_build_theirs(speculative: Any) -> None:
    seen: list[Any] = []
    other = config(speculative)
    let_through._built(seen.append)(other)
    assert seen == [other]
