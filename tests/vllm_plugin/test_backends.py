"""One choice of back end, and the same tokens from each on the same uniforms."""

import inspect
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.vllm_plugin.node_cases import random_nodes
from tests.vllm_plugin.triton_interpreter import interpreted
from vllm_plugin import backends, nodes, nodes_cpu, paths, rules, rules_cpu
from vllm_plugin.nodes import DISTINCT, RULES
from vllm_plugin.paths import Paths
from vllm_plugin.rules import Chains


@pytest.fixture(scope="module")
def triton_modules() -> tuple[ModuleType, ModuleType]:
    """Draws and rules on Triton's interpreter, with blocks so small that there are several."""
    pytest.importorskip("triton")
    emission, rules_triton = interpreted("emission_triton", "rules_triton")
    emission._BLOCK = 8  # type: ignore[attr-defined]
    return emission, rules_triton


@pytest.fixture(scope="module")
def kernels(triton_modules: tuple[ModuleType, ModuleType]) -> Any:
    return triton_modules[1]


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
    first, second = (d(rule, p, batch, u, v) for d in (nodes.decide, nodes_cpu.decide))
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


@pytest.mark.parametrize("rule", RULES)
def test_triton_decides_as_torch(kernels: Any, rule: str) -> None:
    for seed, (size, entries, k) in enumerate([(30, 6, 3), (17, 5, 2), (5, 4, 1)]):
        p, batch, u, v = random_nodes(rule, 25, size, entries, k, seed, unused=seed == 1)
        wanted, found = (d(rule, p, batch, u, v) for d in (nodes.decide, kernels.decide))
        assert torch.equal(wanted[0], found[0])
        assert torch.equal(wanted[1], found[1])


def _chains(batch: int, size: int, steps: int, seed: int) -> tuple[torch.Tensor, Chains, Any, Any]:
    rng = np.random.default_rng(seed)
    entries = min(5, size)
    p = rng.dirichlet(np.full(size, 0.5), batch * (steps + 1))
    ids = rng.permuted(np.tile(np.arange(size), (batch * steps, 1)), axis=1)[:, :entries]
    law = rng.dirichlet(np.full(entries, 0.6), batch * steps)
    slots = rng.integers(0, entries, (batch * steps, 1))
    tokens = np.take_along_axis(ids, slots, 1).reshape(batch, steps)
    arrays = (
        np.arange(batch) * (steps + 1),
        rng.integers(0, steps + 1, batch),
        rng.random(batch) < 0.7,
        tokens,
        ids.reshape(batch, steps, entries),
        law.reshape(batch, steps, entries),
    )
    return (
        torch.from_numpy(p),
        Chains(*(torch.from_numpy(a) for a in arrays)),
        torch.from_numpy(rng.random((batch, steps))),
        torch.from_numpy(rng.random(batch)),
    )


@pytest.mark.parametrize("name", ["verify_token", "verify_block", "verify_draws"])
def test_triton_verifies_chains_as_torch(kernels: Any, name: str) -> None:
    for seed, (size, steps) in enumerate([(30, 4), (9, 1), (4, 3)]):
        p, chains, u, v = _chains(20, size, steps, seed)
        wanted = getattr(rules, name)(p, chains, u, v)
        assert torch.equal(wanted, getattr(kernels, name)(p, chains, u, v))


@settings(max_examples=30)
@given(
    name=st.sampled_from(["verify_token", "verify_block", "verify_draws"]),
    size=st.integers(2, 70),
    steps=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_torch_and_numba_verify_chains_alike(name: str, size: int, steps: int, seed: int) -> None:
    p, chains, u, v = _chains(100, size, steps, seed)
    wanted = getattr(rules, name)(p, chains, u, v)
    assert torch.equal(wanted, getattr(rules_cpu, name)(p, chains, u, v))


def _paths(rule: str, batch: int, seed: int) -> tuple[torch.Tensor, Paths, Any, Any]:
    """Random paths over four tokens, one law of q and one row of p a depth."""
    rng = np.random.default_rng(seed)
    size, count, steps = 4, 3, 2
    p = torch.from_numpy(rng.dirichlet(np.full(size, 0.7), steps + 1))
    rows = np.broadcast_to(np.arange(steps + 1), (batch, count, steps + 1)).copy()
    tokens = rng.integers(0, size, (batch, count, steps))
    if rule in DISTINCT:
        tokens[:, :, 0] = rng.permuted(np.tile(np.arange(size), (batch, 1)), axis=1)[:, :count]
    rows[rng.random(rows.shape) < 0.1] = -1
    shape = (batch, count, steps, size)
    law = np.broadcast_to(rng.dirichlet(np.ones(size), steps), shape)
    arrays = (rows, tokens, np.broadcast_to(np.arange(size), shape), law)
    return (
        p,
        Paths(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)),
        torch.from_numpy(rng.random((batch, steps, count))),
        torch.from_numpy(rng.random((batch, steps + 1))),
    )


@pytest.mark.parametrize("rule", RULES)
def test_triton_and_numba_walk_as_torch(kernels: Any, rule: str) -> None:
    p, batch, u, v = _paths(rule, 12, seed=3)
    wanted = paths.walk(nodes.decide, rule, p, batch, u, v)
    for walk in (nodes_cpu.walk, kernels.walk):
        found = walk(rule, p, batch, u, v)
        assert torch.equal(wanted[0], found[0])
        assert torch.equal(wanted[1], found[1])


def test_bad_rows_under_triton(kernels: Any) -> None:
    p, batch, u, v = random_nodes("rrs", 6, 20, 4, 3, seed=0)
    p[1] = float("nan")
    p[2] = 0
    batch.rows[3] = -1
    batch.rows[4] = 6
    batch.candidates[5, 0] = 999
    wanted, found = (d("rrs", p, batch, u, v) for d in (nodes.decide, kernels.decide))
    assert torch.equal(wanted[0], found[0])
    assert torch.equal(wanted[1], found[1])
    assert found[0][1:5].tolist() == [-1] * 4


INTS, FLOATS = "*i64", "*fp64"
LAW = {"ids_ptr": INTS, "law_ptr": FLOATS, "u_ptr": FLOATS}
DRAWS = {"ids_ptr": INTS, "held_ptr": FLOATS, "weights_ptr": FLOATS, "sums_ptr": FLOATS}
TABLE = {"p_ptr": "*fp32", "stride": "i32", "vocabulary": "i32"}
ROWS = {"count_rows": "i32", "rows_ptr": INTS}
SHAPE = {"E": 10, "EB": 16}


def _kernels() -> list[tuple[str, dict[str, str], dict[str, Any]]]:
    node = {
        **TABLE, **ROWS, **LAW, "candidates_ptr": INTS, "accepted_ptr": INTS,
        "emit_rows_ptr": INTS, "held_ptr": FLOATS, "weights_ptr": FLOATS,
    }  # fmt: skip
    chain = {
        **TABLE, **LAW, "first_ptr": INTS, "lengths_ptr": INTS, "bonus_ptr": "*i8",
        "tokens_ptr": INTS, "kept_ptr": INTS, "emit_rows_ptr": INTS, "last_ids_ptr": INTS,
        "held_ptr": FLOATS, "weights_ptr": FLOATS,
    }  # fmt: skip
    draw = {**TABLE, **ROWS, **DRAWS, "u_ptr": FLOATS, "tokens_ptr": INTS, "S": "i32"}
    return [
        *(("_nodes_kernel", node, {"RULE": r, "K": 4, "STEPS": 52, **SHAPE}) for r in range(6)),
        ("_chains_kernel", chain, {"BLOCK_RULE": True, "K": 8, **SHAPE}),
        ("_chains_kernel", chain, {"BLOCK_RULE": False, "K": 8, **SHAPE}),
        ("_sums_kernel", {**TABLE, **ROWS, **DRAWS}, {"E": 10, "BLOCK": 1024}),
        ("_draw_kernel", draw, {"SB": 256, "BLOCK": 1024, **SHAPE}),
    ]


@pytest.mark.parametrize(("name", "arguments", "constants"), _kernels())
def test_kernels_compile_for_a_gpu(
    name: str, arguments: dict[str, str], constants: dict[str, Any]
) -> None:
    """To machine code of an H100 by Triton's own compiler; it is not run. No atomics are in it."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vllm_plugin import emission_triton, rules_triton

    kernel = getattr(emission_triton, name, None) or getattr(rules_triton, name)
    names = kernel.arg_names
    assert set(names) == {*arguments, *constants}
    source = ASTSource(
        fn=kernel,
        signature={n: arguments.get(n, "constexpr") for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert len(compiled.asm["cubin"]) > 0
    assert "atom" not in compiled.asm["ptx"]
