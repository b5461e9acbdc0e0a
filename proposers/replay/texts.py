"""The texts of answers that decode together, as a drafter is shown them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from proposers.batch import Doubles, DraftRequests, Ints, Longs, VerifiedRows
from proposers.table import MAX_ORDER
from theory.traces import Trace

Parameters = tuple[Doubles, Longs, Doubles, NDArray[np.uint64]]


class Texts:
    """The texts of a group of answers while they grow; they hold no token before it was emitted.

    A drafter that reads beyond a text's length finds nothing there, as in the engine.
    """

    def __init__(
        self,
        trace: Trace,
        laws: NDArray[np.float32],
        answers: list[int],
        first_handle: int,
        entries: int,
    ) -> None:
        self.trace = trace
        self.laws = laws[:, :entries]
        self.ids = trace.ids[:, :entries]
        self.prompts = [trace.prompt(int(trace.answer_prompts[a])) for a in answers]
        self.begins = trace.answer_begins[answers]
        self.sizes = trace.answer_begins[np.array(answers) + 1] - self.begins
        self.handles = np.arange(first_handle, first_handle + len(answers))
        self.starts = np.array([prompt.shape[0] for prompt in self.prompts], np.int64)
        longest = int((self.starts + self.sizes).max())
        self.tokens = np.full((len(answers), longest), -1, np.int32)
        for b, prompt in enumerate(self.prompts):
            self.tokens[b, : prompt.shape[0]] = prompt
        self._refused = trace.refused
        self._all_known = all((self.ids[trace.answer(a), 0] >= 0).all() for a in answers)
        self._parameters: dict[int, Parameters] = {}
        self._ends = set(self.sizes.tolist())
        self.turn(0)

    def turn(self, emitted: int) -> None:
        """So many tokens are emitted: who is ``going`` to emit more, who has just ``ended``.

        ``alive`` are both together, in the order of the batch.
        """
        if emitted == 0 or emitted in self._ends or emitted - 1 in self._ends:
            self.alive = np.flatnonzero(self.sizes >= emitted)
            self.going = np.flatnonzero(self.sizes > emitted)
            self.ended = np.flatnonzero(self.sizes == emitted)

    def requests(self, which: Longs, emitted: int, budget: int) -> DraftRequests:
        """Those (places in the batch, perhaps repeated) ask for drafts after so many tokens."""
        lengths = self.starts[which] + emitted
        return self.requests_of(self.tokens, which, lengths, budget, self.handles[which])

    def requests_of(
        self, tokens: Ints, rows: Longs, lengths: Longs, budget: int, handles: Longs
    ) -> DraftRequests:
        """Requests with other texts, and the trace's sampling parameters."""
        budgets = np.full(rows.shape[0], budget, np.int64)
        parameters = self._parameters_of(rows.shape[0])
        return DraftRequests(tokens, rows, lengths, budgets, *parameters, handles)

    def _parameters_of(self, count: int) -> Parameters:
        """Temperatures, top-k, top-p and noise keys of so many requests."""
        if count not in self._parameters:
            sampling = self.trace.sampling
            self._parameters[count] = (
                np.full(count, sampling.temperature),
                np.full(count, sampling.top_k, np.int64),
                np.full(count, sampling.top_p),
                np.zeros(count, np.uint64),
            )
        return self._parameters[count]

    def continuation(self, which: Longs, emitted: int, budget: int, steps: int) -> Ints:
        """What they will emit next, (B, steps), -1 beyond the budget and the answer's end."""
        ahead = np.full((which.shape[0], steps), -1, np.int32)
        for row, b in enumerate(which):
            count = min(budget, int(self.sizes[b]) - emitted)
            begin = int(self.begins[b]) + emitted
            ahead[row, :count] = self.trace.tokens[begin : begin + count]
        return ahead

    def emit(self, which: Longs, emitted: int) -> VerifiedRows:
        """Append their next tokens; the rows that emitted them."""
        rows = self.begins[which] + emitted
        ends = self.starts[which] + emitted
        begins = np.maximum(ends - MAX_ORDER, 0)
        new = self.trace.tokens[rows]
        if which.shape[0] == 1:
            tails = self.tokens[which[0], begins[0] : ends[0]].copy()
            self.tokens[which[0], ends[0]] = new[0]
        else:
            pieces = [self.tokens[b, i:j] for b, i, j in zip(which, begins, ends, strict=True)]
            tails = np.concatenate(pieces)
            self.tokens[which, ends] = new
        widths = ends - begins
        ends = np.cumsum(widths)
        begins = ends - widths
        emitting = rows
        if not self._all_known:  # a row that is no law teaches nothing
            known = self.ids[rows, 0] >= 0
            rows, begins, ends, new = rows[known], begins[known], ends[known], new[known]
        temperatures = self._parameters_of(rows.shape[0])[0]
        seen = VerifiedRows(tails, begins, ends, self.ids[rows], self.laws[rows], new, temperatures)
        if self._refused is None:
            return seen
        after = self._refused.after
        first, last = after.searchsorted(emitting, "left"), after.searchsorted(emitting, "right")
        if (first == last).all():
            return seen
        return self._with_refused(seen, which, first, last)

    def _with_refused(
        self, seen: VerifiedRows, which: Longs, first: Longs, last: Longs
    ) -> VerifiedRows:
        """The rows, and those that the engine evaluated behind refused drafts in the same steps."""
        held = self._refused
        assert held is not None
        found = np.concatenate([np.arange(i, j) for i, j in zip(first, last, strict=True)])
        owners = np.repeat(which, last - first)
        pieces, widths = [], []
        for row, b in zip(found.tolist(), owners.tolist(), strict=True):
            end = int(self.starts[b] + held.starts[row] - self.begins[b])
            path = held.path(row)
            pieces += [self.tokens[b, max(0, end - MAX_ORDER) : end], path]
            widths.append(min(end, MAX_ORDER) + path.shape[0])
        ends = seen.tokens.shape[0] + np.cumsum(widths)
        ids = np.full((found.shape[0], self.ids.shape[1]), -1, np.int32)
        laws = np.zeros(ids.shape, np.float32)
        entries = min(ids.shape[1], held.ids.shape[1])
        ids[:, :entries] = held.ids[found, :entries]
        laws[:, :entries] = np.exp(held.log_masses[found, :entries])
        return VerifiedRows(
            np.concatenate([seen.tokens, *pieces]),
            np.concatenate([seen.begins, ends - widths]),
            np.concatenate([seen.ends, ends]),
            np.concatenate([seen.ids, ids]),
            np.concatenate([seen.probabilities, laws]),
            np.concatenate([seen.emitted, np.full(found.shape[0], -1, np.int32)]),
            np.concatenate([seen.temperatures, self._parameters_of(found.shape[0])[0]]),
        )
