"""Drafters: what to propose, and the exact law q that each proposal was drawn from.

Nothing here knows an inference engine; numpy and numba only.
"""

from proposers.batch import Drafter, DraftRequests, Drafts, Followed, VerifiedRows
from proposers.prompt_lookup import PromptLookupDrafter
from proposers.stand import StandDrafter
from proposers.table import ENTRIES, StandTable

__all__ = [
    "ENTRIES",
    "DraftRequests",
    "Drafter",
    "Drafts",
    "Followed",
    "PromptLookupDrafter",
    "StandDrafter",
    "StandTable",
    "VerifiedRows",
]
