"""The hook registry: every seam fits the installed vLLM, and a seam that does not is told of."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vllm_plugin import hooks
from vllm_plugin.hooks import Hook

ALL = (*hooks.SPECULATION, *hooks.TABLES, *hooks.STEPS, *hooks.DELIVERY, hooks.EXPAND)


@pytest.mark.parametrize("hook", ALL, ids=lambda hook: hook.target)
def test_the_installed_vllm_has_the_seam(hook: Hook) -> None:
    assert hooks.problem(hook) is None


@pytest.mark.parametrize("hook", ALL, ids=lambda hook: hook.target)
def test_every_entry_says_why_and_until_when(hook: Hook) -> None:
    assert hook.why
    assert hook.upstream
    assert hook.remove_when


def test_targets_are_registered_once() -> None:
    assert len({hook.target for hook in ALL}) == len(ALL)


def test_nothing_stands_against_speculation_here() -> None:
    assert hooks.version_problem() is None
    assert hooks.speculation_problem() is None


def test_a_changed_signature_is_one_sentence() -> None:
    changed = replace(hooks.SAMPLE, parameters=("self", "logits"))
    wrong = hooks.problem(changed)
    assert wrong is not None
    assert "\n" not in wrong
    assert hooks.SAMPLE.target in wrong
    assert "(self, logits, spec_decode_metadata)" in wrong
    assert "written for (self, logits)" in wrong


@pytest.mark.parametrize(
    "target",
    [
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._no_such_method",
        "vllm.v1.worker.gpu_model_runner:NoSuchClass._sample",
        "vllm.v1.worker.no_such_module:GPUModelRunner._sample",
        "vllm.no_such_package.module:function",
        "no_such_distribution.module:function",
    ],
)
def test_a_missing_target_is_one_sentence(target: str) -> None:
    wrong = hooks.problem(replace(hooks.SAMPLE, target=target))
    assert wrong == f"vLLM {hooks.vllm_version()} has no {target}"


def test_the_first_misfit_stops_speculation(monkeypatch: pytest.MonkeyPatch) -> None:
    misfit = replace(hooks.SAMPLE, parameters=("self",))
    monkeypatch.setattr(hooks, "SPECULATION", (hooks.CREATE_CONFIG, misfit))
    assert hooks.speculation_problem() == hooks.problem(misfit)


@pytest.mark.parametrize("version", ["0.24.0", "0.33.1", "0.3", "0.320.0", "1.0.32"])
def test_an_unsupported_vllm_is_one_sentence(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "vllm_version", lambda: version)
    wrong = hooks.speculation_problem()
    assert wrong is not None
    assert "\n" not in wrong
    assert version in wrong
    assert "0.32.x" in wrong


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cpu"])
def test_patch_releases_are_supported(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "vllm_version", lambda: version)
    assert hooks.version_problem() is None


def test_a_missing_vllm_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "vllm_version", lambda: None)
    wrong = hooks.speculation_problem()
    assert wrong is not None
    assert "vLLM is not installed" in wrong


THROWAWAY = """
class Engine:
    def step(self, count, *, scale=1):
        return count * scale

    class Inner:
        def name(self):
            return "inner"

def plain(x):
    return x
"""


@pytest.fixture
def throwaway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> ModuleType:
    """A module of its own for each test: sources are cached by name."""
    name = f"throwaway_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(THROWAWAY)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return importlib.import_module(name)


def hook(module: ModuleType, name: str, *parameters: str) -> Hook:
    return Hook(f"{module.__name__}:{name}", parameters, "test", "none", "never", replaced=True)


def test_keyword_only_parameters_and_nested_classes_are_seen(throwaway: ModuleType) -> None:
    assert hooks.problem(hook(throwaway, "Engine.step", "self", "count", "scale")) is None
    assert hooks.problem(hook(throwaway, "Engine.Inner.name", "self")) is None
    assert hooks.problem(hook(throwaway, "plain", "x")) is None
    assert hooks.problem(hook(throwaway, "Engine.step", "self", "count")) is not None


def test_an_imported_name_is_followed_to_its_definition(
    throwaway: ModuleType, tmp_path: Path
) -> None:
    importer = f"{throwaway.__name__}_importer"
    (tmp_path / f"{importer}.py").write_text(f"from {throwaway.__name__} import plain as named\n")

    def found(name: str, *parameters: str) -> str | None:
        target = f"{importer}:{name}"
        return hooks.problem(Hook(target, parameters, "test", "none", "never", replaced=True))

    assert found("named", "x") is None
    assert found("named", "y") is not None
    assert found("plain", "x") is not None


def test_installing_twice_wraps_once(throwaway: ModuleType) -> None:
    def doubled(original: Any) -> Any:
        def step(self: Any, count: int, *, scale: int = 1) -> int:
            return 2 * original(self, count, scale=scale)

        return step

    original = throwaway.Engine.step
    for _ in range(2):
        hooks.install(hook(throwaway, "Engine.step", "self", "count", "scale"), doubled)
        assert throwaway.Engine().step(3, scale=5) == 30
    assert throwaway.Engine.step.__specproof_original__ is original


def test_functions_of_a_module_are_replaced_too(throwaway: ModuleType) -> None:
    hooks.install(hook(throwaway, "plain", "x"), lambda original: lambda x: original(x) + 1)
    assert throwaway.plain(1) == 2


def test_an_imported_name_is_replaced_where_it_was_imported(
    throwaway: ModuleType, tmp_path: Path
) -> None:
    user_name = f"{throwaway.__name__}_user"
    (tmp_path / f"{user_name}.py").write_text(f"from {throwaway.__name__} import plain\n")
    importlib.invalidate_caches()
    user = importlib.import_module(user_name)
    bound = hook(user, "plain", "x")
    assert hooks.problem(bound) is None
    hooks.install(bound, lambda original: lambda x: original(x) + 1)
    assert user.plain(1) == 2
    assert throwaway.plain(1) == 1


def test_a_package_is_read_from_its_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "throwaway_package" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").touch()
    (inner / "__init__.py").write_text(THROWAWAY)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    seam = Hook("throwaway_package.inner:plain", ("x",), "test", "none", "never", replaced=True)
    assert hooks.problem(seam) is None
