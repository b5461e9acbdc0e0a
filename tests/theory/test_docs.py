"""docs/theory.md names a test for every statement, and each of them exists."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCUMENT = (HERE.parents[1] / "docs" / "theory.md").read_text()
SECTIONS = re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[1:]


TITLES = {re.match(r"Statement (\d+)", text)[1]: text.splitlines()[0] for text in SECTIONS[:-1]}


def test_the_code_points_at_the_right_statements():
    """Statements move when one is put in between: the words of the heading must still fit."""
    expected = {"optimum.py": {"3": "iid", "4": "without"}, "stopping.py": {"13": "threshold"}}
    for path in sorted((HERE.parents[1] / "theory").glob("*.py")):
        named = re.findall(r"docs/theory\.md,\s+statements? (\d+)(?: and (\d+))?", path.read_text())
        numbers = {number for pair in named for number in pair if number}
        assert numbers == set(expected.get(path.name, {})), path.name
        for number in numbers:
            assert expected[path.name][number] in TITLES[number], (path.name, TITLES[number])


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.splitlines()[0])
def test_every_statement_names_existing_tests(section):
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", section)
    assert named, "a statement without a test"
    for file, name in named:
        assert f"def {name}(" in (HERE / file).read_text(), f"{file}::{name} does not exist"
