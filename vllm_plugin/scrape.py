"""What a vLLM server's own counters say about a stretch of work.

Block efficiency here is **tokens delivered per decode step of a request**: of every target forward
in which a request stood after its prefill, how many tokens did that request get. Three sources
look right and are not:

- ``1 + accepted / drafts`` skips the steps in which nothing was drafted, so a drafter that speaks
  only when it is sure looks better than it is.
- Counting streamed chunks fails when the client or the API server falls behind: vLLM then merges
  the outputs of several steps into one chunk (``RequestOutputCollector.put``).
- ``vllm:iteration_tokens_total`` counts engine steps, which several requests share.

``vllm:inter_token_latency_seconds`` is observed once for each request and each engine step that
brought it tokens, except its first (the prefill), which goes to
``vllm:time_to_first_token_seconds`` instead. Its *count* is therefore exactly the number of decode
steps, with drafts or without, at any concurrency. A prefill delivers one token, so

    block efficiency = (generation tokens - first tokens) / decode steps.

Without speculation this is 1. ``vllm:generation_tokens`` counts after the cut at a stop token or
at ``max_tokens``, while ``vllm:spec_decode_num_accepted_tokens`` counts before it; so with short
answers ``1 + accepted / decode steps`` is a little larger. What the user got is reported.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

_SAMPLES = {
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:time_to_first_token_seconds_count": "first_tokens",
    "vllm:inter_token_latency_seconds_count": "decode_steps",
    "vllm:iteration_tokens_total_count": "engine_steps",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:spec_decode_num_drafts_total": "drafts",
    "vllm:spec_decode_num_draft_tokens_total": "draft_tokens",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted_tokens",
}
_PER_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
_NEEDED = ("vllm:generation_tokens_total", "vllm:inter_token_latency_seconds_count")


class ScrapeError(RuntimeError):
    """A metrics page that does not hold what is needed, named in one sentence."""


@dataclass(frozen=True)
class Counters:
    """vLLM's counters at one moment, or, after subtraction, between two; summed over engines."""

    generation_tokens: int = 0
    prompt_tokens: int = 0
    first_tokens: int = 0
    decode_steps: int = 0
    engine_steps: int = 0
    preemptions: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_position: tuple[int, ...] = ()

    def __sub__(self, earlier: Self) -> "Counters":
        return self._combined(earlier, -1)

    def __add__(self, other: Self) -> "Counters":
        return self._combined(other, 1)

    def _combined(self, other: Self, sign: int) -> "Counters":
        sums: dict[str, int] = {
            one.name: getattr(self, one.name) + sign * getattr(other, one.name)
            for one in fields(self)
            if one.name != "accepted_per_position"
        }
        length = max(len(self.accepted_per_position), len(other.accepted_per_position))
        mine, theirs = (
            (*given.accepted_per_position, *(0,) * (length - len(given.accepted_per_position)))
            for given in (self, other)
        )
        positions = tuple(a + sign * b for a, b in zip(mine, theirs, strict=True))
        return Counters(**sums, accepted_per_position=positions)

    @property
    def block_efficiency(self) -> float | None:
        """Tokens delivered per decode step of a request; None when there was no decode step."""
        if not self.decode_steps:
            return None
        return (self.generation_tokens - self.first_tokens) / self.decode_steps

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted over drafted tokens; None when nothing was drafted."""
        return self.accepted_tokens / self.draft_tokens if self.draft_tokens else None

    @property
    def acceptance_by_position(self) -> tuple[float, ...]:
        """Share of the drafts whose token at each position was accepted.

        The denominator is all drafts, short ones too, so it mixes length and acceptance.
        """
        if not self.drafts:
            return ()
        return tuple(count / self.drafts for count in self.accepted_per_position)


def parse(text: str) -> Counters:
    """The counters on a page in Prometheus's text format.

    Raises
    ------
    ScrapeError
        When the page lacks the counters that every vLLM server has.
    """
    found: dict[str, float] = {}
    positions: dict[int, float] = {}
    seen: set[str] = set()
    for name, labels, value in _samples(text):
        seen.add(name)
        if name == _PER_POSITION:
            place = int(labels["position"])
            positions[place] = positions.get(place, 0.0) + value
        elif name in _SAMPLES:
            key = _SAMPLES[name]
            found[key] = found.get(key, 0.0) + value
    missing = [name for name in _NEEDED if name not in seen]
    if missing:
        raise ScrapeError(
            f"the metrics page lacks {' and '.join(missing)}; is this a vLLM server, "
            "started without --disable-log-stats?"
        )
    row = tuple(round(positions.get(place, 0.0)) for place in range(max(positions, default=-1) + 1))
    whole = {key: round(value) for key, value in found.items()}
    return Counters(**whole, accepted_per_position=row)


def _samples(text: str) -> Iterable[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def scrape(url: str) -> Counters:
    """The counters of the server at ``url`` (scheme, host and port) now."""
    with httpx.Client(timeout=10.0, trust_env=False) as client:
        answer = client.get(url + "/metrics")
        answer.raise_for_status()
    return parse(answer.text)
