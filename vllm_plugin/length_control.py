"""How many drafts are verified, decided step by step inside a runner (docs/length.md).

A step's time runs from the drafting of its drafts to the drafting of the next ones: forward,
verification, what vLLM does between two steps, and our own work. It is known when the next step is
decided, so a policy always learns of a step before it decides on another.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proposers import Drafter, DraftRequests, Drafts, StandDrafter, VerifiedRows
from proposers.batch import Doubles, Floats, Ints, Longs
from proposers.length.features import bare_features
from proposers.length.policy import Candidates, LengthPolicy, Outcome, TreePolicy, surviving
from proposers.length.predictor import AcceptancePredictor
from proposers.length.shadow import head_probabilities, shadow_labels
from proposers.length.step_times import StepTimes
from proposers.length.tally import Tally
from proposers.stand_shadow import shadow
from vllm_plugin.length_report import LengthReport
from vllm_plugin.lessons import Laws
from vllm_plugin.step_clock import Held

_LEAST_SECONDS = 1e-6
_NOTHING = np.zeros((0, 0))
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests that the next step is decided for: all that go on decoding.

    ``caps`` are each one's most drafts, known before anything is drafted; ``others`` the tokens in
    the step besides one each; ``room`` the drafts that the scheduler's budget leaves.

    Shapes: handles, caps (B,) int64.
    """

    handles: Longs
    caps: Longs
    others: int = 0
    room: int = 1 << 30


class LengthControl:
    """Asks a policy, and shows it what became of its decisions; see the module.

    Parameters
    ----------
    policy
        Decides; None verifies whatever is drafted and learns nothing.
    longest
        The most drafts of a request, K.
    predictor, step_times
        What the policy decides by, learned here; either may be None if nothing needs it.
    """

    def __init__(
        self,
        policy: LengthPolicy | None,
        longest: int,
        *,
        predictor: AcceptancePredictor | None = None,
        step_times: StepTimes | None = None,
    ) -> None:
        self.policy, self.longest = policy, longest
        self.predictor, self.step_times = predictor, step_times
        self.report = LengthReport(Tally(longest))
        self._verified: tuple[Longs, Longs, Longs] | None = None
        self._expected: Doubles = _NOTHING
        self._rows: dict[int, int] = {}
        self._began = math.nan
        self._overhead = 0.0

    @property
    def wants_times(self) -> bool:
        """Whether steps have to be timed."""
        return self.policy is not None

    def begin(self, held: Held) -> None:
        """The next step is about to be decided; ``held`` is what the one before it held."""
        now = time.perf_counter()
        seconds = now - self._began  # nan before the first step
        self._began = now
        overhead, self._overhead = self._overhead, 0.0
        if not held.decoding:
            seconds = math.nan
        elif self.step_times is not None and not math.isnan(seconds):
            self.step_times.observe(held.tokens, max(seconds - overhead, _LEAST_SECONDS))
        if self._verified is not None and self.policy is not None:
            self.policy.observe(Outcome(*self._verified, seconds, overhead))
        self._verified = None
        self.report.step(self.policy, held.requests, seconds)

    def ahead(self, batch: Batch) -> int:
        """The most tokens that shall be drafted for any request, 0..``longest``."""
        found = self.longest
        if self.policy is not None:
            found = self.policy.ahead(batch.handles, self.longest)
        if found == 0:
            with self.report.lock:
                self.report.tally.off(batch.handles.shape[0])
        return found

    def cut(
        self, batch: Batch, places: Longs, drafts: Drafts, temperatures: Doubles, apart: Bools
    ) -> Longs:
        """How many of the drafts are verified, (D,); ``places`` (D,) are theirs in the batch.

        Where ``apart`` (D,) the engine may have to make room for a list of drafts by dropping
        another's, which is judged by a rule that a cut must not depend on its own drafts for. So
        these lengths depend on their own drafts and on the past alone, and the others' on them.
        """
        lengths: Longs = np.minimum(drafts.lengths, batch.caps[places])
        if self.policy is not None and self.predictor is not None:
            features = drafts.features
            if features is None:
                features = bare_features(drafts.lengths, drafts.tokens.shape[1], temperatures)
            if places.shape[0] < batch.handles.shape[0]:
                whole = np.full((batch.handles.shape[0], *features.shape[1:]), np.nan, np.float32)
                whole[places] = features
                features = whole
            acceptance = self.predictor.predict_drafts(features)
            caps, own = batch.caps, np.zeros(0, np.int64)
            if apart.any():
                own = self._apart(batch, places[apart], acceptance, lengths[apart], features)
                caps = caps.copy()
                caps[places[apart]] = 0
            taken = int(own.sum())
            asked = Candidates(
                batch.handles, acceptance, caps, features, batch.room - taken, batch.others + taken
            )
            lengths = np.minimum(lengths, self.policy.lengths(asked)[places])
            lengths[apart] = own
            self._expected = acceptance
            self._rows = {handle: row for row, handle in enumerate(batch.handles.tolist())}
        with self.report.lock:
            self.report.tally.cut(lengths, drafts.lengths, batch.caps[places])
        return lengths

    def _apart(
        self, batch: Batch, places: Longs, acceptance: Doubles, lengths: Longs, features: Floats
    ) -> Longs:
        """Drafts of some requests by nothing but their own places; (A,), like ``lengths``.

        A policy that also decides on trees weighs requests against each other, so these take its
        floor; another decides for each request by itself (:mod:`proposers.length.baselines`).
        """
        if batch.room < batch.caps[places].sum():  # not of the chains, which tell of their tokens
            return np.zeros_like(lengths)
        if isinstance(self.policy, TreePolicy):
            return surviving(acceptance[places], self.floor(batch), lengths)
        assert self.policy is not None
        caps = np.zeros_like(batch.caps)
        caps[places] = batch.caps[places]
        alone = Candidates(batch.handles, acceptance, caps, features)
        return np.minimum(lengths, self.policy.lengths(alone)[places])

    def floor(self, batch: Batch) -> float:
        """For trees: the least survival of a token that is drafted."""
        if self.policy is None:
            return 0.0
        policy: TreePolicy = self.policy  # type: ignore[assignment]  # settings see to it
        return policy.floor(batch.handles.shape[0])

    def end(self) -> None:
        """The next step is decided."""
        self._overhead = time.perf_counter() - self._began

    def verified(self, handles: Longs, drafted: Longs, accepted: Longs) -> None:
        """What became of the drafts of a step's requests; all (B,)."""
        self._verified = handles, drafted, accepted
        rows = np.array([self._rows.get(handle, -1) for handle in handles.tolist()], np.int64)
        with self.report.lock:
            self.report.tally.verified(self._expected, rows, drafted, accepted)
        self._rows, self._expected = {}, _NOTHING

    def shadow(self, drafter: StandDrafter, rows: VerifiedRows) -> None:
        """Learn from emitted tokens, before the drafter does: what drafts would have been worth."""
        if self.predictor is not None:
            self.predictor.learn(*shadow(drafter, rows))

    def follow(
        self, drafter: Drafter, texts: DraftRequests, emitted: Ints, rows: Longs, laws: Laws | None
    ) -> None:
        """The same of any other drafter.

        ``emitted`` (B, K) are the tokens behind each text, padded with -1; ``rows`` (B, K) theirs
        in the heads of the target's laws, which are None for a drafter that learns no laws.
        """
        if self.predictor is None:
            return
        seen = drafter.follow(texts, emitted)
        p = (emitted >= 0).astype(np.float64)  # beside a point mass nothing else is needed
        if laws is not None:
            p = head_probabilities(emitted, rows, *laws, texts.temperatures)
        features = seen.features
        if features is None:
            held = (seen.q >= 0).sum(axis=1)
            features = bare_features(held, emitted.shape[1], texts.temperatures)
        self.predictor.learn(features, shadow_labels(seen.q, p))

    def finish(self, handle: int) -> None:
        """Forget a request that has ended."""
        if self.policy is not None:
            self.policy.finish(handle)
