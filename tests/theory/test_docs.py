"""docs/theory.md names a test for every statement, and each of them exists."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCUMENT = (HERE.parents[1] / "docs" / "theory.md").read_text()
SECTIONS = re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.splitlines()[0])
def test_every_statement_names_existing_tests(section):
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", section)
    assert named, "a statement without a test"
    for file, name in named:
        assert f"def {name}(" in (HERE / file).read_text(), f"{file}::{name} does not exist"
