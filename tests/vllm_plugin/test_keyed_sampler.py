"""Position-keyed sampling inside vLLM's sampler: seeded rows by the race, others as stock."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from proposers.noise import race, request_key, row_key
from theory.equivalence import goodness_of_fit
from vllm_plugin.keyed_sampler import KeyedTopKTopP, keyed_choice

V = 24
KEY = request_key(5)


def law(seed: int = 0) -> Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


class Stock(torch.nn.Module):
    """Stands for vLLM's sampling stage: remembers its arguments, always answers token 0."""

    logprobs_mode = "processed_logits"

    def forward(self, logits: Tensor, generators: dict[int, Any], k: Any, p: Any) -> Any:
        self.given = (logits, generators, k, p)
        return torch.zeros(logits.shape[0], dtype=torch.int64), logits


def keyed() -> tuple[KeyedTopKTopP, Stock]:
    stock = Stock()
    anything: Any = stock
    return KeyedTopKTopP(anything), stock


@pytest.mark.parametrize("position", [0, 1, 4000])
def test_a_choice_is_the_race_at_its_place(position: int) -> None:
    p = law()
    row = np.uint64(row_key(np.uint64(KEY), position))
    assert keyed_choice(p, KEY, position) == race(p.numpy(), row)
    assert keyed_choice(p, KEY, position) == keyed_choice(p.clone(), KEY, position)


def test_choices_follow_the_law() -> None:
    """One test at a false-alarm probability of 1e-10."""
    p = law()
    choices = [keyed_choice(p, KEY, position) for position in range(20_000)]
    counts = np.bincount(choices, minlength=V)
    assert not goodness_of_fit(counts, p.double() / p.double().sum(), false_alarm=1e-10).rejected


def test_a_token_that_was_cut_is_never_chosen() -> None:
    p = law()
    p[::2] = 0
    assert all(keyed_choice(p, KEY, position) % 2 == 1 for position in range(500))


def test_without_seeded_rows_the_stock_stage_gets_everything() -> None:
    stage, stock = keyed()
    generators, k, p = {1: object()}, torch.tensor([3, 3]), torch.tensor([0.9, 0.9])
    logits = torch.randn((2, V), generator=torch.Generator().manual_seed(3))
    tokens, returned = stage(logits, generators, k, p)
    assert stock.given == (logits, generators, k, p)
    assert tokens.tolist() == [0, 0]
    assert returned is logits
    assert stage.logprobs_mode == "processed_logits"


def test_seeded_rows_draw_from_the_processed_law_and_no_others_change() -> None:
    stage, _ = keyed()
    raw = torch.randn((3, V), generator=torch.Generator().manual_seed(4))
    top_two = raw.topk(2).indices
    stage.places = {1: (KEY, 17), 2: (KEY, 18)}
    k = torch.tensor([V, 2, V])
    tokens, returned = stage(raw.clone(), {1: object()}, k, None)
    assert tokens[0] == 0
    cut = raw[1].clone()
    cut[[x for x in range(V) if x not in top_two[1]]] = -torch.inf
    assert tokens[1] == keyed_choice(cut.softmax(dim=-1), KEY, 17)
    assert tokens[2] == keyed_choice(raw[2].softmax(dim=-1), KEY, 18)
    assert returned is not None
    assert int(torch.isfinite(returned[1]).sum()) == 2  # logprobs of the processed law, as stock


def test_neighbours_do_not_matter() -> None:
    """The same request, alone or elsewhere in a batch."""
    row = torch.randn(V, generator=torch.Generator().manual_seed(6))
    chosen = []
    for place, batch in ((0, 1), (2, 4)):
        stage, _ = keyed()
        stage.places = {place: (KEY, 9)}
        logits = torch.randn((batch, V), generator=torch.Generator().manual_seed(batch))
        logits[place] = row
        chosen.append(int(stage(logits, {}, None, None)[0][place]))
    assert chosen[0] == chosen[1]


def test_it_takes_the_place_of_vllms_own_stage() -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    stage = KeyedTopKTopP(TopKTopPSampler())
    stage.places = {0: (KEY, 3)}
    logits = torch.randn((2, V), generator=torch.Generator().manual_seed(8))
    tokens, _ = stage(logits.clone(), {}, None, torch.tensor([0.5, 0.5]))
    assert tokens.shape == (2,)
    assert logits[1, tokens[1]] >= logits[1].median()
