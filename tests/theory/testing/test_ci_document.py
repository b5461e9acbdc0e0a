"""docs/ci.md: its example runs and passes, its workflow is YAML, its failure is what is printed."""

import re
from pathlib import Path

import pytest

from theory.testing import assert_lossless, check_sampler
from theory.testing.wrong_verifiers import WRONG

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "ci.md").read_text()


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def test_the_example_of_a_rule_passes():
    example = next(block for block in blocks("python") if "my_rule" in block)
    names = {}
    exec(example, names)
    names["test_my_rule"](assert_lossless)


def test_every_example_compiles():
    for example in blocks("python"):
        compile(example, "docs/ci.md", "exec")


def test_the_workflow_runs_tests_that_the_document_shows():
    yaml = pytest.importorskip("yaml")
    (source,) = blocks("yaml")
    workflow = yaml.safe_load(source)
    assert set(workflow["jobs"]) == {"rules", "engine"}
    for job in workflow["jobs"].values():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        (tested,) = re.findall(r"pytest (tests/\w+\.py)", "\n".join(commands))
        assert f"# {tested}" in DOCUMENT


def test_the_failure_is_what_is_printed():
    report = str(check_sampler(WRONG["kseq_with_rho_one"], vocabulary=3, candidates=2))
    shown = next(block for block in blocks("") if "NOT lossless" in block)
    for line in shown.splitlines():
        assert line.removeprefix("E   ").removeprefix("AssertionError: ") in report
