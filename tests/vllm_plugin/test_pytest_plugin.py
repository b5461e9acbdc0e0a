"""The pytest plugin: a fixture that other projects use, and that costs nothing until then."""

import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from theory.testing.right_verifiers import RIGHT
from theory.testing.wrong_verifiers import WRONG
from vllm_plugin.pytest_plugin import assert_lossless

ROOT = Path(__file__).parents[2]
SUITE = """
from theory.testing.right_verifiers import RIGHT
from theory.testing.wrong_verifiers import WRONG

def test_right(assert_lossless):
    assert_lossless(RIGHT["token"], vocabulary=[2], candidates=1)

def test_wrong(assert_lossless):
    assert_lossless(WRONG["residual_not_clipped"], vocabulary=3, candidates=1)
"""


def test_the_fixture_passes_and_fails_with_the_report(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(SUITE)
    run = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "vllm_plugin.pytest_plugin",
            "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path),
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 failed, 1 passed" in run.stdout
    assert "residual_not_clipped is NOT lossless" in run.stdout
    assert "shrunk" in run.stdout


def test_the_plugin_is_declared_and_loads_nothing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = project["project"]["entry-points"]["pytest11"]
    assert declared == {"specproof": "vllm_plugin.pytest_plugin"}
    assert "theory.testing" in project["tool"]["setuptools"]["packages"]
    code = (
        "import sys, vllm_plugin.pytest_plugin\n"
        "print(sorted({'numpy', 'scipy', 'torch', 'vllm', 'theory'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_samplers_go_to_the_kit() -> None:
    assert assert_lossless(RIGHT["match"], vocabulary=[2], candidates=1).verdict == "lossless"
    with pytest.raises(AssertionError, match="NOT lossless"):
        assert_lossless(WRONG["equality_with_the_residual"], vocabulary=3, candidates=1)


@pytest.mark.parametrize("verdict", ["lossless", "refuted", "undecided"])
@pytest.mark.parametrize("engine", ["http://127.0.0.1:8000", object()], ids=["url", "object"])
def test_engines_go_to_the_audit(
    monkeypatch: pytest.MonkeyPatch, engine: Any, verdict: str
) -> None:
    calls = []

    class Answer(SimpleNamespace):
        def __str__(self) -> str:
            return "what the audit says"

    def audit_engine(engine: Any, **options: Any) -> Any:
        calls.append((engine, options))
        return Answer(verdict=verdict)

    audit = ModuleType("vllm_plugin.audit")
    audit.audit_engine = audit_engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm_plugin.audit", audit)
    if verdict == "lossless":
        assert assert_lossless(engine, budget=1e-6).verdict == "lossless"
    else:
        with pytest.raises(AssertionError, match="what the audit says"):
            assert_lossless(engine, budget=1e-6)
    assert calls == [(engine, {"budget": 1e-6})]
