"""Drafts whose lengths follow a script: to measure what steps of every length cost."""

from collections.abc import Sequence

import numpy as np

from proposers.batch import DraftRequests, Drafts, Followed, Ints, VerifiedRows, point_masses
from proposers.stand import StandDrafter


class ScriptedDrafter:
    """Random tokens of the request's own text, as many as the script says.

    Every length comes once, in random order, before any comes again, the same for all requests of
    a step. STAND learns and drafts beside it, so that a step does the work of a real one, but its
    drafts are put aside. q is a point mass on each token: which one it is does not depend on the
    target, so what is emitted follows the target's law, as with prompt lookup.

    Parameters
    ----------
    stand
        The drafter whose work is done.
    lengths
        Numbers of drafts of a step, each 0 or more.
    seed
        Seed of the order and of the tokens.

    Raises
    ------
    ValueError
        For no lengths, or one below 0.
    """

    wants_rows = True
    wants_emitted = True
    has_groups = True

    def __init__(self, stand: StandDrafter, lengths: Sequence[int], seed: int = 0) -> None:
        if not lengths or min(lengths) < 0:
            raise ValueError(f"lengths must be one or more numbers from 0 on; got {list(lengths)}")
        self.stand = stand
        self.lengths = tuple(lengths)
        self._rng = np.random.default_rng(seed)
        self._left: list[int] = []

    def start(self, handle: int, prompt: Ints, group: int = 0) -> None:
        """Take in the prompt of a request that begins to decode."""
        self.stand.start(handle, prompt, group)

    def observe(self, rows: VerifiedRows) -> None:
        """Take in the target laws of one step."""
        self.stand.observe(rows)

    def draft(self, requests: DraftRequests) -> Drafts:
        """The next length of the script for every request, within its budget."""
        self.stand.draft(requests)
        if not self._left:
            self._left = self._rng.permutation(self.lengths).tolist()
        wanted = self._left.pop()
        tokens = np.full((len(requests), max(self.lengths)), -1, np.int32)
        lengths = np.minimum(wanted, requests.budgets)
        for b, n in enumerate(lengths):
            text = requests.tokens[requests.rows[b], : requests.lengths[b]]
            tokens[b, :n] = self._rng.choice(text, n)
        return point_masses(tokens, lengths)

    def follow(self, requests: DraftRequests, continuation: Ints) -> Followed:
        """Refused: a script is no law that a replay could follow."""
        raise NotImplementedError("a script of lengths is for measuring an engine, not for replay")

    def finish(self, handle: int) -> None:
        """Forget a request that has ended."""
        self.stand.finish(handle)
