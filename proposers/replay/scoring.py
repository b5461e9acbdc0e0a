"""Expected steps of a drafter and a rule on a recorded trajectory: a forward programme, no noise.

Given the emitted text y, P(draft i is accepted | all before it were, y) is a number that q and p at
y give (docs/replay.md): with ``q_i = q(y_{t+i})`` and ``p_i = p(y_{t+i})``

- token rule: ``min(1, q_i / p_i)``;
- block rule: ``min(1, q_i / (r_i p_i))``, ``r_0 = 1``, ``r_{i+1} = min(1, r_i p_i / q_i)``;
- match rule: ``q_i``.

At temperature 0 all three are 1 where the draft is the argmax and 0 elsewhere. The chance that a
step starts before y_t follows by ``pi(t + m + 1) += pi(t) P(exactly m are accepted at t)``, from
``pi = 1`` at the token after the first, which the prefill emits; the expected number of steps is
the sum of pi. Sun et al. arXiv 2403.10444 (block rule); Leviathan et al. arXiv 2211.17192.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from proposers.batch import Doubles, Longs
from proposers.replay.profiling import Profile
from theory.traces import Trace

RULES = ("token", "block", "match")


@dataclass(frozen=True)
class Score:
    """Expectations over drafts and verdicts, given the recorded answers; summed over each prompt.

    ``tokens`` counts those that decode steps delivered (a prefill delivers the first one),
    ``drafted`` what was drafted in these steps, ``accepted`` what became text. ``by_position`` hold
    the expected number of drafts i that were drafted (``offered``), that were reached with all
    before them accepted (``reached``), and accepted (``kept``). ``seconds`` is None without a curve
    of step times.

    Shapes: tokens, answers (A,) int64; steps, drafted, accepted, seconds (A,) float64; offered,
    reached, kept (A, K) float64; A prompts.
    """

    tokens: Longs
    answers: Longs
    steps: Doubles
    drafted: Doubles
    offered: Doubles
    reached: Doubles
    kept: Doubles
    seconds: Doubles | None

    @property
    def accepted(self) -> Doubles:
        """Drafts that became text, by prompt."""
        return np.asarray(self.kept.sum(axis=1))

    @property
    def wasted(self) -> Doubles:
        """Drafts that did not become text, by prompt."""
        return self.drafted - self.accepted

    @property
    def block_efficiency(self) -> float:
        """Tokens per decode step; nan where there was no step."""
        return _ratio(self.tokens.sum(), self.steps.sum())

    @property
    def acceptance(self) -> Doubles:
        """P(draft i is accepted | it was drafted), (K,); nan where none was drafted."""
        return _ratios(self.kept, self.offered)

    @property
    def acceptance_when_reached(self) -> Doubles:
        """P(draft i is accepted | it was drafted and all before it accepted), (K,)."""
        return _ratios(self.kept, self.reached)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of decode steps over the time of these steps; None without step times."""
        return None if self.seconds is None else _ratio(self.tokens.sum(), self.seconds.sum())


def score(
    profile: Profile,
    trace: Trace,
    *,
    rule: str,
    draft_length: int,
    step_times: NDArray[np.float64] | None = None,
) -> Score:
    """The expected course of decoding the trace with this drafter, rule and K.

    A K below the profile's truncates its chains, which is exact where the first drafts of a chain
    do not depend on K (all drafters but those that ``DRAFTERS`` marks ``depends_on_length``).
    ``step_times[n]`` are the seconds of a step with n drafted tokens; E over steps of T(n).

    Raises
    ------
    ValueError
        For an unknown rule, a K that the profile does not hold, and step times that end before K.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
    if not 1 <= draft_length <= profile.draft_length:
        raise ValueError(
            f"draft_length is {draft_length}; the profile holds 1..{profile.draft_length}"
        )
    drafted = np.minimum(profile.drafted, draft_length)
    kept = chances(profile.q[:, :draft_length], trace.processed.emitted, RULES.index(rule))
    return expected_course(trace, kept, drafted, drafted, step_times)


def expected_course(
    trace: Trace,
    kept: Doubles,
    deepest: Longs,
    drafted: Longs,
    step_times: NDArray[np.float64] | None = None,
) -> Score:
    """The forward programme, for whatever was drafted and however it is judged.

    ``kept[t, i]`` is P(the step that starts at t accepts its drafts 0..i | y), -1 where there is no
    draft i; ``deepest[t]`` is how far the drafts of that step reach, ``drafted[t]`` how many tokens
    they are together (k paths have k chains).

    Shapes: kept (N, K) float64; deepest, drafted (N,) int64. Raises ValueError for step times that
    end before the largest number drafted.
    """
    most = int(drafted.max(initial=0))
    if step_times is not None and step_times.shape[0] <= most:
        raise ValueError(
            f"the step times end at {step_times.shape[0] - 1} drafted tokens, but up to {most} are "
            "drafted in a step: measure longer steps, or draft less"
        )
    seconds = np.zeros(len(trace)) if step_times is None else step_times[drafted]
    sums = np.zeros((trace.answers, 3))
    positions = np.zeros((trace.answers, 3, kept.shape[1]))
    _course(trace.answer_begins, kept, deepest, drafted, seconds, sums, positions)
    prompts = trace.answer_prompts
    by_prompt = np.zeros((trace.prompts, 3))
    np.add.at(by_prompt, prompts, sums)
    places = np.zeros((trace.prompts, 3, kept.shape[1]))
    np.add.at(places, prompts, positions)
    sizes = np.diff(trace.answer_begins)
    return Score(
        tokens=np.bincount(prompts, np.maximum(sizes - 1, 0), trace.prompts).astype(np.int64),
        answers=np.bincount(prompts, minlength=trace.prompts).astype(np.int64),
        steps=by_prompt[:, 0],
        drafted=by_prompt[:, 1],
        offered=places[:, 0],
        reached=places[:, 1],
        kept=places[:, 2],
        seconds=None if step_times is None else by_prompt[:, 2],
    )


@njit(cache=True, nogil=True)
def chances(q: Any, p: Any, rule: Any) -> Any:
    """P(drafts 0..i are accepted | y); a chain ends at a q of 0, behind which nothing is defined.

    Rows near an answer's end need no care: their q is -1 beyond it.
    """
    kept = np.full(q.shape, -1.0)
    for t in range(q.shape[0]):
        r, so_far = 1.0, 1.0
        for i in range(q.shape[1]):
            if q[t, i] < 0:
                break
            mass = r * p[t + i]
            r = 1.0
            if rule == 2:
                so_far *= q[t, i]
            elif q[t, i] < mass:
                so_far *= q[t, i] / mass
            elif rule == 1 and q[t, i] > 0:
                r = mass / q[t, i]
            kept[t, i] = so_far
            if q[t, i] == 0:
                break
    return kept


@njit(cache=True, nogil=True)
def _course(
    begins: Any, kept: Any, deepest: Any, drafted: Any, seconds: Any, sums: Any, positions: Any
) -> Any:
    """sums: steps, drafted tokens, seconds; positions: offered, reached, kept; of every answer."""
    most = kept.shape[1]
    for a in range(begins.shape[0] - 1):
        end = begins[a + 1]
        starts = np.zeros(end - begins[a] + most + 2)  # P(a step starts before this token)
        starts[1] = 1.0
        for t in range(begins[a] + 1, end):
            here = t - begins[a]
            chance = starts[here]
            if chance == 0:
                continue
            sums[a, 0] += chance
            sums[a, 1] += chance * drafted[t]
            sums[a, 2] += chance * seconds[t]
            for i in range(min(deepest[t], most)):
                positions[a, 0, i] += chance
            reached, count = 1.0, 0
            for i in range(most):
                if kept[t, i] < 0:
                    break
                positions[a, 1, i] += chance * reached
                positions[a, 2, i] += chance * kept[t, i]
                starts[here + i + 1] += chance * (reached - kept[t, i])
                reached, count = kept[t, i], i + 1
            starts[here + count + 1] += chance * reached
        # What starts at the end and behind it never happens: the answer is over.


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else float("nan")


def _ratios(numerators: Doubles, denominators: Doubles) -> Doubles:
    top, bottom = numerators.sum(axis=0), denominators.sum(axis=0)
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0))
