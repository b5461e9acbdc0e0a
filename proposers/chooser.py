"""A chooser: every member drafts for every request, the one expected to gain most is verified.

Members are drafters; the first is the reference. All are scored on every emitted token, not only
the one that was chosen (full information, no bandit), and what each is worth is learned by how sure
it says that it is (:mod:`proposers.gains`, :mod:`proposers.members`): a prompt look-up that agrees
with the text over seven tokens may beat a table whose longest known context is short, one that
agrees over a single token does not.

Why the output law stays p. At a step, let H be all that happened before: texts, tables, estimates,
rows behind refused drafts. The chosen member c is a function of H and of the members' levels and
point-mass chains, which are functions of H too; nothing of it depends on this step's draws. Given
H, the drafts are drawn from the laws of member c alone, and these are published. So for every H the
verifier gets tokens that were drawn from the very q that it is told, and what it emits follows p
(ALGORITHMS.md 5, traps 1 and 2). A chooser that drew from every member first and then preferred one
because of the tokens drawn would not do: its tokens follow q given that preference, another law.

The state of a member at an earlier start is gone when the text that followed is known. Kept are its
chain and its level. For a member that draws, q of an emitted token is taken from the last draft
before that token, i.e. from a table that may have learned since the start: exactly the start's q as
far as one step reaches, and only a few rows more beyond. The rows of a step are held back from the
members until its tokens have been scored, so no table is judged on what it has just been told.

What the members are worth is learned from the requests of all groups together; what they draft is
not, if all of them keep groups apart.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from proposers.batch import (
    Doubles,
    Drafter,
    DraftRequests,
    Drafts,
    Floats,
    Followed,
    Ints,
    Longs,
    VerifiedRows,
    follow_chain,
    point_masses,
)
from proposers.gains import (
    CLASSES,
    Courses,
    decide,
    emitted_masses,
    more_room,
    no_courses,
    no_estimates,
    settle,
)
from proposers.length.features import bare_features
from proposers.members import draws, look

_CLASS_EDGES = np.array([1e-9, 0.85])
assert len(_CLASS_EDGES) == CLASSES - 1


class ChooserDrafter:
    """Drafts with the member that is expected to gain most.

    Parameters
    ----------
    members
        Drafters by name, the reference first; at most one of them draws (STAND).
    draft_length
        Most tokens drafted for a request, K >= 1; the members' own.

    Raises
    ------
    ValueError
        Without members, and for two that draw.
    TypeError
        For a drafter that cannot say how sure it is.
    """

    def __init__(self, members: Mapping[str, Drafter], *, draft_length: int) -> None:
        if draft_length < 1:
            raise ValueError(f"draft_length is {draft_length}; it must be 1 or more")
        drawing = [i for i, member in enumerate(members.values()) if draws(member)]
        if not members or len(drawing) > 1:
            raise ValueError(
                f"the members are {', '.join(members) or 'none'}; "
                "give one or more, of which at most one draws at random"
            )
        self.names, self.members = tuple(members), tuple(members.values())
        self.draft_length = draft_length
        self.wants_rows = any(member.wants_rows for member in self.members)
        self.has_groups = all(member.has_groups for member in self.members)
        self.wants_emitted = any(member.wants_emitted for member in self.members)
        self.chosen = np.zeros(len(members), np.int64)  # how often each was
        self._drawing = drawing[0] if drawing else -1
        self._estimates = no_estimates(len(members))
        self._courses = self._room(8)
        self._slots: dict[int, int] = {}
        self._free = list(range(8))
        self._rows: VerifiedRows | None = None

    def start(self, handle: int, prompt: Ints, group: int = 0) -> None:
        """Give every member the prompt, shape (n,) int32."""
        for member in self.members:
            member.start(handle, prompt, group)

    def observe(self, rows: VerifiedRows) -> None:
        """Keep the rows until the tokens that they emitted are known and scored."""
        self._tell_members()
        self._rows = rows

    def draft(self, requests: DraftRequests) -> Drafts:
        """Choose a member for every request, then draw from it."""
        choices, chains, lengths = self._choose(requests)
        made = point_masses(chains, lengths)
        drawn = np.flatnonzero(choices == self._drawing)
        if drawn.size == 0:
            return made
        if drawn.size == len(requests):
            return self.members[self._drawing].draft(requests)
        theirs = self.members[self._drawing].draft(requests.subset(drawn))
        ids, law = _widened(made, theirs.law_ids.shape[2])
        tokens = made.tokens
        tokens[drawn], lengths[drawn] = theirs.tokens, theirs.lengths
        ids[drawn], law[drawn] = theirs.law_ids, theirs.law_probabilities
        shown = _shown(requests, lengths, tokens.shape[1], drawn, theirs.features)
        return Drafts(tokens, lengths, ids, law, shown)

    def follow(self, requests: DraftRequests, continuation: Ints) -> Followed:
        """The laws of the chosen members along a continuation."""
        choices, chains, lengths = self._choose(requests)
        made = point_masses(chains, lengths)
        followed = follow_chain(made, continuation)
        drawn = np.flatnonzero(choices == self._drawing)
        if drawn.size == 0:
            return followed
        member = self.members[self._drawing]
        theirs = member.follow(requests.subset(drawn), continuation[drawn])
        ids, law = _widened(made, theirs.law_ids.shape[2])
        q = followed.q
        q[drawn], ids[drawn], law[drawn] = theirs.q, theirs.law_ids, theirs.law_probabilities
        held = (q >= 0).sum(axis=1)
        shown = _shown(requests, held, q.shape[1], drawn, theirs.features)
        return Followed(q, ids, law, shown)

    def finish(self, handle: int) -> None:
        """Forget the request; what it taught stays."""
        for member in self.members:
            member.finish(handle)
        slot = self._slots.pop(handle, None)
        if slot is not None:
            self._free.append(slot)

    def _choose(self, requests: DraftRequests) -> tuple[Longs, Ints, Longs]:
        """Each request's member (B,), and of those that do not draw chain (B, K) and length (B,).

        A request whose text has not grown since the last decision keeps it.
        """
        slots = np.array([self._slot(int(handle)) for handle in requests.handles], np.int64)
        new = np.flatnonzero(self._courses.lengths[slots] != requests.lengths)
        if new.size == len(requests):
            self._decide(requests, slots)
        elif new.size:
            self._decide(requests.subset(new), slots[new])
        choices = self._courses.choices[slots]
        lengths = np.minimum(self._courses.spans[slots, choices], np.maximum(requests.budgets, 0))
        lengths[choices == self._drawing] = 0
        chains = self._courses.chains[slots, choices]
        chains[np.arange(self.draft_length) >= lengths[:, None]] = -1
        return choices, chains, lengths

    def _decide(self, requests: DraftRequests, slots: Longs) -> None:
        """Score what became known, let the members learn, and choose for the texts as they are."""
        self._settle(requests, slots)
        self._tell_members()
        batch, count = len(requests), len(self.members)
        levels = np.zeros((batch, count), np.int64)
        spans = np.zeros((batch, count), np.int64)
        chains = np.full((batch, count, self.draft_length), -1, np.int32)
        for m, member in enumerate(self.members):
            seen = look(member, requests)
            levels[:, m] = seen.levels
            spans[:, m], chains[:, m] = seen.chains.lengths, seen.chains.tokens
            if m == self._drawing:
                most = np.clip(requests.budgets, 0, self.draft_length)
                spans[:, m] = np.where(requests.temperatures > 0, most, spans[:, m])
        classes = _CLASS_EDGES.searchsorted(requests.temperatures, "right")
        decide(
            self._courses, self._estimates, slots, requests.lengths, classes, levels, chains, spans
        )
        self.chosen += np.bincount(self._courses.choices[slots], minlength=count)

    def _settle(self, requests: DraftRequests, slots: Longs) -> None:
        olds = self._courses.lengths[slots]
        most = int(np.where(olds >= 0, requests.lengths - olds, 0).max(initial=0))
        if most == 0:
            return
        q, p = np.zeros((2, len(requests), most))
        if self._drawing >= 0:
            q = self._drawn_masses(requests, olds, most)
            p = self._target_masses(requests, olds, most)
        settle(
            self._courses, self._estimates, slots, requests.tokens, requests.rows, olds,
            requests.lengths, self._drawing, q, p,
        )  # fmt: skip

    def _drawn_masses(self, requests: DraftRequests, olds: Longs, most: int) -> Doubles:
        """q of the new tokens, from the member that draws, before it learns their rows; (B, n)."""
        steps = self.draft_length
        q = np.zeros((len(requests), most))
        for begin in range(0, most, steps):
            going = np.flatnonzero((olds >= 0) & (requests.lengths - olds > begin))
            some = requests if going.size == len(requests) else requests.subset(going)
            starts = olds[going] + begin
            places = starts[:, None] + np.arange(steps)
            inside = places < some.lengths[:, None]
            known = np.minimum(places, requests.tokens.shape[1] - 1)
            ahead = np.where(inside, requests.tokens[some.rows[:, None], known], -1)
            budgets = np.full(going.size, steps, np.int64)
            earlier = replace(some, lengths=starts, budgets=budgets)
            found = self.members[self._drawing].follow(earlier, ahead.astype(np.int32))
            width = min(steps, most - begin)
            q[going, begin : begin + width] = np.maximum(found.q[:, :width], 0)
        return q

    def _target_masses(self, requests: DraftRequests, olds: Longs, most: int) -> Doubles:
        """p of the new tokens as far as the step's rows tell, else -1; (B, n)."""
        p = np.full((len(requests), most), -1.0)
        rows = self._rows
        if rows is not None and rows.ends.shape[0]:
            known = np.where(olds >= 0, olds, requests.lengths)
            emitted_masses(
                rows.tokens, rows.begins, rows.ends, rows.ids, rows.probabilities,
                requests.tokens, requests.rows, known, requests.lengths,
                requests.temperatures, requests.top_k, requests.top_p, p,
            )  # fmt: skip
        return p

    def _tell_members(self) -> None:
        if self._rows is not None:
            for member in self.members:
                if member.wants_rows:
                    member.observe(self._rows)
            self._rows = None

    def _slot(self, handle: int) -> int:
        slot = self._slots.get(handle)
        if slot is None:
            if not self._free:
                held = self._courses.lengths.shape[0]
                more = self._room(held)
                self._courses = more_room(self._courses, more)
                self._free = list(range(held, 2 * held))
            slot = self._slots[handle] = self._free.pop()
            self._courses.lengths[slot] = -1
            self._courses.begins[slot] = -1
            self._courses.surprise[slot] = 0
        return slot

    def _room(self, requests: int) -> Courses:
        return no_courses(requests, len(self.members), self.draft_length)


def _widened(made: Drafts, entries: int) -> tuple[Ints, Doubles]:
    """The laws of point masses with room for more entries."""
    shape = (*made.tokens.shape, entries)
    ids, law = np.full(shape, -1, np.int32), np.zeros(shape)
    ids[:, :, 0], law[:, :, 0] = made.tokens, made.law_probabilities[:, :, 0]
    return ids, law


def _shown(
    requests: DraftRequests, lengths: Longs, steps: int, drawn: Longs, theirs: Floats | None
) -> Floats | None:
    """What the places show: the drawing member's own features, of point masses the depth."""
    if theirs is None:
        return None
    shown = bare_features(lengths, steps, requests.temperatures)
    shown[drawn] = theirs
    return shown
