"""The repair of vLLM's CPU fault: what it computes, that it is needed, that it is in place."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vllm_plugin
from vllm_plugin import cpu_repair
from vllm_plugin.cpu_repair import expand_batch_to_tokens

DTYPES = (torch.float32, torch.float64, torch.int32, torch.int64)


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(DTYPES),
    replace=st.tuples(st.integers(0, 3), st.integers(-2, 4)),
)
def test_it_repeats_and_replaces(
    counts: list[int], seed: int, dtype: torch.dtype, replace: tuple[int, int]
) -> None:
    x = np.random.default_rng(seed).integers(0, 4, len(counts)) * (
        0.5 if dtype.is_floating_point else 1
    )
    cumulative = torch.tensor(np.cumsum(counts), dtype=torch.int32)
    found = expand_batch_to_tokens(torch.tensor(x, dtype=dtype), cumulative, sum(counts), *replace)
    expected = np.repeat(x, counts)
    expected = np.where(expected == replace[0], replace[1], expected)
    assert found.dtype == dtype
    assert found.tolist() == expected.tolist()


def test_values_are_not_rounded() -> None:
    """The fault passes temperatures through int64."""
    x = torch.tensor([0.7, 1e-3, 0.0])
    found = expand_batch_to_tokens(x, torch.tensor([1, 3, 5]), 5, replace_from=0, replace_to=1)
    expected = torch.tensor([0.7, 1e-3, 1e-3, 1.0, 1.0])
    assert torch.equal(found, expected)


@pytest.fixture
def restored_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_the_installed_vllm_has_the_fault() -> None:
    """When this fails, vLLM was repaired upstream: remove hooks.EXPAND and cpu_repair."""
    assert cpu_repair.fault_present()


@pytest.mark.usefixtures("restored_environment")
def test_registering_puts_it_in_place_and_keeps_it_there() -> None:
    from vllm.v1.sample import rejection_sampler

    for _ in range(2):
        vllm_plugin.register()
        assert cpu_repair.installed()
    repaired = rejection_sampler.expand_batch_to_tokens
    assert not hasattr(repaired.__specproof_original__, "__specproof_original__")
    x, cumulative = torch.tensor([0.7, 0.3]), torch.tensor([2, 3], dtype=torch.int32)
    assert repaired(x, cumulative, 3).tolist() == x[[0, 0, 1]].tolist()
    keywords = repaired(x=x, cu_num_tokens=cumulative, num_tokens=3, replace_from=0, replace_to=1)
    assert keywords.tolist() == x[[0, 0, 1]].tolist()
