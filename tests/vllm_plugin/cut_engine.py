"""A toy engine that cuts lists of drafts by their length, which depends on the tokens in them.

Exact laws of what it emits: a chain ends behind token 0, and a test's own rule says how much of a
list is evaluated. The plugin's adapters decide what is carried over to the next step.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction as F
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vllm_plugin.adapter_v1 import V1Adapter

# Markov laws by the last token; the last row is the start.
V, K, HORIZON = 3, 3, 4
P = [
    (F(1, 2), F(3, 10), F(1, 5)),
    (F(1, 8), F(5, 8), F(1, 4)),
    (F(1, 3), F(1, 6), F(1, 2)),
    (F(3, 5), F(3, 10), F(1, 10)),
]
Q = [
    (F(1, 10), F(1, 5), F(7, 10)),
    (F(1, 2), F(1, 5), F(3, 10)),
    (F(1, 8), F(1, 4), F(5, 8)),
    (F(3, 10), F(1, 5), F(1, 2)),
]
Text = tuple[int, ...]
Law = dict[Text, float]


def tokens(*given: int) -> NDArray[np.int32]:
    return np.array(given, np.int32)


def target(text: Text) -> tuple[F, ...]:
    return P[text[-1] if text else V]


def draft(text: Text) -> tuple[F, ...]:
    return Q[text[-1] if text else V]


def drawn_chains(text: Text) -> Iterator[tuple[Text, float]]:
    """Chains of up to K drafts, which end behind token 0."""
    going: list[tuple[Text, float]] = [((), 1.0)]
    while going:
        chain, chance = going.pop()
        if len(chain) == K or (chain and chain[-1] == 0):
            yield chain, chance
        else:
            law = draft(text + chain)
            going += [((*chain, x), chance * float(law[x])) for x in range(V)]


def total_variation(found: Law) -> float:
    """Between the law of the first HORIZON tokens that was found and that of the target."""
    exact: Law = {(): 1.0}
    for _ in range(HORIZON):
        exact = {
            (*text, y): mass * float(target(text)[y])
            for text, mass in exact.items()
            for y in range(V)
        }
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    return sum(abs(found.get(text, 0.0) - mass) for text, mass in exact.items()) / 2


def joined(parts: list[tuple[Text, float, Law]]) -> Law:
    law: Law = {}
    for emitted, mass, after in parts:
        for more, chance in after.items():
            text = emitted + more
            law[text] = law.get(text, 0.0) + mass * chance
    return law


def settled(kind: type[V1Adapter], request: Any, emitted: Text) -> Any:
    """What the plugin's adapter keeps of a request's drafts when it has emitted these tokens."""
    rows = SimpleNamespace(commit=lambda emitted: None)
    runner = SimpleNamespace(input_batch=SimpleNamespace(req_ids=["a"]))
    adapter: Any = SimpleNamespace(left_over={}, runner=runner, rows=rows)
    kind.settle(adapter, [request], [tokens(*emitted)])
    return adapter.left_over.get("a")
