"""Several drafted paths a request: what a drafter of trees hands to an engine adapter."""

from dataclasses import dataclass
from typing import Protocol

from proposers.batch import Doubles, Drafter, DraftRequests, Ints, Longs

DRAFTING = ("iid", "without_replacement", "top_plus_one", "beam")
"""How the candidates of a node are chosen from its law q, children in this order.

``iid``: whole chains, each token drawn from q. ``without_replacement``: c draws from q, each
without those before it. ``top_plus_one``: the c - 1 most probable tokens of q, then one draw from q
without them. ``beam``: as many nodes at every depth as there are paths, those with the greatest
perturbed log-probabilities; the children of a node are draws without replacement, but how many
there are depends on which the first ones are. Only rules that decide candidate by candidate are
lossless for it: ``token``, ``match``, ``rrs_without_replacement``, not ``sparse_optimal``.
"""


@dataclass(frozen=True, slots=True)
class PathDrafts:
    """Up to P drafted paths for each request, with the law of the node at each draft.

    Draft i of path j of request b is a candidate of the node behind ``tokens[b, j, :i]``; q of that
    node, before any of its candidates was drawn, is ``laws[b, j, i]`` on ``law_ids[b, j, i]``,
    normalised, with id -1 and probability 0 in unused entries. Where two paths share a prefix,
    tokens and laws are equal there, and so are the laws of the drafts that follow it. The one
    exception are candidates that nobody drew (temperature 0): each has its own point mass.

    The paths come in draw order: depth first, the candidates of a node in the order of their draws;
    iid chains one after the other, even if they begin alike.
    How many paths there are, and how long, never depends on the values of drafts that they lack.

    Shapes: tokens (B, P, L) int32, -1 behind a path's end; lengths (B, P) int64, 0 for an absent
    path; law_ids (B, P, L, E) int32; laws (B, P, L, E) float64.
    """

    tokens: Ints
    lengths: Longs
    law_ids: Ints
    laws: Doubles

    def __len__(self) -> int:
        return int(self.tokens.shape[0])


class PathDrafter(Drafter, Protocol):
    """A drafter that can propose several paths for a request."""

    def draft_paths(self, requests: DraftRequests, min_survival: float = 0.0) -> PathDrafts:
        """Propose paths for every request; none deeper than its budget.

        No candidate that is expected to be reached and accepted with less than ``min_survival``.
        """
        ...
