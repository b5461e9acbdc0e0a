"""Speculation that does not pay turns itself off, and looks again at a bounded cost.

Any policy can stand inside. It is switched off

- when it has verified nothing for ``patience`` steps (drafting costs a little, too), or
- when its steps were slower than plain ones: the advantage of a step of B requests,

      d = emitted - seconds B / T(B),     tokens more than plain decoding had emitted in that time,

  has a running mean more than one standard error below 0 (three while it is young), whatever the
  policy believed. A wrong prediction or a wrong T(n) for n > B ends here; T(B) is all that is
  trusted, and a plain step now and then shows it: the second, the fourth, ..., the 128th, and
  every 128th of those with about as many requests.

While off, every second earns ``share`` seconds of credit. A look drafts and asks the policy, and
costs what drafting took. If it wants to verify, a trial of ``trial`` steps begins, in which every
token that is lost is paid for; the policy is on again if the trial won. Looks and trials begin with
enough credit for what one is expected to cost and what they cost beyond that is owed, so in the
long run they take at most ``share`` of the time.
"""

from __future__ import annotations

import math

from proposers.batch import Longs
from proposers.length.policy import Candidates, Outcome, StepTimes, TreePolicy

_SOON = 8  # steps after which what is plainly slower ends
_PLAIN_EVERY = 128


class NeverSlower:
    """A policy that is on only while it pays; see the module.

    Parameters
    ----------
    inner
        The policy.
    step_times
        The engine's T(n); only T(B) is trusted.
    share
        Most of the time that looks and trials may take, in (0, 1).
    patience
        Steps without a verified draft before it is switched off.
    trial
        Steps of a trial.
    memory
        Steps over which the advantage is averaged.
    """

    def __init__(
        self,
        inner: TreePolicy,
        step_times: StepTimes,
        *,
        share: float = 0.01,
        patience: int = 32,
        trial: int = 8,
        memory: int = 64,
    ) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share is {share}; it must lie in (0, 1)")
        if min(patience, trial) < 1 or memory < 2:
            raise ValueError(
                "patience and trial must be 1 or more and memory 2 or more; got "
                f"{patience}, {trial} and {memory}"
            )
        self.inner, self.step_times = inner, step_times
        self.share, self.patience, self.trial, self.memory = share, patience, trial, memory
        self.reason: str | None = None
        self.spent = 0.0
        self.seconds_off = 0.0
        self._credit = 0.0
        self._zeros = 0
        self._asked = False
        self._plain: dict[int, list[int]] = {}  # steps, and which of them is a plain one
        self._left = 0  # steps of the look or trial that is going on
        self._gained = 0.0
        self._look_cost = 0.0
        self._trial_cost: float | None = None
        self._paid = 0.0
        self._steps, self._mean, self._variance = 0, 0.0, 0.0

    @property
    def on(self) -> bool:
        """Whether the policy decides; ``reason`` says why it does not: "zero" or "slower"."""
        return self.reason is None

    @property
    def state(self) -> str:
        """ "on", "off" or "trial"."""
        if self.reason is None:
            return "on"
        return "trial" if self._left else "off"

    def ahead(self, handles: Longs, longest: int) -> int:
        """What the policy says, or 0 while it is off and no look is due."""
        if self.reason is not None and self._left == 0:
            if self._credit < self._price(handles.shape[0]):
                return 0
            self._left, self._gained, self._paid = self.trial, 0.0, 0.0
        plain = self.reason is None and self._plain_is_due(handles.shape[0])
        found = 0 if plain else self.inner.ahead(handles, longest)
        self._asked = found > 0
        return found

    def lengths(self, step: Candidates) -> Longs:
        """What the policy says."""
        return self.inner.lengths(step)

    def floor(self, requests: int) -> float:
        """What the policy says."""
        return self.inner.floor(requests)

    def observe(self, outcome: Outcome) -> None:
        """Learn whether it pays."""
        self.inner.observe(outcome)
        requests = outcome.handles.shape[0]
        asked, self._asked = self._asked, False
        if not requests:
            return
        if math.isnan(outcome.seconds):
            self._untimed(outcome)
            return
        plain = float(self.step_times.seconds(requests))
        # A pause of the machine is nobody's fault: no step is taken for more than thrice its time.
        drafted = int(outcome.drafted.sum())
        model = float(self.step_times.seconds(requests + drafted))
        seconds = min(outcome.seconds, 3 * model + outcome.overhead)
        gained = (outcome.emitted - seconds * requests / plain) / requests
        if self.reason is None:
            if drafted:
                self._zeros = 0
                self._judge(gained)
            elif asked:
                self._zeros += 1
                if self._zeros >= self.patience:
                    self._off("zero")
            return
        self.seconds_off += outcome.seconds
        self._credit += self.share * outcome.seconds
        if self._left:
            if asked or drafted:
                self._tried(outcome, gained, plain)
        else:  # no more than a few of what a look may cost: a late start must not be a long one
            self._credit = min(self._credit, 4 * self._price(requests) + self.share * plain)

    def finish(self, handle: int) -> None:
        """Tell the policy."""
        self.inner.finish(handle)

    def _plain_is_due(self, requests: int) -> bool:
        """Whether the step that is decided shall show T(B)."""
        counts = self._plain.setdefault(requests.bit_length(), [0, 2])
        counts[0] += 1
        if counts[0] < counts[1]:
            return False
        counts[1] += min(counts[1], _PLAIN_EVERY)
        return True

    def _price(self, requests: int) -> float:
        """Seconds of credit that a look or a trial needs to begin."""
        if self.reason == "zero":
            return self._look_cost
        if self._trial_cost is not None:
            return self._trial_cost
        several = [float(self.step_times.seconds(n)) for n in (requests, 3 * requests)]
        return self.trial * (several[1] - several[0])

    def _tried(self, outcome: Outcome, gained: float, plain: float) -> None:
        """A step of a look or a trial, paid for."""
        tried = bool(outcome.drafted.any())
        cost = max(0.0, -gained * plain) if tried else outcome.overhead
        self._pay(cost)
        if not tried:  # it wants nothing: no more of that
            self._look_cost = max(outcome.overhead, 0.5 * self._look_cost)
            self._left = 0
            return
        self._gained += gained
        self._end_of_trial_step()

    def _untimed(self, outcome: Outcome) -> None:
        """A step of a trial with a prompt in it: what its drafts cost is taken from T(n)."""
        if self.reason is None or not self._left or not outcome.drafted.any():
            return
        requests = outcome.handles.shape[0]
        plain = float(self.step_times.seconds(requests))
        more = float(self.step_times.seconds(requests + int(outcome.drafted.sum()))) - plain
        cost = max(0.0, more - plain * (outcome.emitted / requests - 1))
        self._pay(cost)
        self._end_of_trial_step()

    def _pay(self, cost: float) -> None:
        self._credit -= cost
        self.spent += cost
        self._paid += cost

    def _end_of_trial_step(self) -> None:
        self._left -= 1
        if self._left == 0:
            if self._gained > 0:
                self.reason, self._zeros = None, 0
                self._forget()
            else:
                self.reason = "slower"
                mean = self._paid if self._trial_cost is None else self._trial_cost
                self._trial_cost = 0.5 * mean + 0.5 * self._paid

    def _judge(self, gained: float) -> None:
        """The running mean of the advantage, and its standard error."""
        self._steps += 1
        weight = max(1 / self._steps, 1 / self.memory)
        off = gained - self._mean
        self._mean += weight * off
        self._variance = (1 - weight) * (self._variance + weight * off * off)
        error = math.sqrt(self._variance / min(self._steps, self.memory))
        errors = 1.0 if self._steps >= self.memory else 3.0
        if self._steps >= _SOON and self._mean + errors * error < 0:
            self._off("slower")

    def _off(self, reason: str) -> None:
        self.reason, self._zeros, self._left = reason, 0, 0
        self._credit = 0.0
        self._forget()

    def _forget(self) -> None:
        self._steps, self._mean, self._variance = 0, 0.0, 0.0
