"""Drafters: what to propose, and the exact law q that each proposal was drawn from.

Nothing here knows an inference engine; numpy and numba only.
"""

from proposers.aded import AdedDrafter
from proposers.batch import Drafter, DraftRequests, Drafts, Followed, VerifiedRows
from proposers.chooser import ChooserDrafter
from proposers.prompt_lookup import PromptLookupDrafter
from proposers.stand import StandDrafter
from proposers.suffix import SuffixDrafter
from proposers.table import ENTRIES, StandTable
from proposers.token_recycling import TokenRecyclingDrafter
from proposers.trigrams import TrigramTable

__all__ = [
    "ENTRIES",
    "AdedDrafter",
    "ChooserDrafter",
    "DraftRequests",
    "Drafter",
    "Drafts",
    "Followed",
    "PromptLookupDrafter",
    "StandDrafter",
    "StandTable",
    "SuffixDrafter",
    "TokenRecyclingDrafter",
    "TrigramTable",
    "VerifiedRows",
]
