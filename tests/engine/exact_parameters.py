"""The law that sampling parameters make of the tiny model's logits, written out for reference.

Independent of vLLM's code: numpy, one formula a parameter, in the order that vLLM documents.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.engine.exact import ExactModel, Law, Sampling, shape

EOS = 2


@dataclass(frozen=True)
class Parameters:
    """A request's parameters; ``bad_words`` are sequences of tokens."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    min_tokens: int | None = None  # None: EOS is a token like the others


def law(
    logits: NDArray[np.float32], prompt: list[int], outputs: NDArray[np.int64], s: Parameters
) -> Law:
    """The next-token law after each of n outputs of one length; logits (n, V), outputs (n, L)."""
    z = logits.astype(np.float64)
    n, v = z.shape
    if s.allowed:
        z[:, np.setdiff1d(np.arange(v), s.allowed)] = -np.inf
    for word in s.bad_words:
        head = np.array(word[:-1], np.int64)
        if outputs.shape[1] >= len(head):
            last = outputs[:, outputs.shape[1] - len(head) :]
            z[(last == head).all(1), word[-1]] = -np.inf
    if s.min_tokens is not None and outputs.shape[1] < s.min_tokens:
        z[:, EOS] = -np.inf
    for token, bias in s.logit_bias.items():
        z[:, token] += bias
    counts = np.zeros((n, v))
    np.add.at(counts, (np.arange(n)[:, None], outputs), 1)
    seen = counts > 0
    seen[:, prompt] = True
    z = np.where(seen, np.where(z > 0, z / s.repetition, z * s.repetition), z)
    z -= s.frequency * counts + s.presence * (counts > 0)
    z /= s.temperature
    p = np.exp(z - z.max(-1, keepdims=True))
    z[p < s.min_p] = -np.inf
    p = shape(z, Sampling(1.0, s.top_k, s.top_p))
    if s.min_tokens is not None and outputs.shape[1]:
        p[outputs[:, -1] == EOS] = np.eye(v)[EOS]  # an ended text stays ended
    return p


def joint_of_second_and_third(model: ExactModel, prompt: list[int], s: Parameters) -> Law:
    """The joint law of tokens 2 and 3 after the prompt, (V, V); token 1 is summed out."""
    v = model.vocabulary
    mass, outputs = np.ones(1), np.zeros((1, 0), np.int64)
    for _ in range(3):
        texts = np.column_stack([np.tile(np.array(prompt, np.int64), (len(outputs), 1)), outputs])
        mass = (mass[:, None] * law(model.logits(texts), prompt, outputs, s)).ravel()
        token = np.tile(np.arange(v), len(outputs))
        outputs = np.column_stack([np.repeat(outputs, v, axis=0), token])
    return mass.reshape(v, v, v).sum(0)


def joint_of_letters(
    model: ExactModel, prompt: list[int], length: int
) -> dict[tuple[int, ...], float]:
    """The law of whole answers under the grammar [ab]{length}, at temperature 1.

    A token is allowed when it is made of a and b and fits in what is left; at the end only EOS is.
    """
    from tests.engine.tiny import token

    pieces = {token(piece): len(piece) for piece in ("a", "b", "ab", "ba", "aa", "bb")}
    answers: dict[tuple[int, ...], float] = {}
    open_texts: dict[tuple[int, ...], float] = {(): 1.0}
    while open_texts:
        longer: dict[tuple[int, ...], float] = {}
        for text, mass in open_texts.items():
            left = length - sum(pieces[t] for t in text)
            if not left:
                answers[(*text, EOS)] = mass
                continue
            logits = model.logits(np.array([[*prompt, *text]], np.int64))[0].astype(np.float64)
            fitting = [t for t, n in pieces.items() if n <= left]
            p = np.exp(logits[fitting] - logits[fitting].max())
            for t, share in zip(fitting, p / p.sum(), strict=True):
                longer[(*text, t)] = mass * float(share)
        open_texts = longer
    return answers
