"""Spec-Bench questions: read, checked, and chosen evenly over the kinds of task.

Spec-Bench counts the eight categories of MT-Bench as one task ("mt_bench"); so does the choice
here, or those eight, with ten questions each, would outweigh the five other tasks.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from vllm_plugin.load import Question

_MT_BENCH = frozenset(
    ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
)
MT_BENCH = "mt_bench"


class DatasetError(ValueError):
    """A data set that cannot be used, with the place and the reason in one sentence."""


def task(category: str) -> str:
    """The task a category belongs to: ``mt_bench`` for its eight, else the category itself."""
    return MT_BENCH if category in _MT_BENCH else category


def read(path: Path) -> list[Question]:
    """All questions of a JSON-lines file.

    Raises
    ------
    DatasetError
        Names the file and the line that is not ``{"question_id", "category", "turns": [...]}``.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DatasetError(f"--dataset {path} cannot be read: {reason}.") from None
    questions = [_question(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise DatasetError(f"--dataset {path} holds no questions.")
    return questions


def _question(path: Path, number: int, line: str) -> Question:
    form = 'an object with "question_id", "category" and a non-empty list "turns" of texts'
    wrong = DatasetError(f"--dataset {path}, line {number}: expected {form}.")
    try:
        row = json.loads(line)
        identity, category, turns = row["question_id"], row["category"], row["turns"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise wrong from None
    if not isinstance(category, str) or not isinstance(turns, list) or not turns:
        raise wrong
    if not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise wrong
    return Question(str(identity), category, tuple(turns))


def checksum(path: Path) -> str:
    """SHA-256 of the file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def restrict(questions: Sequence[Question], categories: Sequence[str]) -> list[Question]:
    """Only the questions of these categories or tasks; all of them when none is named."""
    known = {one.category for one in questions} | {task(one.category) for one in questions}
    unknown = [name for name in categories if name not in known]
    if unknown:
        raise DatasetError(
            f"--categories: {', '.join(unknown)} is not in the data set; "
            f"it has {', '.join(sorted(known))}."
        )
    wanted = set(categories) or known
    return [one for one in questions if {one.category, task(one.category)} & wanted]


def arrange(questions: Sequence[Question], seed: int) -> list[Question]:
    """All questions in an order whose every prefix is spread evenly over the tasks.

    Within a task the order is random by ``seed``; the tasks then take turns.
    """
    dice = random.Random(seed)
    stacks: dict[str, list[Question]] = {}
    for question in questions:
        stacks.setdefault(task(question.category), []).append(question)
    for name in sorted(stacks):
        dice.shuffle(stacks[name])
    longest = max((len(stack) for stack in stacks.values()), default=0)
    return [
        stacks[name][place]
        for place in range(longest)
        for name in sorted(stacks)
        if place < len(stacks[name])
    ]
