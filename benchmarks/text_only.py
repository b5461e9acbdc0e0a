"""STAND as a replay knows it: an engine that learns from the rows of emitted tokens alone.

In an engine STAND also learns from the rows behind a refused draft. This class leaves them out, so
that `replay.py` can tell what they are worth from all other differences.
"""

from dataclasses import fields

from proposers import Drafter, StandDrafter, VerifiedRows
from vllm_plugin.config import Options
from vllm_plugin.proposer import Stand


class TextOnly(StandDrafter):
    """A STAND drafter that is blind to rows which emitted nothing."""

    wants_emitted = True

    def observe(self, rows: VerifiedRows) -> None:
        """Take in the rows whose token became text."""
        kept = rows.emitted >= 0
        assert kept.shape == rows.begins.shape, "the engine did not say what was emitted"
        by_row = {
            one.name: getattr(rows, one.name)[kept]
            for one in fields(rows)
            if one.name != "tokens" and len(getattr(rows, one.name))
        }
        super().observe(VerifiedRows(tokens=rows.tokens, **by_row))


class StandFromText(Stand):
    """`vllm_plugin.Stand`, blind to refused branches; named in --speculative-config by its path."""

    def make_drafter(self, options: Options, draft_length: int, seed: int) -> Drafter:
        """The drafter that the options ask for, with the other `observe`."""
        made = super().make_drafter(options, draft_length, seed)
        made.__class__ = TextOnly
        return made
