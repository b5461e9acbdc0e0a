"""What a chooser asks of a drafter beside its drafts: how sure is it of them?

The answer is a level, a small whole number, found from the prefix and from the drafter's laws and
point-mass chains alone, never from a token drawn at random (ALGORITHMS.md 5, trap 1). It need not
be calibrated: the chooser learns what each level is worth.

    STAND             order of the longest known context (1, 2, 3, 4+) and its visits (1, 2, more)
    prompt lookup     tokens in which the text and the copied place agree
    suffix decoding   tokens of the context matched
    Token Recycling   accepted length if every law were what the token's last law was
    ADED              accepted length that the table expects

Level 0 stands for a drafter that knows nothing here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from proposers.aded import AdedDrafter
from proposers.batch import Drafter, DraftRequests, Drafts, Longs
from proposers.context_keys import context_keys, salt_at
from proposers.prompt_lookup import PromptLookupDrafter
from proposers.stand import StandDrafter
from proposers.suffix import SuffixDrafter
from proposers.table import find
from proposers.token_recycling import TokenRecyclingDrafter

LEVELS = 16
_ORDERS = 4
_VISITS = (1.01, 1.6)
_MATCHED = np.array([1, 2, 3, 4, 5, 7, 10, 16])
_EXPECTED = np.array([1e-9, 0.1, 0.3, 0.6, 1.0, 1.6, 2.5, 4.0, 6.0])


@dataclass(frozen=True, slots=True)
class Look:
    """What a member would do for each request, and its level, (B,) int64, 0..LEVELS - 1.

    The chains of a member that draws at random are its most probable ones.
    """

    chains: Drafts
    levels: Longs


def draws(drafter: Drafter) -> bool:
    """Whether a drafter's laws are more than point masses."""
    return isinstance(drafter, StandDrafter)


def look(drafter: Drafter, requests: DraftRequests) -> Look:
    """A drafter's chains and levels.

    Raises
    ------
    TypeError
        For a drafter that cannot say how sure it is.
    """
    if isinstance(drafter, StandDrafter):
        levels = np.zeros(len(requests), np.int64)
        _stand_levels(
            drafter.table.arrays, drafter.table.order, requests.tokens, requests.rows,
            requests.lengths, requests.groups, levels,
        )  # fmt: skip
        return Look(drafter.most_probable(requests), levels)
    if isinstance(drafter, PromptLookupDrafter | SuffixDrafter):
        drafts, matched = drafter.propose(requests)
        return Look(drafts, _MATCHED.searchsorted(matched, "right"))
    if isinstance(drafter, TokenRecyclingDrafter | AdedDrafter):
        drafts, expected = drafter.propose(requests)
        return Look(drafts, _EXPECTED.searchsorted(expected, "right"))
    raise TypeError(f"{type(drafter).__name__} cannot be a member of a chooser")


@njit(cache=True, nogil=True)
def _stand_levels(
    table: Any, order: Any, tokens: Any, rows: Any, lengths: Any, groups: Any, levels: Any
) -> Any:
    keys = np.empty(order, np.uint64)
    for b in range(rows.shape[0]):
        longest = context_keys(tokens[rows[b]], 0, lengths[b], order, keys, salt_at(groups, b))
        for matched in range(longest, 0, -1):
            slot = find(table, keys[matched - 1])
            if slot >= 0:
                visits = 0
                for edge in _VISITS:
                    if table.counts[slot] >= edge:
                        visits += 1
                levels[b] = 1 + (min(matched, _ORDERS) - 1) * (len(_VISITS) + 1) + visits
                break
