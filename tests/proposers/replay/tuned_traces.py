"""Traces on which the best settings are known by how they were made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from small_traces import Law, Model, trace

from theory.traces import Sampling, Trace


def recorded(
    target: Model,
    *,
    prompt: Callable[[int], int] = lambda number: number % 4,
    prompts: int = 12,
    samples: int = 2,
    length: int = 40,
    temperature: float = 1.0,
) -> Trace:
    """Answers drawn from a target to prompts of one token each."""
    rng = np.random.default_rng(1)
    texts = [[prompt(number)] for number in range(prompts)]
    answers = []
    for number in range(prompts):
        for _ in range(samples):
            text = list(texts[number])
            for _ in range(length):
                law = target(text)
                text.append(int(rng.choice(law.size, p=law)))
            answers.append((number, text[1:]))
    return trace(
        target, answers, texts, max_tokens=length + 1, sampling=Sampling(temperature=temperature)
    )


def three_tokens(text: Sequence[int]) -> Law:
    """One of four tokens has 0.9; which one, two tokens of context say nothing about."""
    likely = (1 + sum((place + 1) * token for place, token in enumerate(text[-3:]))) % 4
    found = np.full(4, 0.1 / 3)
    found[likely] = 0.9
    return found


def noisy(text: Sequence[int]) -> Law:
    """A law that scatters about one mean, whatever the context: only a long memory finds that."""
    mean = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    law = np.random.default_rng([len(text), *text]).dirichlet(2 * mean)
    return np.asarray(0.98 * law + 0.02 / mean.size)


def drifting(text: Sequence[int]) -> Law:
    """Each of five tokens has one likely successor, another for each prompt, a token of its own."""
    found = np.zeros(5 + 12)
    found[:5] = 0.1 / 4
    last = text[-1] if text[-1] < 5 else 0
    found[(last * 2 + 1 + 2 * text[0]) % 5] = 0.9
    return found


def drifting_trace() -> Trace:
    """The drifting target's answers."""
    return recorded(drifting, prompt=lambda number: 5 + number, samples=1, length=60)
