"""Command lines of the benchmarks: argument types, and mistakes answered in one sentence."""

import argparse
from collections.abc import Callable
from typing import NoReturn


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
