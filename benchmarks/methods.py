"""What each method of ``serving.py`` asks of vLLM, and how the rivals get their best settings."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_plugin.config import SECTION
from vllm_plugin.server import plugin_speculation

OURS = {
    "stand": "vllm_plugin.Stand",
    "fixed": "vllm_plugin.Stand",
    "chooser": "vllm_plugin.Chooser",
    "prompt_lookup": "vllm_plugin.PromptLookup",
    "token_recycling": "vllm_plugin.TokenRecycling",
    "aded": "vllm_plugin.Aded",
}
# What a name means beside its drafter: "fixed" drafts K tokens always, "stand" as many as pay.
OWN_OPTIONS = {"fixed": {"length": "fixed"}}
METHODS = ("none", "ngram", "suffix", *OURS)
SUFFIX_TUNED = {"suffix_decoding_max_spec_factor": 4.0, "suffix_decoding_min_token_prob": 0.0}


class MethodError(ValueError):
    """A method that is unknown or cannot run here, in one sentence."""


@dataclass(frozen=True)
class Method:
    """A name and the two JSON objects that vLLM is started with; None leaves the option out."""

    name: str
    speculative_config: Mapping[str, Any] | None
    additional_config: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The exact settings, for the provenance."""
        return {
            "speculative_config": self.speculative_config,
            "additional_config": self.additional_config,
        }


def ngram_config(shortest: int, longest: int, tokens: int) -> dict[str, Any]:
    """vLLM's prompt look-up: match the last ``shortest``..``longest`` tokens, draft ``tokens``."""
    return {
        "method": "ngram",
        "prompt_lookup_min": shortest,
        "prompt_lookup_max": longest,
        "num_speculative_tokens": tokens,
    }


def check(names: list[str]) -> None:
    """Refuse unknown, repeated or impossible methods.

    Raises
    ------
    MethodError
        One sentence with the names that are allowed.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        given = ", ".join(unknown) or "nothing"
        raise MethodError(f"--methods: {given} is not a method; choose from {', '.join(METHODS)}.")
    if len(set(names)) < len(names):
        raise MethodError("--methods: each method can be named once; use --rounds to repeat them.")
    if "suffix" in names and importlib.util.find_spec("arctic_inference") is None:
        raise MethodError(
            "--methods: suffix needs the package arctic-inference, which is not installed; "
            "install it into this environment or leave suffix out."
        )


def plan(
    names: list[str],
    tokens: int,
    *,
    additional: Mapping[str, Any] | None,
    ngram: Mapping[str, Any] | None,
    suffix: Mapping[str, Any] | None,
) -> list[Method]:
    """The methods in order; ``ngram`` is its calibrated or given config, ``suffix`` overrides."""
    made: dict[str, Callable[[], Method]] = {
        "none": lambda: Method("none", None),
        "ngram": lambda: Method("ngram", ngram),
        "suffix": lambda: Method(
            "suffix",
            {
                "method": "suffix",
                "num_speculative_tokens": tokens,
                **SUFFIX_TUNED,
                **(suffix or {}),
            },
        ),
    }
    return [
        made[name]()
        if name in made
        else Method(name, plugin_speculation(tokens, OURS[name]), _options(name, additional))
        for name in names
    ]


def _options(name: str, additional: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """``additional`` with the options that the name of one of our methods stands for."""
    if name not in OWN_OPTIONS:
        return additional
    given = dict(additional or {})
    return {**given, SECTION: {**given.get(SECTION, {}), **OWN_OPTIONS[name]}}


def calibrate_ngram(
    tokens: int, speed: Callable[[Mapping[str, Any]], float]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The fastest ngram setting of a small grid, and every trial.

    First the match lengths at ``tokens`` drafted, then the draft length at the best of them:
    each trial costs a server start, and the two hardly interact.

    Parameters
    ----------
    tokens : the draft length that the other methods use.
    speed : config -> tokens per second on questions that the benchmark itself does not ask.
    """
    trials: list[dict[str, Any]] = []

    def run(config: dict[str, Any]) -> None:
        trials.append({"config": config, "tokens_per_second": speed(config)})

    def best() -> dict[str, Any]:
        config: dict[str, Any] = max(trials, key=lambda one: one["tokens_per_second"])["config"]
        return config

    for shortest, longest in ((1, 3), (1, 4), (2, 3), (2, 4)):
        run(ngram_config(shortest, longest, tokens))
    lengths = best()
    for fewer in _other_lengths(tokens):
        run({**lengths, "num_speculative_tokens": fewer})
    return best(), trials


def _other_lengths(tokens: int) -> Iterator[int]:
    for length in (2, 4):
        if length < tokens:
            yield length
