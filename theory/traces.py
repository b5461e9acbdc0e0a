"""Recorded trajectories: what a model emitted, and the law that each token was drawn from.

A trajectory is one answer to one prompt. At every emitted position the trace keeps the head of the
target's law at temperature 1 (what a table of laws would have learned there), from which the
target's processed law p, after temperature, top-k and top-p, follows by :func:`processed_heads`.
That is all an exact replay needs: given the trajectory, P(a draft y is accepted) depends on p(y)
and q(y) alone. The file is described in docs/traces.md; :mod:`theory.trace_file` reads and writes
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints32 = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats32 = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """The parameters that turned a law into p: vLLM's temperature, top_k (0: off) and top_p."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Trace:
    """A prompts, B answers, N emitted tokens, E entries of each law's head, over V tokens.

    Answers stand in the order in which they were given; answer b belongs to prompt
    ``answer_prompts[b]`` and emitted ``tokens[answer_begins[b]:answer_begins[b + 1]]``. Row i of
    the laws is the law that ``tokens[i]`` was drawn from, given the prompt and the answer so far,
    at temperature 1, before top-k and top-p: ``log_masses[i, e]`` of token ``ids[i, e]``, most
    probable first, padded with id -1 and -inf; ``emitted_log_masses[i]`` is that of ``tokens[i]``
    itself, whether it stands in the head or not.

    Shapes: prompt_tokens (P,) int32; prompt_begins (A + 1,) int64; categories, questions (A,)
    strings; answer_prompts (B,) int64; answer_begins (B + 1,) int64; tokens (N,) int32; ids (N, E)
    int32; log_masses (N, E) float32; emitted_log_masses (N,) float32.
    """

    vocabulary: int
    sampling: Sampling
    max_tokens: int
    prompt_tokens: Ints32
    prompt_begins: Longs
    categories: NDArray[np.str_]
    questions: NDArray[np.str_]
    answer_prompts: Longs
    answer_begins: Longs
    tokens: Ints32
    ids: Ints32
    log_masses: Floats32
    emitted_log_masses: Floats32
    tokenizer: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Emitted tokens."""
        return int(self.tokens.shape[0])

    @property
    def answers(self) -> int:
        """Number of trajectories."""
        return int(self.answer_prompts.shape[0])

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return int(self.prompt_begins.shape[0]) - 1

    def prompt(self, index: int) -> Ints32:
        """The tokens of a prompt."""
        return self.prompt_tokens[self.prompt_begins[index] : self.prompt_begins[index + 1]]

    def answer(self, index: int) -> slice:
        """The rows of an answer."""
        return slice(int(self.answer_begins[index]), int(self.answer_begins[index + 1]))

    @classmethod
    def joined(cls, parts: Sequence[Trace], provenance: dict[str, Any] | None = None) -> Trace:
        """The answers of several traces, one after another, each with its own prompts.

        Raises ValueError for no part, and for parts of another vocabulary, tokenizer, sampling,
        max_tokens or head size.
        """
        if not parts:
            raise ValueError("nothing to join")
        settings = {
            (one.vocabulary, one.tokenizer, one.sampling, one.max_tokens, one.ids.shape[1])
            for one in parts
        }
        if len(settings) > 1:
            raise ValueError("only traces of one vocabulary, tokenizer and sampling can be joined")

        def all_of(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(one, name) for one in parts])

        def behind(name: str, sizes: list[int], lead: list[int]) -> NDArray[Any]:
            starts = np.cumsum([0, *sizes])[:-1]
            moved = [
                getattr(one, name)[len(lead) :] + start
                for one, start in zip(parts, starts, strict=True)
            ]
            return np.concatenate([np.array(lead, np.int64), *moved])

        first = parts[0]
        return cls(
            vocabulary=first.vocabulary,
            sampling=first.sampling,
            max_tokens=first.max_tokens,
            prompt_tokens=all_of("prompt_tokens"),
            prompt_begins=behind("prompt_begins", [len(p.prompt_tokens) for p in parts], [0]),
            categories=all_of("categories"),
            questions=all_of("questions"),
            answer_prompts=behind("answer_prompts", [p.prompts for p in parts], []),
            answer_begins=behind("answer_begins", [len(p) for p in parts], [0]),
            tokens=all_of("tokens"),
            ids=all_of("ids"),
            log_masses=all_of("log_masses"),
            emitted_log_masses=all_of("emitted_log_masses"),
            tokenizer=first.tokenizer,
            provenance={} if provenance is None else provenance,
        )

    @cached_property
    def processed(self) -> ProcessedHeads:
        """p at every position: see :func:`processed_heads`."""
        return processed_heads(
            self.ids, self.log_masses, self.emitted_log_masses, self.sampling, self.vocabulary
        )


@dataclass(frozen=True, slots=True)
class ProcessedHeads:
    """The target's processed law p at every position, known by its head.

    ``masses[i, e]`` is p of token ``ids[i, e]`` (of the trace), ``kept[i]`` their sum,
    ``emitted[i]`` p of the token that was emitted, ``slack[i]`` how far any of them can be off
    because the tail of the law is known by its mass only (relative).

    Shapes: masses (N, E) float64; kept, emitted, slack (N,) float64.
    """

    masses: Doubles
    kept: Doubles
    emitted: Doubles
    slack: Doubles


def processed_heads(
    ids: Ints32,
    log_masses: Floats32,
    emitted_log_masses: Floats32,
    sampling: Sampling,
    vocabulary: int,
) -> ProcessedHeads:
    """p from heads of laws at temperature 1.

    p(x) = w(x) / Z on the tokens that top-k and top-p leave, w(x) = exp(log_mass(x) / T), and Z
    their sum. Without a cut Z includes the tail: of R = V - E tokens of total mass m, none more
    probable than the head's last, its weight lies between R (m/R)^(1/T) and m w_E / mass_E (in the
    other order for T > 1), and the middle is taken. Top-p keeps the smallest most probable set
    whose mass reaches top_p. At T = 0, p is the point mass on the most probable token.

    Shapes as in :class:`Trace`. Raises ValueError for a temperature below 0 or not finite.
    """
    temperature = sampling.temperature
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature must be 0 or more; got {temperature}")
    count, entries = ids.shape
    logs = np.where(ids >= 0, log_masses.astype(np.float64), -np.inf)
    if temperature == 0:
        masses = np.zeros((count, entries))
        masses[:, 0] = 1.0
        ones = np.ones(count)
        return ProcessedHeads(masses, ones, ones.copy(), np.zeros(count))
    top = logs[:, :1]
    weights = np.exp((logs - top) / temperature)
    head = weights.sum(axis=1)
    low, high = _tails(logs, top[:, 0], temperature, vocabulary)
    if sampling.top_k:
        weights[:, sampling.top_k :] = 0
        if sampling.top_k <= entries:
            low, high = np.zeros(count), np.zeros(count)
        head = weights.sum(axis=1)
    tail = (low + high) / 2
    slack = (high - low) / (2 * (head + tail))
    total = head + tail
    if sampling.top_p < 1:
        reached = np.cumsum(weights, axis=1) - weights < sampling.top_p * total[:, None]
        inside = ~reached.all(axis=1)  # the cut lies within the head
        weights = np.where(reached, weights, 0.0)
        total = np.where(inside, weights.sum(axis=1), total)
    masses = weights / total[:, None]
    own = np.exp((emitted_log_masses.astype(np.float64) - top[:, 0]) / temperature) / total
    return ProcessedHeads(masses, masses.sum(axis=1), np.minimum(own, 1.0), slack)


def _tails(
    logs: Doubles, top: Doubles, temperature: float, vocabulary: int
) -> tuple[Doubles, Doubles]:
    """Bounds on the tail's weight relative to the most probable token's."""
    known = (logs > -np.inf).sum(axis=1)
    rest = np.maximum(vocabulary - known, 0)
    missing = np.clip(1.0 - np.exp(logs).sum(axis=1), 0.0, 1.0)
    missing = np.where((rest == 0) | (missing < 1e-6), 0.0, missing)
    last = np.take_along_axis(logs, np.maximum(known - 1, 0)[:, None], axis=1)[:, 0]
    power = 1 / temperature
    capped = missing * np.exp((power - 1) * last - power * top)
    share = missing / np.maximum(rest, 1)
    spread = np.where(missing > 0, rest * share**power * np.exp(-power * top), 0.0)
    return np.minimum(capped, spread), np.maximum(capped, spread)
