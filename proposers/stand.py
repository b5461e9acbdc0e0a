"""STAND: stochastic drafts from the table, with the law of every drafted token."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numba import njit

from proposers.acceptance import expected_acceptance
from proposers.batch import Doubles, DraftRequests, Drafts, Followed, Ints, VerifiedRows
from proposers.context_keys import context_keys, salt_at
from proposers.length.features import NAMES, write_features
from proposers.mixture import mix
from proposers.noise import exponential, row_key
from proposers.table import StandTable, longest_match

_DRAWN = np.zeros((0, 0), np.int32)


@njit(inline="always")
def reshape_law(
    ids: Any, law: Any, temperature: Any, top_k: Any, top_p: Any, out_ids: Any, out: Any
) -> Any:
    """The request's own law from a mean law at temperature 1; returns its number of entries.

    ``q ~ avg^(1/T)`` cut to the request's top-k, then to the smallest prefix of mass top-p, then
    normalised; a point mass on the most probable token at T = 0. Entries come most probable first.
    """
    n = 0
    while n < ids.shape[0] and ids[n] >= 0 and law[n] > 0:
        n += 1
    if top_k > 0:
        n = min(n, top_k)
    if temperature == 0:
        n = min(n, 1)
    if n == 0:
        return 0
    total = 0.0
    for e in range(n):
        weight = law[e] / law[0]
        if temperature != 1 and temperature > 0:
            weight = math.exp(math.log(weight) / temperature)
        if weight == 0:  # underflow: what has no probability must not stand among the entries
            n = e
            break
        out[e] = weight
        total += weight
    if top_p < 1:
        mass, whole = 0.0, n
        for e in range(whole):
            mass += out[e]
            if mass >= top_p * total:
                n = e + 1
                break
        for e in range(n, whole):  # whoever normalises the law again must not find them
            out[e] = 0.0
        total = mass
    for e in range(n):
        out_ids[e] = ids[e]
        out[e] /= total
    return n


@njit(inline="always")
def draw(law_ids: Any, law: Any, n: Any, uniform: Any) -> Any:
    """Inverse of the cumulative law at ``uniform`` in [0, 1)."""
    mass = 0.0
    for e in range(n - 1):
        mass += law[e]
        if uniform < mass:
            return law_ids[e]
    return law_ids[n - 1]


@njit(inline="always")
def draw_race(law_ids: Any, law: Any, n: Any, row: Any) -> Any:
    """The winner of the exponential race of q with position-keyed noise."""
    winner, best = law_ids[0], math.inf
    for e in range(n):
        if law[e] > 0:
            score = exponential(row, law_ids[e]) / law[e]
            if score < best:
                winner, best = law_ids[e], score
    return winner


@njit(cache=True, nogil=True)
def _draft(
    table: Any,
    order: Any,
    asked: Any,
    uniforms: Any,
    min_survival: Any,
    interpolation: Any,
    given: Any,
    out_tokens: Any,
    out_lengths: Any,
    law_ids: Any,
    laws: Any,
    features: Any,
) -> Any:
    """Chains of every request: drawn, or, when ``given`` has rows, along the given tokens."""
    tokens, rows, lengths, budgets, temperatures, top_k, top_p, noise_keys, groups = asked
    keys = np.empty(order, np.uint64)
    steps = out_tokens.shape[1]
    text = np.empty(order + steps, np.int32)
    ids = np.empty(2 * table.ids.shape[1], np.int32)
    law = np.empty(ids.shape[0])
    for b in range(rows.shape[0]):
        tail = min(order, lengths[b])
        text[:tail] = tokens[rows[b], lengths[b] - tail : lengths[b]]
        salt, survival = salt_at(groups, b), 1.0
        for i in range(min(steps, budgets[b])):
            longest = context_keys(text, 0, tail + i, order, keys, salt)
            slot, matched = longest_match(table, keys, longest)
            if slot < 0:
                break
            known = mix(table, keys, slot, matched, interpolation, ids, law)
            # Judged before the token is drawn, from the prefix and its law: lossless (trap 1).
            survival *= expected_acceptance(
                matched, order, table.counts[slot], law[0], temperatures[b]
            )
            if survival < min_survival:
                break
            n = reshape_law(
                ids, law, temperatures[b], top_k[b], top_p[b], law_ids[b, i], laws[b, i]
            )
            if n == 0:
                break
            write_features(
                features[b, i],
                matched,
                table.counts[slot],
                law[:known],
                laws[b, i],
                n,
                i,
                temperatures[b],
            )
            if given.shape[0]:
                token = given[b, i]
                if token < 0:
                    break
            elif noise_keys[b] == 0:
                token = draw(law_ids[b, i], laws[b, i], n, uniforms[b, i])
            else:
                row = row_key(noise_keys[b], lengths[b] + i)
                token = draw_race(law_ids[b, i], laws[b, i], n, row)
            out_tokens[b, i] = token
            text[tail + i] = token
            out_lengths[b] = i + 1


class StandDrafter:
    """Drafts by longest-context look-up and sampling (ALGORITHMS.md 1; STAND, arXiv 2506.04708).

    At each depth the longest known context of at most ``table.order`` tokens gives the mean law of
    the target, mixed with those of shorter ones (:mod:`proposers.mixture`); it is re-tempered and
    cut for the request, one token is drawn from it, appended, and the next depth follows. No known
    context ends the draft, and so does a small chance that its next token would count
    (:mod:`proposers.acceptance`). The laws are those of the table at the moment of drafting,
    copied, so later updates cannot change them (ALGORITHMS.md 5, trap 2).

    Parameters
    ----------
    table
        The statistics, shared by every request.
    draft_length
        Most tokens drafted for a request, K >= 1.
    seed
        Seed of the draft noise of requests without a seed of their own.
    prompt_visits
        Whether prompts enter the table, each token a one-hot visit of its contexts.
    min_survival
        A chain ends before the token that it is expected to reach and have accepted with less than
        this probability, in [0, 1); 0 drafts as long as contexts are known.
    interpolation
        Strength of the mixture with shorter contexts' laws, >= 0; 0 is the paper's back-off.

    Raises
    ------
    ValueError
        If ``draft_length`` is below 1, or ``min_survival`` or ``interpolation`` outside its range.
    """

    wants_rows = True
    has_groups = True

    def __init__(
        self,
        table: StandTable,
        *,
        draft_length: int,
        seed: int = 0,
        prompt_visits: bool = True,
        min_survival: float = 0.0,
        interpolation: float = 1.0,
    ) -> None:
        if draft_length < 1:
            raise ValueError(f"draft_length is {draft_length}; it must be 1 or more")
        if not 0 <= min_survival < 1:
            raise ValueError(f"min_survival is {min_survival}; it must lie in [0, 1)")
        if not 0 <= interpolation < math.inf:
            raise ValueError(f"interpolation is {interpolation}; it must be 0 or more")
        self.table = table
        self.draft_length = draft_length
        self.prompt_visits = prompt_visits
        self.min_survival = float(min_survival)
        self.interpolation = float(interpolation)
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0x57A4D])))

    @property
    def wants_emitted(self) -> bool:
        """Whether the table weighs emitted tokens."""
        return self.table.emitted_weight > 0

    def start(self, handle: int, prompt: Ints, group: int = 0) -> None:
        """Take in a prompt, shape (n,) int32."""
        if self.prompt_visits:
            self.table.observe_text(prompt, group)

    def observe(self, rows: VerifiedRows) -> None:
        """Take in the target laws of one step."""
        self.table.observe(rows)

    def draft(self, requests: DraftRequests) -> Drafts:
        """Draft up to ``min(draft_length, budget)`` tokens for every request, with their laws."""
        return self._chains(requests, self._rng.random((len(requests), self.draft_length)), _DRAWN)

    def follow(self, requests: DraftRequests, continuation: Ints) -> Followed:
        """The table's laws along a continuation, as far as a chain along it would go."""
        made = self._chains(requests, np.zeros((1, 1)), continuation)
        hit = (made.law_ids == continuation[:, :, None]) & (made.law_probabilities > 0)
        q = np.where(hit, made.law_probabilities, 0.0).sum(axis=2)
        beyond = np.arange(continuation.shape[1]) >= made.lengths[:, None]
        return Followed(
            np.where(beyond, -1.0, q), made.law_ids, made.law_probabilities, made.features
        )

    def most_probable(self, requests: DraftRequests) -> Drafts:
        """What a draft at temperature 0 would be for every request; nothing is drawn."""
        coldest = replace(requests, temperatures=np.zeros(len(requests)))
        return self._chains(coldest, np.zeros((len(requests), self.draft_length)), _DRAWN)

    def finish(self, handle: int) -> None:
        """Nothing is kept for a request."""

    def _chains(self, requests: DraftRequests, uniforms: Doubles, given: Ints) -> Drafts:
        batch, steps, entries = len(requests), self.draft_length, 2 * self.table.entries
        features = np.full((batch, steps, len(NAMES)), np.nan, np.float32)
        drafts = Drafts(
            tokens=np.full((batch, steps), -1, np.int32),
            lengths=np.zeros(batch, np.int64),
            law_ids=np.full((batch, steps, entries), -1, np.int32),
            law_probabilities=np.zeros((batch, steps, entries), np.float64),
            features=features,
        )
        _draft(
            self.table.arrays, self.table.order, requests.arrays(), uniforms, self.min_survival,
            self.interpolation, given, drafts.tokens, drafts.lengths, drafts.law_ids,
            drafts.law_probabilities, features,
        )  # fmt: skip
        return drafts
