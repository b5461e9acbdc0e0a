"""Drafters: what to propose, and the exact law q that each proposal was drawn from.

Nothing here knows an inference engine; numpy and numba only. Names are loaded on first use, so that
the command line does not pay for numba.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proposers.aded import AdedDrafter
    from proposers.batch import Drafter, DraftRequests, Drafts, Followed, VerifiedRows
    from proposers.chooser import ChooserDrafter
    from proposers.path_batch import PathDrafter, PathDrafts
    from proposers.path_stand import StandPathDrafter
    from proposers.prompt_lookup import PromptLookupDrafter
    from proposers.shape import TreeShape
    from proposers.stand import StandDrafter
    from proposers.suffix import SuffixDrafter
    from proposers.table import ENTRIES, StandTable
    from proposers.token_recycling import TokenRecyclingDrafter
    from proposers.trigrams import TrigramTable

_HOME = {
    "AdedDrafter": "aded",
    "ChooserDrafter": "chooser",
    "DraftRequests": "batch",
    "Drafter": "batch",
    "Drafts": "batch",
    "Followed": "batch",
    "VerifiedRows": "batch",
    "PathDrafter": "path_batch",
    "PathDrafts": "path_batch",
    "PromptLookupDrafter": "prompt_lookup",
    "StandDrafter": "stand",
    "StandPathDrafter": "path_stand",
    "SuffixDrafter": "suffix",
    "ENTRIES": "table",
    "StandTable": "table",
    "TokenRecyclingDrafter": "token_recycling",
    "TreeShape": "shape",
    "TrigramTable": "trigrams",
}

__all__ = [
    "ENTRIES",
    "AdedDrafter",
    "ChooserDrafter",
    "DraftRequests",
    "Drafter",
    "Drafts",
    "Followed",
    "PathDrafter",
    "PathDrafts",
    "PromptLookupDrafter",
    "StandDrafter",
    "StandPathDrafter",
    "StandTable",
    "SuffixDrafter",
    "TokenRecyclingDrafter",
    "TreeShape",
    "TrigramTable",
    "VerifiedRows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'proposers' has no attribute {name!r}")
    return getattr(import_module(f"proposers.{_HOME[name]}"), name)
