"""Command lines of the benchmarks: argument types, and mistakes answered in one sentence."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class OutputError(ValueError):
    """A place that the result cannot be written to, in one sentence."""


class BriefParser(argparse.ArgumentParser):
    """argparse that answers a mistake with one sentence instead of its usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.rstrip('.')}.\n")


def at_least(lowest: int) -> Callable[[str], int]:
    """The argument type of whole numbers from ``lowest`` up."""

    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {lowest} up")
        return value

    return whole


def numbers(text: str) -> list[int]:
    """The argument type of whole numbers from 1 up, a,b,c."""
    return [at_least(1)(part) for part in text.split(",")]


def temperature(text: str) -> float:
    """The argument type of sampling temperatures, 0 to 2."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 2.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 2")
    return value


def temperatures(text: str) -> list[float]:
    """The argument type of several sampling temperatures, a,b,c."""
    return [temperature(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """The argument type of names, a,b,c; blanks around them and empty ones are dropped."""
    return [name.strip() for name in text.split(",") if name.strip()]


def json_object(text: str) -> dict[str, Any]:
    """The argument type of JSON objects."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def make_folder(result: Path) -> None:
    """Make the folder of ``--json`` now: after an hour of measuring is too late to fail.

    Raises
    ------
    OutputError
        When the result could not be written there.
    """
    try:
        result.parent.mkdir(parents=True, exist_ok=True)
        usable = os.access(result.parent, os.W_OK) and not result.is_dir()
        reason = "that is no file in a folder that can be written to"
    except OSError as error:
        usable, reason = False, str(error.strerror)
    if not usable:
        raise OutputError(f"--json {result} cannot be written: {reason}.")
