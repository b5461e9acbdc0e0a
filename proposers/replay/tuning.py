"""Search for STAND settings on recorded text: which options, and how many tokens to draft?

A trial is one choice of options. It is replayed along the training prompts, in stretches that
double their part of the whole (1/4, 1/2, 1); behind each stretch a trial that is not among the
better half of those that came so far is given up (successive halving, Jamieson and Talwalkar
2016; asynchronous, Li et al. arXiv 1810.05934). Choices are made by a tree-structured Parzen
estimator (Bergstra et al. 2011) through optuna. The number of drafted tokens K costs nothing to
search: chains of K begin with chains of fewer, so one replay at the largest K scores all.

What is maximised is the expected rate, tokens / sum over steps of T(drafted in the step). Without
measured step times T(n) = 1 + price n, in decode steps: the rate is then the speed-up over plain
decoding, and with a price of 0 it is block efficiency.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from proposers.batch import Doubles, Drafter
from proposers.replay.drafters import DRAFTERS, make_drafter
from proposers.replay.profiling import Order, Share, most_tokens, profile
from proposers.replay.scoring import RULES, score
from theory.trace_prompts import select_prompts
from theory.traces import Trace

TOKEN_PRICE = 0.065
"""T(n) = 31 ms + 2 ms a drafted token, measured with SmolLM2-135M on 2 cores of a CPU."""
QUARTERS = (1, 2, 4)
"""Where trials are compared, in quarters of the training prompts."""

State = Literal["complete", "pruned", "unfinished"]


@dataclass(frozen=True, slots=True)
class Workload:
    """What is replayed and how it is priced; the same for every trial.

    ``step_times[n]`` is the time of a step with n drafted tokens, n = 0..longest at least.
    """

    trace: Trace
    rule: str
    longest: int
    step_times: NDArray[np.float64]
    share: Share = "all"
    order: Order = "sequential"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no trial could be scored with."""
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}; got {self.rule!r}")
        if self.step_times.shape[0] <= self.longest:
            raise ValueError(
                f"the step times end at {self.step_times.shape[0] - 1} drafted tokens, but up to "
                f"{self.longest} can be drafted in a step: measure longer steps, or draft less"
            )


@dataclass(frozen=True)
class Trial:
    """One choice of options: its rate on the training prompts with the best K, 1..longest.

    ``number`` counts from 0; ``seconds`` is when it ended, since the search began. The rate of a
    trial that was not completed is that of the part it saw.
    """

    number: int
    options: Mapping[str, Any]
    draft_length: int
    rate: float
    state: State
    seconds: float


@dataclass
class Search:
    """The trials in the order in which they ended."""

    trials: list[Trial] = field(default_factory=list)
    interrupted: bool = False

    @property
    def best(self) -> Trial:
        """The completed trial of the highest rate, the earliest of equals.

        Raises ValueError when none was completed.
        """
        done = [trial for trial in self.trials if trial.state == "complete"]
        if not done:
            raise ValueError("no trial was completed")
        return max(done, key=lambda trial: trial.rate)


def linear_times(price: float, longest: int) -> Doubles:
    """T(n) = 1 + price n for n = 0..longest, in decode steps."""
    return 1.0 + price * np.arange(longest + 1, dtype=np.float64)


def suggest(trial: Any, temperature: float) -> dict[str, Any]:
    """Options of a trial, on grids fine enough to matter and coarse enough to be read.

    At T >= 1 emitted tokens weigh nothing, whatever ``emitted_weight`` (StandTable), and it is not
    searched.
    """
    options: dict[str, Any] = {
        "order": trial.suggest_int("order", 1, 8),
        "entries": trial.suggest_categorical("entries", [4, 6, 10, 16, 32]),
        "decay": round(trial.suggest_float("decay", 0.1, 1.0, step=0.05), 2),
        "count_cap": trial.suggest_categorical("count_cap", [None, 1.0, 3.0, 10.0, 30.0]),
        "prompt_visits": trial.suggest_categorical("prompt_visits", [True, False]),
        "min_survival": round(trial.suggest_float("min_survival", 0.0, 0.4, step=0.01), 2),
        "interpolation": round(trial.suggest_float("interpolation", 0.0, 8.0, step=0.2), 1),
    }
    if temperature < 1:
        weight = trial.suggest_float("emitted_weight", 0.0, 4.0, step=0.1)
        options["emitted_weight"] = round(weight, 1)
    return options


def first_guesses(temperature: float) -> list[dict[str, Any]]:
    """What is tried first: the defaults, and the hand-made setting that a search has to beat."""
    names = ("order", "entries", "decay", "count_cap", "prompt_visits", "min_survival",
             "interpolation", "emitted_weight")  # fmt: skip
    defaults = {name: DRAFTERS["stand"].defaults[name] for name in names}
    by_hand = defaults | {
        "order": 6,
        "decay": 0.7,
        "min_survival": 0.0,
        "interpolation": 0.0,
        "emitted_weight": min(4.0, round(0.5 / (1 - temperature), 1)) if temperature < 1 else 0.0,
    }
    if temperature >= 1:
        del defaults["emitted_weight"], by_hand["emitted_weight"]
    return [defaults, by_hand]


def search(
    work: Workload,
    *,
    seconds: float | None = None,
    trials: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    told: Callable[[Trial], None] = lambda trial: None,
) -> Search:
    """Try options until the time or the number of trials is spent; ``told`` hears of each.

    The first trial, the defaults, is always completed; a later one that time runs out for is given
    up behind its stretch. With a number of trials only, the outcome depends on the seed alone.
    Ctrl-C ends the search and keeps what was found.

    Raises
    ------
    ValueError
        Without any limit, and with one that is not above 0.
    """
    if seconds is None and trials is None:
        raise ValueError("a search needs a limit: seconds or trials")
    for name, limit in (("seconds", seconds), ("trials", trials)):
        if limit is not None and limit <= 0:
            raise ValueError(f"{name} must be above 0; got {limit}")
    begin, found = clock(), Search()
    study, temperature = _study(work.seed), work.trace.sampling.temperature
    for guess in first_guesses(temperature):
        study.enqueue_trial(guess)
    stretches = _stretches(work.trace)
    known: dict[tuple[tuple[str, Any], ...], Trial] = {}
    try:
        while trials is None or len(found.trials) < trials:
            first = not found.trials
            if not first and seconds is not None and clock() - begin >= seconds:
                break
            asked = study.ask()
            options = suggest(asked, temperature)
            key = tuple(sorted(options.items()))
            if key in known:  # the same choice again: nothing new to replay
                old = known[key]
                draft_length, rate, state = old.draft_length, old.rate, old.state
                asked.report(rate, QUARTERS[-1])
            else:

                def late(first: bool = first) -> bool:
                    return not first and seconds is not None and clock() - begin >= seconds

                draft_length, rate, state = _run(work, options, stretches, asked, late)
            trial = Trial(asked.number, options, draft_length, rate, state, clock() - begin)
            known.setdefault(key, trial)
            found.trials.append(trial)
            _tell(study, asked, rate, state)
            told(trial)
    except KeyboardInterrupt:
        found.interrupted = True
    return found


def _study(seed: int) -> Any:
    """An optuna study in memory. Imported here: it takes a second, and only a search needs it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)


def _tell(study: Any, asked: Any, rate: float, state: State) -> None:
    from optuna.trial import TrialState

    if state == "complete":
        study.tell(asked, rate)
    else:
        study.tell(asked, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)


def _stretches(trace: Trace) -> list[tuple[int, Trace]]:
    """(quarters done behind it, its prompts); few prompts make fewer stretches."""
    found, begin = [], 0
    for quarters in QUARTERS:
        end = trace.prompts * quarters // QUARTERS[-1]
        if end > begin:
            found.append((quarters, select_prompts(trace, np.arange(begin, end))))
            begin = end
    return found


def _run(
    work: Workload,
    options: Mapping[str, Any],
    stretches: list[tuple[int, Trace]],
    asked: Any,
    late: Callable[[], bool],
) -> tuple[int, float, State]:
    """(best K, its rate, how it ended) of a trial."""
    make = lasting(
        make_drafter(
            "stand", options, draft_length=work.longest, seed=work.seed,
            tokens=most_tokens(work.trace, work.share),
        ),
        work.share,
    )  # fmt: skip
    tokens, seconds = 0, np.zeros(work.longest)
    draft_length, rate = 1, 0.0
    for quarters, part in stretches:
        made, taken = rates(work, part, make)
        tokens, seconds = tokens + made, seconds + taken
        draft_length = int(seconds.argmin()) + 1
        rate = float(tokens / seconds.min()) if seconds.min() > 0 else 0.0
        asked.report(rate, quarters)
        if quarters < QUARTERS[-1]:
            if asked.should_prune():
                return draft_length, rate, "pruned"
            if late():
                return draft_length, rate, "unfinished"
    return draft_length, rate, "complete"


def lasting(make: Callable[[], Drafter], share: Share) -> Callable[[], Drafter]:
    """Where all share one table, the same drafter for every stretch: it goes on where it stopped.

    The replays of the stretches are then together the replay of the whole. Only for a drafter that
    keeps nothing for a request, such as STAND: each stretch counts its handles from 0.
    """
    if share != "all":
        return make
    drafter = make()
    return lambda: drafter


def rates(work: Workload, part: Trace, make: Callable[[], Drafter]) -> tuple[int, Doubles]:
    """Tokens of decode steps, and the expected time of these steps for each K = 1..longest."""
    offered = profile(part, make, draft_length=work.longest, share=work.share, order=work.order)
    seconds = np.zeros(work.longest)
    tokens = 0
    for k in range(1, work.longest + 1):
        scored = score(offered, part, rule=work.rule, draft_length=k, step_times=work.step_times)
        assert scored.seconds is not None
        seconds[k - 1], tokens = scored.seconds.sum(), int(scored.tokens.sum())
    return tokens, seconds
