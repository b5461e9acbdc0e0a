"""Noise of drafts, of acceptance and of the emitted token: independent, and refuted when shared."""

import numpy as np
import pytest
import torch

from proposers import StandDrafter, StandTable
from tests.vllm_plugin.node_cases import nodes
from theory.equivalence import goodness_of_fit
from vllm_plugin import nodes_cpu

N = 200_000
FALSE_ALARM = 1e-9 / 100  # each
P = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
Q = np.array([0.15, 0.1, 0.35, 0.3, 0.1])


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_streams_of_one_seed_are_uncorrelated(seed: int) -> None:
    """Drafter and verifier seeded alike, compared at several lags, in value and in sign."""
    drafter = StandDrafter(StandTable(order=1, budget_bytes=1 << 20), draft_length=1, seed=seed)
    draft = drafter._rng.random(N)
    u = torch.rand(
        (N, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).numpy()
    streams = {"draft": draft, "accept": u[:, 0], "emit": u[:, 1]}
    # |correlation| of independent uniforms is beyond 7.5/sqrt(N) with probability below 1e-12
    limit = 7.5 / N**0.5
    for a in streams:
        for b in streams:
            for lag in (0, 1, 2, 8) if a != b else (1, 2, 8):
                x, y = streams[a][: N - lag] - 0.5, streams[b][lag:] - 0.5
                assert abs((x * y).mean() * 12) < limit, (a, b, lag)
                assert abs((np.sign(x) * np.sign(y)).mean()) < limit, (a, b, lag)


def _emitted(accept: np.ndarray, emit: np.ndarray, draft: np.ndarray, rule: str) -> np.ndarray:
    """Tokens of N nodes; the first of two candidates is the quantile of q at ``draft``."""
    rng = np.random.default_rng(5)
    first = np.searchsorted(Q.cumsum(), draft, side="right").clip(max=4)
    second = np.searchsorted(Q.cumsum(), rng.random(N), side="right").clip(max=4)
    batch = nodes(
        np.zeros(N, np.int64), np.stack([first, second], 1), np.tile(np.arange(5), (N, 1)),
        np.tile(Q, (N, 1)),
    )  # fmt: skip
    u = torch.from_numpy(np.stack([accept, rng.random(N)], 1))
    p = torch.from_numpy(P)[None]
    return nodes_cpu.decide(rule, p, batch, u, torch.from_numpy(emit))[0].numpy()


def _refuted(tokens: np.ndarray) -> bool:
    return goodness_of_fit(np.bincount(tokens, minlength=5), P, false_alarm=FALSE_ALARM).rejected


@pytest.mark.parametrize("rule", ["token", "kseq", "rrs"])
def test_shared_noise_is_refuted_in_every_pair(rule: str) -> None:
    rng = np.random.default_rng(6)
    draft, accept, emit = rng.random((3, N))
    assert not _refuted(_emitted(accept, emit, draft, rule))
    assert _refuted(_emitted(draft, emit, draft, rule)), "draft and acceptance"
    assert _refuted(_emitted(accept, draft, draft, rule)), "draft and emitted token"
    assert _refuted(_emitted(accept, accept, draft, rule)), "acceptance and emitted token"
