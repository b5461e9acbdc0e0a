"""Exact laws of a small model's continuations, from its logits alone (transformers, float32)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

Law = NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """The parameters that shape p; top_k 0 and top_p 1 cut nothing."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0


def shape(logits: NDArray[np.float32], sampling: Sampling) -> Law:
    """softmax(logits / T), cut to the top-k, then to the smallest set of mass top-p; (..., V)."""
    z = logits.astype(np.float64) / sampling.temperature
    if sampling.top_k:
        kth = np.sort(z, axis=-1)[..., -sampling.top_k, None]
        z = np.where(z < kth, -np.inf, z)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    if sampling.top_p < 1:
        order = np.argsort(-p, axis=-1, kind="stable")
        sorted_p = np.take_along_axis(p, order, -1)
        kept = sorted_p.cumsum(-1) - sorted_p < sampling.top_p
        keep = np.zeros_like(kept)
        np.put_along_axis(keep, order, kept, -1)
        p = np.where(keep, p, 0)
        p /= p.sum(-1, keepdims=True)
    return p


class ExactModel:
    """Next-token logits of a Hugging Face folder, batched over prefixes of equal length."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.vocabulary = int(self.model.config.vocab_size)

    @torch.inference_mode()
    def logits(self, texts: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits after each text; texts (n, L), result (n, V)."""
        parts = [
            self.model(torch.from_numpy(texts[i : i + 4096]), logits_to_keep=1).logits[:, -1]
            for i in range(0, len(texts), 4096)
        ]
        return torch.cat(parts).numpy()

    def joint_after_first(self, prompt: list[int], sampling: Sampling, *, prune: float) -> Law:
        """The joint law of tokens 2, 3 and 4 after the prompt, (V, V, V); token 1 is summed out.

        Prefixes of probability below ``prune`` continue uniformly: their whole mass is at most
        ``prune`` times their number, far below what any of the tests can see.
        """
        v = self.vocabulary
        mass, texts = np.ones(1), np.array([prompt], np.int64)
        heads = np.zeros((1, 0), np.int64)
        law = np.zeros((v, v, v))
        for depth in range(4):
            p = shape(self.logits(texts), sampling)
            mass = (mass[:, None] * p).ravel()
            token = np.tile(np.arange(v), len(texts))
            texts = np.column_stack([np.repeat(texts, v, axis=0), token])
            heads = np.column_stack([np.repeat(heads, v, axis=0), token])
            kept = mass >= prune if depth < 3 else mass > 0
            if depth in (1, 2):  # spread what is dropped, so that no cell is called impossible
                lost = mass[~kept]
                where = tuple(heads[~kept, 1:].T)
                np.add.at(law, where, (lost / v ** (3 - depth))[(...,) + (None,) * (3 - depth)])
            elif depth == 0:
                law += mass[~kept].sum() / v**3
            mass, texts, heads = mass[kept], texts[kept], heads[kept]
        np.add.at(law, tuple(heads[:, 1:].T), mass)
        return law
