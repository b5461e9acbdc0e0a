"""One choice of back end, and the same tokens from each on the same uniforms."""

import inspect

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.vllm_plugin.node_cases import random_chains, random_nodes, random_paths
from vllm_plugin import backends, nodes, nodes_cpu, paths, rules, rules_cpu
from vllm_plugin.nodes import RULES


def test_the_device_decides() -> None:
    assert backends.backend("cpu").name == "numba"
    assert backends.backend(torch.device("meta")).name == "torch"


def test_cuda_is_served_by_triton_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    assert backends.backend("cuda:0").name == "triton"
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    assert backends.backend("cuda:0").name == "torch"


def test_every_back_end_has_every_rule() -> None:
    pytest.importorskip("triton")
    for build in (backends.torch_backend, backends.numba_backend, backends.triton_backend):
        found = build()
        assert tuple(found.chains) == backends.CHAIN_RULES
        for rule in found.chains.values():
            assert list(inspect.signature(rule).parameters)[:4] == [
                "p", "chains", "u_accept", "u_emit",
            ]  # fmt: skip


@settings(max_examples=60)
@given(
    rule=st.sampled_from(RULES),
    size=st.integers(2, 90),
    entries=st.integers(1, 10),
    k=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    unused=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_torch_and_numba_decide_alike(
    rule: str, size: int, entries: int, k: int, seed: int, unused: bool, dtype: torch.dtype
) -> None:
    entries = min(entries, size)
    assume(not unused or entries > 1)
    p, batch, u, v = random_nodes(rule, 200, size, entries, k, seed, unused=unused)
    p = p.to(dtype)
    before = p.clone()
    first, second = (d(rule, p, batch, u, v) for d in (nodes.decide, nodes_cpu.decide))
    assert torch.equal(p, before)
    again = nodes_cpu.decide(rule, p, batch, u, v)
    assert all(torch.equal(a, b) for a, b in zip(second, again, strict=True))
    # In float32 a uniform within rounding of a threshold may be told apart.
    allowed = 0 if dtype == torch.float64 else 1
    assert (first[0] != second[0]).sum() <= allowed
    assert (first[1] != second[1]).sum() <= allowed
    for token, accepted in (first, second):
        assert ((token >= 0) & (token < size)).all()
        assert (p.gather(1, token[:, None]) > 0).all()
        assert ((accepted >= -1) & (accepted < k)).all()
        chosen = batch.candidates.gather(1, accepted.clamp(min=0)[:, None])[:, 0]
        assert torch.equal(torch.where(accepted >= 0, chosen, token), token)


@settings(max_examples=30)
@given(
    name=st.sampled_from(["verify_token", "verify_block", "verify_draws"]),
    size=st.integers(2, 70),
    steps=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_torch_and_numba_verify_chains_alike(name: str, size: int, steps: int, seed: int) -> None:
    p, chains, u, v = random_chains(100, size, steps, seed)
    wanted = getattr(rules, name)(p, chains, u, v)
    assert torch.equal(wanted, getattr(rules_cpu, name)(p, chains, u, v))


@pytest.mark.parametrize("rule", RULES)
def test_torch_and_numba_walk_alike(rule: str) -> None:
    p, batch, u, v = random_paths(rule, 500, seed=3)
    wanted = paths.walk(nodes.decide, rule, p, batch, u, v)
    found = nodes_cpu.walk(rule, p, batch, u, v)
    assert torch.equal(wanted[0], found[0])
    assert torch.equal(wanted[1], found[1])
