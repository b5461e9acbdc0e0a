"""Which implementation of the rules runs where: the one place that chooses.

``numba`` for tensors in main memory, ``triton`` for CUDA and ROCm devices where Triton is
installed, ``torch`` for everything else. All give the same tokens for the same uniforms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from vllm_plugin import nodes, paths, rules
from vllm_plugin.nodes import Nodes, Verdict
from vllm_plugin.paths import Paths
from vllm_plugin.rules import Chains

ChainRule = Callable[[Tensor, Chains, Tensor, Tensor], Tensor]
CHAIN_RULES = ("token", "block", "match")


@dataclass(frozen=True, slots=True)
class Backend:
    """One implementation: its rules for chains by name, for nodes, and for several paths.

    chains[rule](p, chains, u_accept, u_emit) as :func:`vllm_plugin.rules.verify_token`;
    decide(rule, p, nodes, u_accept, u_emit) as :func:`vllm_plugin.nodes.decide`;
    walk(rule, p, paths, u_accept, u_emit) as :func:`vllm_plugin.paths.walk`.
    """

    name: str
    chains: dict[str, ChainRule]
    decide: Callable[[str, Tensor, Nodes, Tensor, Tensor], Verdict]
    walk: Callable[[str, Tensor, Paths, Tensor, Tensor], tuple[Tensor, Tensor]]


def backend(device: torch.device | str) -> Backend:
    """The back end that serves tensors on a device."""
    kind = torch.device(device).type
    if kind == "cpu":
        return numba_backend()
    if kind == "cuda" and find_spec("triton") is not None:
        return triton_backend()
    return torch_backend()


def torch_backend() -> Backend:
    """Plain tensor operations, on any device; the reference of the other two."""
    return Backend(
        "torch",
        {"token": rules.verify_token, "block": rules.verify_block, "match": rules.verify_draws},
        nodes.decide,
        partial(paths.walk, nodes.decide),
    )


def numba_backend() -> Backend:
    """Compiled for the CPU, one pass a request."""
    from vllm_plugin import nodes_cpu, rules_cpu

    return Backend("numba", _chains(rules_cpu), nodes_cpu.decide, nodes_cpu.walk)


def triton_backend() -> Backend:
    """Kernels for the GPU."""
    rules_triton = import_module("vllm_plugin.rules_triton")  # untyped: mypy cannot read kernels
    return Backend("triton", _chains(rules_triton), rules_triton.decide, rules_triton.walk)


def _chains(module: object) -> dict[str, ChainRule]:
    names = {"token": "verify_token", "block": "verify_block", "match": "verify_draws"}
    return {rule: getattr(module, name) for rule, name in names.items()}
