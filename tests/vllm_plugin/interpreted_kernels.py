"""Checks of the GPU kernels under Triton's interpreter; test_triton.py runs them.

Its environment sets TRITON_INTERPRET=1. On float64 laws the tokens are torch's, all of them.
"""

import os
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

from tests.vllm_plugin.node_cases import random_chains, random_nodes, random_paths
from vllm_plugin import emission, emission_triton, nodes, paths, rules, rules_triton
from vllm_plugin.nodes import RULES

assert os.environ["TRITON_INTERPRET"] == "1", "run tests/vllm_plugin/test_triton.py instead"
emission_triton._BLOCK = 16  # so small that there are several


@pytest.fixture(scope="module", autouse=True)
def repaired() -> None:
    """Triton 3.9's interpreter gives a comparison of scalars the type of its operands.

    The result is then refused by & with a block of booleans, or as a mask.
    """
    original = InterpreterBuilder.binary_op

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        result = original(self, lhs, rhs, op)
        if result.data.dtype == np.bool_:
            result.dtype = tl.int1
        return result

    InterpreterBuilder.binary_op = binary_op


@pytest.mark.parametrize("rule", RULES)
def test_triton_decides_as_torch(rule: str) -> None:
    for seed, (size, entries, k) in enumerate([(30, 6, 3), (17, 5, 2), (5, 4, 1)]):
        p, batch, u, v = random_nodes(rule, 8, size, entries, k, seed, unused=seed == 1)
        wanted, found = (d(rule, p, batch, u, v) for d in (nodes.decide, rules_triton.decide))
        assert torch.equal(wanted[0], found[0])
        assert torch.equal(wanted[1], found[1])


@pytest.mark.parametrize("name", ["verify_token", "verify_block", "verify_draws"])
def test_triton_verifies_chains_as_torch(name: str) -> None:
    for seed, (size, steps) in enumerate([(30, 4), (9, 1), (4, 3)]):
        p, chains, u, v = random_chains(8, size, steps, seed)
        wanted = getattr(rules, name)(p, chains, u, v)
        assert torch.equal(wanted, getattr(rules_triton, name)(p, chains, u, v))


def test_bad_rows_under_triton() -> None:
    p, batch, u, v = random_nodes("rrs", 6, 20, 4, 3, seed=0)
    p[1] = float("nan")
    p[2] = 0
    batch.rows[3] = -1
    batch.rows[4] = 6
    batch.candidates[5, 0] = 999
    wanted, found = (d("rrs", p, batch, u, v) for d in (nodes.decide, rules_triton.decide))
    assert torch.equal(wanted[0], found[0])
    assert torch.equal(wanted[1], found[1])
    assert found[0][1:5].tolist() == [-1] * 4


@pytest.mark.parametrize("rule", RULES)
def test_triton_walks_as_torch(rule: str) -> None:
    p, batch, u, v = random_paths(rule, 4, seed=3)
    wanted = paths.walk(nodes.decide, rule, p, batch, u, v)
    found = rules_triton.walk(rule, p, batch, u, v)
    assert torch.equal(wanted[0], found[0])
    assert torch.equal(wanted[1], found[1])


def test_a_law_of_which_nothing_is_left() -> None:
    """p lives on the support and the weights are zero: p itself is drawn from."""
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    ids = torch.tensor([[3, 1]])
    held = torch.tensor([[0.75, 0.25]], dtype=torch.float64)
    for u, token in ((0.7, 3), (0.8, 1), (1 - 2**-53, 1)):
        arguments = (p, torch.zeros(1).long(), ids, held, held * 0, torch.tensor([u]).double())
        assert emission.emit(*arguments).tolist() == [token]
        assert emission_triton.emit(*arguments).tolist() == [token]
