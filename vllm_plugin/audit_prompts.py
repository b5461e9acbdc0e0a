"""Prompts that make drafts frequent: texts that repeat themselves, and a file of one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vllm_plugin.audit_target import AuditError

Prompt = str | Sequence[int]

TEXTS = (
    "The cat sat on the mat. The dog sat on the rug. The bird sat on the branch. The cow sat on",
    "red, green, blue, red, green, yellow, red, green, blue, red, green, white, red, green,",
    "Q: Is water wet? A: Yes. Q: Is fire cold? A: No. Q: Is snow white? A: Yes. Q: Is",
    "Monday: rain, 12 degrees. Tuesday: sun, 15 degrees. Wednesday: rain, 11 degrees. Thursday:",
    "def f(x):\n    return x + 1\n\ndef g(x):\n    return x + 2\n\ndef h(x):\n    return",
    "Dear Anna, thank you for the letter. Dear Ben, thank you for the book. Dear Clara, thank you",
    "She sells shells by the sea. He sells bells by the bay. They sell",
    "one apple, two pears, three plums, one apple, two plums, three pears, one",
)


def default_prompts(vocabulary: int) -> list[list[int]]:
    """Eight repetitive prompts in token ids, for an engine without a tokenizer."""
    rng = np.random.default_rng(0)
    low = min(3, vocabulary - 1)  # the first ids are special tokens of most vocabularies
    prompts = []
    for period in (2, 3, 4, 5) * 2:
        motif = rng.integers(low, vocabulary, period).tolist()
        prompts.append((motif * 12)[: 3 * period + period // 2])
    return prompts


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file, one a line: plain text, a JSON string, or a JSON array of token ids.

    Raises AuditError for a file that cannot be read, holds no prompt, or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"--prompts: {path} cannot be read: {error}") from None
    prompts = [
        _prompt(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()
    ]
    if not prompts:
        raise AuditError(f"--prompts: {path} holds no prompt; write one a line")
    return prompts


def _prompt(line: str, where: str) -> Prompt:
    if line.lstrip()[0] not in '["':
        return line
    try:
        value = json.loads(line)
    except ValueError:
        return line
    ids = isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)
    if not value or not (isinstance(value, str) or ids):
        raise AuditError(f"--prompts: {where} must be a text or an array of token ids")
    prompt: Prompt = value
    return prompt
