"""Rows for `specproof bounds --trace FILE.npz --drafter NAME`; theory has no drafters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from theory.inputs import Row


def replayed(
    path: Path, drafter: str, options: str | None, most: int, advance: Callable[[int, int], None]
) -> tuple[list[Row], str]:
    """At most ``most`` rows (p, q) of a drafter replayed along a trace, and what they are.

    Raises
    ------
    ValueError
        In one sentence: a file that is no trace, an unknown drafter or option, no draft at all.
    """
    from proposers.replay.drafters import make_drafter
    from proposers.replay.node_laws import node_laws
    from proposers.replay.simulate_cli import _section as section
    from theory.trace_file import read

    trace = read(path)
    done = 0

    def on_tokens(tokens: int) -> None:
        nonlocal done
        done += tokens
        advance(done, len(trace))

    try:
        maker = make_drafter(drafter, section(options), draft_length=1)
    except ImportError as error:
        raise ValueError(str(error)) from None
    found = node_laws(trace, maker, most=most, advance=on_tokens)
    taken = len(found.rows)
    sample = "all" if taken == found.drafting else f"{taken:,} at random"
    about = (
        f"rows: {sample} of the {found.drafting:,} positions where {drafter} drafts, of "
        f"{found.all_positions:,} in {path} (T = {trace.sampling.temperature:g}); where it does "
        "not, nothing can be accepted"
    )
    return found.rows, about
