"""Arguments that several commands of a replay take, checked in one place."""

from __future__ import annotations

import json
from typing import Any


def check_words(*given: tuple[str, str, tuple[str, ...]]) -> None:
    """Raise ValueError for the first (option, value, allowed values) whose value is not allowed."""
    for name, value, allowed in given:
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def section(options: str | None) -> dict[str, Any]:
    """The drafters' options: a JSON object, or what stands under its key "specproof"."""
    if options is None:
        return {}
    try:
        given = json.loads(options)
    except json.JSONDecodeError as error:
        raise ValueError(f"--options must be JSON; got {options!r:.60}: {error}") from None
    section = given.get("specproof", given) if isinstance(given, dict) else given
    if not isinstance(section, dict):
        raise ValueError(f"--options must be a JSON object of options; got {options!r:.60}")
    return section
