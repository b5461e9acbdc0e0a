"""Arrows point one way: vllm_plugin -> proposers -> theory; only vllm_plugin meets the engine."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "theory": {"proposers", "vllm_plugin", "torch", "vllm", "transformers", "triton"},
    "proposers": {"vllm_plugin", "torch", "vllm", "transformers", "triton"},
    # Whatever else lives in the repository talks to the engine through vllm_plugin or over HTTP.
    "benchmarks": {"vllm"},
}
BLOCKER = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is out of bounds for {PACKAGE}")

PACKAGE, FORBIDDEN = sys.argv[1], set(sys.argv[2:])
sys.meta_path.insert(0, Blocker())
package = importlib.import_module(PACKAGE)
for module in pkgutil.walk_packages(package.__path__, PACKAGE + "."):
    importlib.import_module(module.name)
"""


def imported(source: str) -> Iterator[str]:
    """Top-level names of every module a source imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_source_imports_beyond_its_layer(package: str) -> None:
    sources = sorted((ROOT / package).rglob("*.py"))
    assert sources, f"{package} has no sources, so the test looks in the wrong place"
    for source in sources:
        beyond = FORBIDDEN[package].intersection(imported(source.read_text()))
        assert not beyond, f"{source.relative_to(ROOT)} imports {sorted(beyond)}"


@pytest.mark.parametrize("package", ["theory", "proposers"])
def test_package_imports_with_everything_else_blocked(package: str) -> None:
    """Also catches what a third party would drag in."""
    run = subprocess.run(
        [sys.executable, "-c", BLOCKER, package, *sorted(FORBIDDEN[package])],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_blocker_blocks() -> None:
    """The negative control of the test above."""
    run = subprocess.run(
        [sys.executable, "-c", BLOCKER, "proposers", "numba"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "out of bounds for proposers" in run.stderr


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch.nn as nn", {"torch"}),
        ("def f():\n    from vllm.v1 import sample", {"vllm"}),
        ("from . import table", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, names: set[str]) -> None:
    assert set(imported(source)) == names
