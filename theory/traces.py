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

from theory.refused import RefusedRows

Ints32 = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats32 = NDArray[np.float32]
Doubles = NDArray[np.float64]

_ROUNDING = 4e-6  # of the sum of an engine's float32 probabilities


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
    itself, whether it stands in the head or not. ``tail_log_weights`` are :func:`tail_log_weights`
    of more entries than are kept, where the engine gave more; ``refused`` are the rows behind
    refused drafts, where the recorder saw them.

    Shapes: prompt_tokens (P,) int32; prompt_begins (A + 1,) int64; categories, questions (A,)
    strings; answer_prompts (B,) int64; answer_begins (B + 1,) int64; tokens (N,) int32; ids (N, E)
    int32; log_masses (N, E) float32; emitted_log_masses (N,) float32; tail_log_weights (N, 2)
    float32 or None.
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
    tail_log_weights: Floats32 | None = None
    refused: RefusedRows | None = None
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
            (
                *(one.vocabulary, one.tokenizer, one.sampling, one.max_tokens),
                *(one.ids.shape[1], one.tail_log_weights is None, one.refused is None),
            )
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
            tail_log_weights=None if first.tail_log_weights is None else all_of("tail_log_weights"),
            refused=None if first.refused is None else _refused(parts),
            tokenizer=first.tokenizer,
            provenance={} if provenance is None else provenance,
        )

    @cached_property
    def processed(self) -> ProcessedHeads:
        """p at every position: see :func:`processed_heads`.

        At T = 0, p is the point mass on the token that was emitted. It is one of the most probable,
        but not always the first of the head: in bfloat16 one token in a hundred has an equal.
        """
        if self.sampling.temperature == 0:
            masses = (self.ids == self.tokens[:, None]).astype(np.float64)
            ones = np.ones(len(self))
            return ProcessedHeads(masses, masses.sum(axis=1), ones, np.zeros(len(self)))
        return processed_heads(
            self.log_masses,
            self.emitted_log_masses,
            self.sampling,
            self.vocabulary,
            self.tail_log_weights,
        )


def _refused(parts: Sequence[Trace]) -> RefusedRows:
    begins = np.cumsum([0, *(len(one) for one in parts)])[:-1]
    return RefusedRows.joined(
        [
            (one.refused, int(begin))
            for one, begin in zip(parts, begins, strict=True)
            if one.refused is not None
        ]
    )


@dataclass(frozen=True, slots=True)
class ProcessedHeads:
    """The target's processed law p at every position, known by its head.

    ``masses[i, e]`` is p of token ``ids[i, e]`` (of the trace), ``kept[i]`` their sum,
    ``emitted[i]`` p of the token that was emitted, ``slack[i]`` by which factor beyond 1 any of
    them can be off because the tail of the law is known by its mass only; a token right at the edge
    of top-p can fall on the wrong side of it.

    Shapes: masses (N, E) float64; kept, emitted, slack (N,) float64.
    """

    masses: Doubles
    kept: Doubles
    emitted: Doubles
    slack: Doubles


def processed_heads(
    log_masses: Floats32,
    emitted_log_masses: Floats32,
    sampling: Sampling,
    vocabulary: int,
    tails: Floats32 | None = None,
) -> ProcessedHeads:
    """p from heads of laws at temperature 1.

    p(x) = w(x) / Z on the tokens that top-k and top-p leave, w(x) = exp(log_mass(x) / T), and Z
    their sum, which includes the tail: of :func:`tail_log_weights`, given or those of the head
    itself, the middle is taken, arithmetic up to T = 1 and geometric above (what was closest to
    whole laws of a real model, docs/traces.md). Top-p keeps the smallest most probable set whose
    mass reaches top_p.

    Shapes as in :class:`Trace`. Raises ValueError for a temperature that is not above 0 or not
    finite: at 0, p is not a matter of heads, see :attr:`Trace.processed`.
    """
    temperature = sampling.temperature
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be above 0; got {temperature}")
    logs = log_masses.astype(np.float64)
    if tails is None:
        tails = tail_log_weights(logs, logs.shape[1], sampling, vocabulary)
    top = logs[:, :1]
    weights = np.exp((logs - top) / temperature)
    if sampling.top_k:
        weights[:, sampling.top_k :] = 0
    low, high = np.exp(tails.astype(np.float64) - top / temperature).T
    tail = (low + high) / 2 if temperature <= 1 else np.sqrt(low * high)
    head = weights.sum(axis=1)
    total = head + tail
    slack = np.maximum(high - tail, tail - low) / total
    if sampling.top_p < 1:
        reached = np.cumsum(weights, axis=1) - weights < sampling.top_p * total[:, None]
        inside = ~reached.all(axis=1)  # the cut lies within the head, or else somewhere behind it
        weights = np.where(reached, weights, 0.0)
        behind = np.maximum(sampling.top_p * total, head)
        total = np.where(inside, weights.sum(axis=1), behind)
        slack = np.where(inside, 0.0, slack + 1 - sampling.top_p)
    masses = weights / total[:, None]
    own = np.exp((emitted_log_masses.astype(np.float64) - top[:, 0]) / temperature) / total
    return ProcessedHeads(masses, masses.sum(axis=1), np.minimum(own, 1.0), slack)


def tail_log_weights(logs: Doubles, kept: int, sampling: Sampling, vocabulary: int) -> Floats32:
    """Bounds on log sum w(x) of the tokens behind the ``kept`` most probable, (N, 2) float32.

    ``logs`` (N, H) are the H >= kept most probable log masses at temperature 1, sorted, padded with
    -inf. What stands in them is summed. Of the R = V - H tokens behind, whose mass is m and none of
    which is more probable than the last one known, of mass l, the weight lies between R (m/R)^(1/T)
    and m l^(1/T - 1), in the other order for T > 1; where top-k leaves R' of them, it is at least
    R'/R of the lower bound and at most R' l^(1/T). At T = 0 there is no tail.
    """
    count, held = logs.shape
    if sampling.temperature == 0:
        return np.full((count, 2), -np.inf, np.float32)
    power, top_k = 1 / sampling.temperature, sampling.top_k or vocabulary
    with np.errstate(divide="ignore"):
        known = np.exp(power * (logs[:, kept:top_k] - logs[:, :1])).sum(axis=1)
        low, high = _behind(logs, power, vocabulary)
        behind = max(vocabulary - held, 0)
        if top_k <= held or behind == 0:
            low, high = np.zeros(count), np.zeros(count)
        elif top_k - held < behind:
            last = np.exp(power * (logs[:, -1] - logs[:, 0]))
            low = low * (top_k - held) / behind
            high = np.maximum(low, np.minimum(high, (top_k - held) * last))
        weights = np.stack([known + low, known + high], axis=1)
        bounds: Doubles = np.log(weights) + power * logs[:, :1]
    return bounds.astype(np.float32)


def _behind(logs: Doubles, power: float, vocabulary: int) -> tuple[Doubles, Doubles]:
    """Bounds on the weight of all tokens behind ``logs``, relative to the most probable one's."""
    known = (logs > -np.inf).sum(axis=1)
    rest = np.maximum(vocabulary - known, 0)
    none = (known < logs.shape[1]) | (rest == 0)  # an entry of -inf: nothing is behind it
    missing = 1.0 - np.exp(logs).sum(axis=1)
    last, top = np.where(none, 0.0, logs[:, -1]), logs[:, 0]

    def between(mass: Doubles) -> tuple[Doubles, Doubles]:
        capped = mass * np.exp((power - 1) * last - power * top)
        spread = rest * (mass / np.maximum(rest, 1)) ** power * np.exp(-power * top)
        return np.where(none, 0.0, capped), np.where(none, 0.0, spread)

    low = np.minimum(*between(np.clip(missing - _ROUNDING, 0.0, 1.0)))
    high = np.maximum(*between(np.clip(missing + _ROUNDING, 0.0, 1.0)))
    return low, high
