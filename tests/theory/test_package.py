"""`theory` imports nobody: no torch, no vllm, no other package of the project; and is quick."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import theory
import theory.testing

ALLOWED = {"numpy", "scipy", "cvxpy", "rich", "typer", "matplotlib", "theory"}
SOURCES = sorted(Path(theory.__file__).parent.rglob("*.py"))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_imports_are_allowed_ones():
    for path in SOURCES:
        for name in imported(ast.parse(path.read_text())):
            top = name.split(".")[0]
            assert top in ALLOWED or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_import_loads_nothing_heavy():
    """Neither `import theory` nor the command-line module drags in cvxpy, matplotlib or vllm."""
    code = (
        "import sys, theory, theory.bounds_cli, theory.stopping_cli, theory.testing\n"
        "heavy = {'torch', 'vllm', 'cvxpy', 'matplotlib', 'scipy', 'proposers', 'vllm_plugin'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", [theory, theory.testing], ids=lambda p: p.__name__)
def test_every_public_name_resolves_and_is_documented(package):
    for name in package.__all__:
        thing = getattr(package, name)
        assert name in ("RULES", "Rule", "Drafts", "Sampler") or thing.__doc__
    assert set(package.__all__) == set(package._HOME)


def test_modules_are_short():
    for path in SOURCES:
        assert len(path.read_text().splitlines()) <= 350, path.name
