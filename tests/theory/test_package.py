"""`theory` imports nobody: no torch, no vllm, no other package of the project; and is quick."""

import ast
import subprocess
import sys
from pathlib import Path

import theory

ALLOWED = {"numpy", "scipy", "cvxpy", "rich", "typer", "matplotlib", "theory"}
SOURCES = sorted(Path(theory.__file__).parent.glob("*.py"))


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
        "import sys, theory, theory.bounds_cli, theory.stopping_cli\n"
        "heavy = {'torch', 'vllm', 'cvxpy', 'matplotlib', 'scipy', 'proposers', 'vllm_plugin'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves_and_is_documented():
    for name in theory.__all__:
        thing = getattr(theory, name)
        assert name in ("RULES", "Rule", "Drafts") or thing.__doc__
    assert set(theory.__all__) == set(theory._HOME)


def test_modules_are_short():
    for path in SOURCES:
        assert len(path.read_text().splitlines()) <= 350, path.name
