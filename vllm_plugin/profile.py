"""Step times of an engine at several numbers of requests and of tokens: `specproof profile`.

The server drafts by script (:mod:`vllm_plugin.profile_engine`), so that every length occurs equally
often at every number of requests, whatever would be accepted. Only steps in which all requests
decode are kept.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import numpy as np

from proposers.length.step_times import StepTimes
from proposers.length.step_times_file import KNOTS
from vllm_plugin.config import MAX_DRAFT_LENGTH
from vllm_plugin.server import ServerOptions, ServerProcess, plugin_speculation, serve_command

if TYPE_CHECKING:
    from rich.console import Console

FILE = "SPECPROOF_PROFILE_FILE"
LENGTHS = "SPECPROOF_PROFILE_LENGTHS"
"""Where :mod:`vllm_plugin.profile_engine` writes, and the lengths that it drafts."""
DRAFTER = "vllm_plugin.profile_engine.Scripted"
MOST_REQUESTS = 256
_TIMEOUT = httpx.Timeout(30.0, read=600.0)
_WARM_UP = 12  # steps that are thrown away at each number of requests
_NO_FORGETTING = 1e9
_PASSES = 4


class ProfileError(RuntimeError):
    """A profile that cannot be made, in one sentence."""


@dataclass(frozen=True, slots=True)
class Step:
    """One decoding step: tokens in its forward, requests, and seconds."""

    tokens: int
    requests: int
    seconds: float


class Recording(NamedTuple):
    """What an engine computes with, in one line, and its decoding steps in order."""

    hardware: str
    steps: list[Step]


@dataclass(frozen=True, slots=True)
class Point:
    """Steps of one kind: how many, and the median, the tenth and the ninetieth percentile."""

    requests: int
    tokens: int
    steps: int
    seconds: float
    low: float
    high: float


@dataclass(frozen=True)
class Plan:
    """What is measured: ``rounds`` steps of every length at every number of requests.

    Raises
    ------
    ProfileError
        One sentence, for numbers that no engine of ours would serve.
    """

    requests: tuple[int, ...]
    draft_length: int
    rounds: int
    context: int
    temperature: float

    def __post_init__(self) -> None:
        wrong = [r for r in self.requests if not 1 <= r <= MOST_REQUESTS]
        if wrong or not self.requests:
            raise ProfileError(
                f"--requests must be numbers from 1 to {MOST_REQUESTS}, such as 1,4; "
                f"got {wrong[0] if wrong else 'none'}"
            )
        if not 1 <= self.draft_length <= MAX_DRAFT_LENGTH:
            raise ProfileError(
                f"--draft-length is {self.draft_length}; it must lie in 1..{MAX_DRAFT_LENGTH}"
            )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Drafts of a request in a step: none, the most, and those that make a knot of tokens."""
        most = self.draft_length
        return tuple(sorted({int(n) - 1 for n in KNOTS if n <= most} | {most}))

    @property
    def steps(self) -> int:
        """Steps at each number of requests."""
        return self.rounds * len(self.lengths)

    @property
    def longest_text(self) -> int:
        """Tokens that a request grows to, with room for the drafts of its last step."""
        return self.context + self.steps + self.draft_length + 1


def measure(
    model: Path, plan: Plan, *, dtype: str, console: Console, told: Callable[[int], None]
) -> Recording:
    """What a server that is started for it does; ``told`` is given each number of requests.

    Raises
    ------
    ServerError
        When the server does not start.
    ProfileError
        When it breaks off, or times no steps.
    """
    with tempfile.TemporaryDirectory(prefix="specproof-profile-") as folder:
        file = Path(folder, "steps.csv")
        file.touch()
        hardware, steps = "", []
        with _server(model, plan, dtype, file, console) as server:
            for requests in plan.requests:
                told(requests)
                _ask(server, plan, requests, _WARM_UP)
                before = len(read(file).steps)
                _ask(server, plan, requests, plan.steps)
                hardware, recorded = read(file)
                steps += recorded[before:]
    if not steps:
        raise ProfileError("the server timed no decode step; give more --rounds")
    return Recording(hardware, steps)


def _server(model: Path, plan: Plan, dtype: str, file: Path, console: Console) -> ServerProcess:
    options = ServerOptions(
        model=str(model),
        speculative_config=plugin_speculation(plan.draft_length, DRAFTER),
        max_model_len=plan.longest_text,
        max_num_seqs=max(plan.requests),
        dtype=dtype,
    )
    return ServerProcess(
        lambda port: [*serve_command(options.model), *options.arguments(port)],
        environment=options.environment(os.environ)
        | {FILE: str(file), LENGTHS: json.dumps(plan.lengths)},
        name="vllm serve",
        console=console,
    )


def _ask(server: ServerProcess, plan: Plan, requests: int, tokens: int) -> None:
    """Let so many requests, each of a text of its own, decode together."""
    rng = np.random.default_rng(requests)
    body = {
        "model": "model",
        "prompt": rng.integers(3, 60, (requests, plan.context)).tolist(),
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": plan.temperature,
    }
    try:
        with httpx.Client(timeout=_TIMEOUT, trust_env=False) as client:
            answer = client.post(f"{server.url}/v1/completions", json=body)
    except httpx.HTTPError as error:
        raise ProfileError(
            f"the server broke off at {requests} requests ({error}); its log ends:\n"
            f"{server.log_tail()}"
        ) from None
    if answer.status_code != httpx.codes.OK:
        raise ProfileError(
            f"the server answered {requests} requests with {answer.status_code}: "
            f"{answer.text[:300]}"
        )


def read(file: Path) -> Recording:
    """The decoding steps in a file that the engine writes; a line that is not whole is left."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines(True) if "\n" in line]
    steps = []
    for line in lines[1:]:
        tokens, requests, decoding, seconds = line.split(",")
        if int(decoding):
            steps.append(Step(int(tokens), int(requests), float(seconds)))
    return Recording(lines[0].strip() if lines else "", steps)


def fitted(steps: Sequence[Step], seed: int = 0) -> StepTimes:
    """T(n) from all steps, in random order, so that none counts for being late.

    They are gone through several times: what a first one trusts depends on a curve that is a guess.
    """
    times, rng = StepTimes(memory=_NO_FORGETTING), np.random.default_rng(seed)
    for _ in range(_PASSES):
        for i in rng.permutation(len(steps)):
            times.observe(steps[i].tokens, steps[i].seconds)
    return times


def points(steps: Sequence[Step], plan: Plan) -> list[Point]:
    """What was measured at each number of requests and of tokens, where it is half of a round's.

    Steps of several lengths happen when a request nears its end; they are fitted, but not shown.
    """
    times: dict[tuple[int, int], list[float]] = {}
    for step in steps:
        times.setdefault((step.requests, step.tokens), []).append(step.seconds)
    return [
        Point(requests, tokens, len(held), *np.quantile(held, (0.5, 0.1, 0.9)).tolist())
        for (requests, tokens), held in sorted(times.items())
        if requests in plan.requests and 2 * len(held) >= plan.rounds
    ]
