"""What an audit looks at in each sampled token: events that are fixed before the token is seen.

Every event is a set of tokens chosen from the prefix, the exact law there and whatever was sampled
before, never from the token itself; so its probability is known when the token is drawn. Two kinds:

- the token's rank in the exact law, in three bins: a wrong temperature, a wrong residual or a
  refusal that favours likely tokens moves mass between them. The three bins are three events, and
  the largest of their deviations is the total variation of the bins. And whether the token is one
  of the least probable, which have 0.5 % together at most: the impossible shows there;
- whether the token repeats the past: it is what followed the longest suffix of the text when that
  was last seen (`echo`), or what has followed the last token most often (`habit`). Drafts come
  from there, so drafts that are accepted too often or too seldom move mass exactly here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from theory.head_law import HeadLaw
from theory.laws import Floats

RANK_EDGES = (1, 4)  # bins: rank 1, ranks 2..4, above
RARE_MASS = 0.005
EVENTS = ("rank 1", "ranks 2-4", "ranks above 4", "rare", "echo", "habit")
FEWEST_TOKENS = RANK_EDGES[-1] + 1  # a head must be as long as that
LONGEST_ECHO = 4


class TextMemory:
    """What has followed what, in everything seen so far: where the next draft would come from."""

    def __init__(self) -> None:
        self._echoes: dict[tuple[int, ...], int] = {}
        self._habits: dict[int, Counter[int]] = {}

    def learn(self, text: Sequence[int]) -> None:
        """Enter a whole text, such as a prompt."""
        for end in range(1, len(text)):
            self.extend(text[:end], text[end])

    def extend(self, text: Sequence[int], token: int) -> None:
        """Enter that `token` followed `text`."""
        for length in range(1, min(LONGEST_ECHO, len(text)) + 1):
            self._echoes[tuple(text[-length:])] = token
        self._habits.setdefault(text[-1], Counter())[token] += 1

    def echo(self, text: Sequence[int]) -> int | None:
        """What followed the longest known suffix of `text` when it was last seen."""
        for length in range(min(LONGEST_ECHO, len(text)), 0, -1):
            token = self._echoes.get(tuple(text[-length:]))
            if token is not None:
                return token
        return None

    def habit(self, text: Sequence[int]) -> int | None:
        """What has followed the last token most often."""
        known = self._habits.get(text[-1])
        return known.most_common(1)[0][0] if known else None


def event_row(
    law: HeadLaw, token: int, echo: int | None, habit: int | None
) -> tuple[Floats, Floats]:
    """Probabilities of the EVENTS under the law and whether `token` is in them; (E,) each.

    An event that names no token, or one outside the head (whose probability is unknown), is not
    posed at this position, whatever the token: its probability is NaN. Nor is `rare` where the
    tail alone has more than its mass.
    """
    chances, happened = np.zeros(len(EVENTS)), np.zeros(len(EVENTS))
    start = 0
    for i, stop in enumerate(RANK_EDGES):
        chances[i] = law.masses[start:stop].sum()
        start = stop
    chances[len(RANK_EDGES)] = max(0.0, 1.0 - chances.sum())
    place = np.flatnonzero(law.tokens == token)
    rank = int(place[0]) if place.size else law.tokens.size
    happened[np.searchsorted(RANK_EDGES, rank, side="right")] = 1.0
    above = 1.0 - np.cumsum(law.masses)  # mass of the ranks above each one
    first_rare = int(np.searchsorted(-above, -RARE_MASS)) + 1
    rare = first_rare <= law.tokens.size
    chances[-3] = max(0.0, above[first_rare - 1]) if rare else np.nan
    happened[-3] = float(rare and rank >= first_rare)
    for column, guess in ((-2, echo), (-1, habit)):
        mass = None if guess is None else law.mass_of(guess)
        chances[column] = np.nan if mass is None else mass
        happened[column] = float(mass is not None and guess == token)
    return chances, happened
