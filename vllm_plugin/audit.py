"""Is this engine lossless? Sample with speculation, compare with the laws it has without.

>>> report = audit_engine(llm)                                     # doctest: +SKIP
>>> report.verdict
'lossless'
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

from theory.audit_statistics import SequentialAudit
from theory.head_law import HeadLaw, head_distance, tempered_head
from vllm_plugin.audit_prompts import TEXTS, Prompt, default_prompts
from vllm_plugin.audit_report import AuditReport, conclude
from vllm_plugin.audit_server import ServerTarget
from vllm_plugin.audit_target import AuditError, EngineTarget, Head, Target, Texts

_SMALLEST_TOLERANCE = 1e-4
_CALIBRATION_STEP = 12  # every 12th position of a text of each prompt is measured twice
_SHORTEST = 4
_MOST_SAMPLES = 64
_SHORT_ROUND = 0.02  # of the time: a shorter round is doubled

__all__ = ["AuditError", "AuditReport", "audit_engine", "audit_target"]


def audit_engine(
    engine: Any,
    *,
    prompts: Sequence[Prompt] | None = None,
    temperature: float = 0.7,
    budget: float = 1e-6,
    resolution: float = 0.02,
    seconds: float = 240.0,
    tolerance: float | None = None,
    length: int = 48,
    samples: int = 4,
    on_round: Callable[[SequentialAudit, float], None] = lambda statistics, elapsed: None,
) -> AuditReport:
    """Audit a vLLM ``LLM``, or the server at a URL: lossless, refuted or undecided.

    Parameters
    ----------
    engine : an ``LLM``, or a URL such as ``"http://127.0.0.1:8000"``.
    prompts : texts or token ids; None for eight that repeat themselves.
    temperature : of the sampled texts, above 0.
    budget : probability that a right engine is refuted, at most.
    resolution : the mean deviation that "lossless" excludes, with confidence 95 %.
    seconds : no round begins that would end later than this.
    tolerance : total variation by which measured laws may be off; None measures it.
    length, samples : tokens of a sampled text, texts of a prompt in the first round.
    on_round : told the statistics and the seconds after each round.

    Raises
    ------
    AuditError
        One sentence: a setting that cannot be audited, or an engine that does not answer.
    """
    with ExitStack() as stack:
        if isinstance(engine, str):
            name = engine
            target: Target = stack.enter_context(closing(ServerTarget(engine)))
        else:
            name, target = str(engine.llm_engine.model_config.model), EngineTarget(engine)
        return audit_target(
            target,
            name,
            prompts=prompts,
            temperature=temperature,
            budget=budget,
            resolution=resolution,
            seconds=seconds,
            tolerance=tolerance,
            length=length,
            samples=samples,
            on_round=on_round,
        )


def audit_target(
    target: Target,
    name: str,
    *,
    prompts: Sequence[Prompt] | None = None,
    temperature: float = 0.7,
    budget: float = 1e-6,
    resolution: float = 0.02,
    seconds: float = 240.0,
    tolerance: float | None = None,
    length: int = 48,
    samples: int = 4,
    start_seconds: float = 0.0,
    on_round: Callable[[SequentialAudit, float], None] = lambda statistics, elapsed: None,
) -> AuditReport:
    """Audit whatever answers as a :class:`Target`; parameters as in :func:`audit_engine`."""
    check_settings(temperature, budget, resolution, seconds, samples, tolerance)
    began = time.monotonic()
    ids = _token_ids(target, prompts)
    length = _length(target, ids, length)
    texts = target.sample(ids, 1, length, temperature)  # also the first lesson of the drafters
    gap = _numerical_gap(target, ids, texts, temperature) if tolerance is None else None
    if tolerance is None:
        tolerance = max(2 * (gap or 0.0), _SMALLEST_TOLERANCE)
    statistics = _statistics(budget, resolution, tolerance)
    for prompt in ids:
        statistics.memory.learn(prompt)
    before = target.drafting()
    sequences, round_seconds = 0, 0.0
    while True:
        start = time.monotonic()
        if start - began + round_seconds > seconds and sequences:
            break
        texts = target.sample(ids, samples, length, temperature)
        for start_text, tokens, laws in _scored(target, ids, texts, temperature):
            statistics.observe(start_text, tokens, laws)
            sequences += 1
        statistics.look()
        on_round(statistics, time.monotonic() - began)
        if statistics.refuted or statistics.cleared:
            break
        round_seconds = time.monotonic() - start
        if round_seconds < _SHORT_ROUND * seconds and samples < _MOST_SAMPLES:
            samples *= 2
    after = target.drafting()
    drafting = None if before is None or after is None else after.since(before)
    return conclude(
        statistics,
        name,
        temperature,
        sequences,
        sequences * (length - 1),
        drafting,
        gap,
        time.monotonic() - began,
        start_seconds,
    )


def check_settings(
    temperature: float,
    budget: float,
    resolution: float,
    seconds: float,
    samples: int,
    tolerance: float | None,
) -> None:
    """Raise AuditError, in one sentence, for settings with which no audit can be made."""
    if not temperature > 0:
        raise AuditError(
            f"temperature {temperature:g} leaves nothing to chance; an audit tests laws, so give a "
            "temperature above 0 (greedy texts can be compared token by token)"
        )
    if seconds <= 0 or samples < 1:
        raise AuditError(f"seconds and samples must be positive; got {seconds:g} and {samples}")
    _statistics(budget, resolution, 0.0 if tolerance is None else tolerance)


def _statistics(budget: float, resolution: float, tolerance: float) -> SequentialAudit:
    try:
        return SequentialAudit(budget=budget, resolution=resolution, tolerance=tolerance)
    except ValueError as error:
        raise AuditError(str(error)) from None


def _token_ids(target: Target, prompts: Sequence[Prompt] | None) -> list[list[int]]:
    if prompts is None:
        try:
            return target.tokens_of(TEXTS)
        except ValueError:  # vLLM's answer for an engine started without a tokenizer
            assert target.vocabulary is not None
            return default_prompts(target.vocabulary)
    if not prompts:
        raise AuditError("prompts is empty; leave it out for the built-in ones")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    read = iter(target.tokens_of(texts) if texts else [])
    ids = [next(read) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    if not all(ids):
        raise AuditError("a prompt is empty; an audit needs at least one token to continue")
    return ids


def _length(target: Target, prompts: Texts, wanted: int) -> int:
    """As many tokens as asked for, if they and the token that scoring samples fit the model."""
    longest = max(len(prompt) for prompt in prompts)
    length = min(wanted, target.longest_text - longest - 1)
    if length < _SHORTEST:
        raise AuditError(
            f"{_SHORTEST} tokens after a prompt of {longest} must fit the model's "
            f"{target.longest_text} and be asked for (length {wanted}): shorten the prompts or ask "
            "for more"
        )
    return length


def _scored(
    target: Target, prompts: Texts, texts: list[list[list[int]]], temperature: float
) -> list[tuple[Sequence[int], list[int], list[HeadLaw]]]:
    """(prompt, tokens, laws) of every sampled text; equal texts are scored once."""
    pairs = [(prompt, text) for prompt, some in zip(prompts, texts, strict=True) for text in some]
    distinct = list(dict.fromkeys((tuple(prompt), tuple(text)) for prompt, text in pairs))
    heads = target.score([p + t for p, t in distinct], [len(p) for p, _ in distinct])
    laws = {
        one: [_law(head, temperature, target.vocabulary) for head in found]
        for one, found in zip(distinct, heads, strict=True)
    }
    return [(prompt, text, laws[tuple(prompt), tuple(text)]) for prompt, text in pairs]


def _law(head: Head, temperature: float, vocabulary: int | None) -> HeadLaw:
    try:
        return tempered_head(head[0], head[1], temperature, vocabulary=vocabulary)
    except ValueError as error:
        raise AuditError(f"the engine reported a law that is none: {error}") from None


def _numerical_gap(
    target: Target, prompts: Texts, texts: list[list[list[int]]], temperature: float
) -> float:
    """The largest distance between a scored law and what the engine reports when it samples.

    The engine's own log probabilities come with one token sampled after the prefix, where nothing
    can be drafted, in batches of another shape; whether they are raw or already at the temperature
    is decided by which of the two fits.
    """
    chosen = [(list(prompt), some[0]) for prompt, some in zip(prompts, texts, strict=True)]
    heads = target.score([p + t for p, t in chosen], [len(p) for p, _ in chosen])
    scored, prefixes = [], []
    for (prompt, text), found in zip(chosen, heads, strict=True):
        for i in range(0, len(text), _CALIBRATION_STEP):
            scored.append(_law(found[i], temperature, target.vocabulary))
            prefixes.append(prompt + text[:i])
    own = target.next_heads(prefixes, temperature)
    gaps = []
    for at in (temperature, 1.0):  # raw ones are to be tempered, processed ones are not
        reported = [_law(head, at, target.vocabulary) for head in own]
        gaps.append(
            max(head_distance(one, other) for one, other in zip(scored, reported, strict=True))
        )
    return min(gaps)
