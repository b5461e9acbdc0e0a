"""Trap 3 at run time: the noise of drafting, acceptance and emission, as the plugin draws it."""

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from proposers.stand import StandDrafter
from proposers.table import StandTable
from theory.testing import check_streams
from vllm_plugin.pending import Chain
from vllm_plugin.verifier import Request, Verifier

SEED, BATCH, STEPS, ROUNDS = 0, 64, 3, 340


def drafter(seed: int = SEED) -> StandDrafter:
    return StandDrafter(StandTable(budget_bytes=1 << 20, order=2), draft_length=STEPS, seed=seed)


def verification_noise() -> tuple[torch.Tensor, torch.Tensor]:
    """What Verifier._emit hands to its rule, for BATCH requests with STEPS drafts each."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def rule(p: Any, chains: Any, u_accept: torch.Tensor, u_emit: torch.Tensor) -> torch.Tensor:
        seen.append((u_accept, u_emit))
        return torch.zeros((BATCH, STEPS + 1), dtype=torch.int32)

    chain = Chain(
        np.zeros(STEPS, np.int32), np.zeros((STEPS, 1), np.int32), np.ones((STEPS, 1)), True
    )
    requests = [Request(b, 5, b * (STEPS + 1), chain.tokens, 0, False, chain) for b in range(BATCH)]
    given = {
        "requests": requests,
        "best": None,
        "processed": torch.zeros((BATCH * (STEPS + 1), 4)),
        "sampling": SimpleNamespace(all_greedy=False, all_random=True),
        "width": STEPS + 1,
    }
    names = list(inspect.signature(Verifier._emit).parameters)[1:]
    Verifier._emit(
        SimpleNamespace(rule=rule, stepwise=rule), **{name: given[name] for name in names}
    )
    return seen[0]


def streams(draft_noise: Any) -> dict[str, np.ndarray]:
    """One number of each kind for every draft: its own, its coin, and its request's emission."""
    torch.manual_seed(SEED)  # as vLLM does with the engine's seed, which the drafter has too
    drawn, coins, emissions = [], [], []
    for _ in range(ROUNDS):
        drawn.append(draft_noise())
        u_accept, u_emit = verification_noise()
        coins.append(u_accept.numpy())
        emissions.append(u_emit.numpy())
    return {
        "draft": np.stack(drawn)[..., 0].ravel(),
        "accept": np.stack(coins)[..., 0].ravel(),
        "emit": np.stack(emissions).ravel(),
    }


def test_draft_accept_and_emission_noise_are_independent() -> None:
    generator = drafter()._rng
    report = check_streams(streams(lambda: generator.random((BATCH, STEPS))))
    assert report.independent, report
    assert report.n == BATCH * ROUNDS
    assert all(abs(pair.correlation) < 0.06 for pair in report.pairs)


def test_the_coins_of_one_chain_are_independent_of_each_other() -> None:
    torch.manual_seed(SEED)
    coins = np.concatenate([verification_noise()[0].numpy() for _ in range(ROUNDS)])
    report = check_streams({f"coin {i}": coins[:, i] for i in range(STEPS)})
    assert report.independent, report


def test_drafters_of_two_seeds_do_not_share_noise() -> None:
    one, two = (drafter(seed)._rng.random(20_000) for seed in (0, 1))
    assert check_streams({"one": one, "two": two}).independent


@pytest.mark.parametrize("shared", ["accept", "emit"])
def test_a_drafter_that_shares_the_verifiers_generator_state_is_caught(shared: str) -> None:
    """The mutant: draft noise from a torch generator with the engine's seed, in the same places."""
    mutant = torch.Generator().manual_seed(SEED)

    def draft() -> np.ndarray:
        noise = torch.rand((BATCH, STEPS + 1), generator=mutant, dtype=torch.float64).numpy()
        return noise[:, :STEPS] if shared == "accept" else noise[:, ::-1]

    report = check_streams(streams(draft))
    found = [(pair.first, pair.second, pair.lag) for pair in report.pairs if pair.dependent]
    assert found == [("draft", shared, 0)]
