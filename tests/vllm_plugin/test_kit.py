"""The kit on rules not written for it: vLLM's stock functions, Hugging Face's, and ours."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from theory.testing import check_sampler
from vllm_plugin import rules, rules_cpu

Array = NDArray[Any]
OURS = {
    "token": rules.verify_token,
    "block": rules.verify_block,
    "token, CPU": rules_cpu.verify_token,
    "block, CPU": rules_cpu.verify_block,
}


def ours(rule: Callable[..., torch.Tensor], claim: Callable[[Array], Array] = lambda q: q) -> Any:
    """A rule of vllm_plugin as the kit's sampler; `claim` is the q that is published for q."""

    def sampler(p: Array, q: Array, candidates: Array, uniforms: Array) -> Array:
        batch, steps, size = q.shape
        chains = rules.Chains(
            torch.arange(batch) * (steps + 1),
            torch.full((batch,), steps),
            torch.ones(batch, dtype=torch.bool),
            torch.from_numpy(candidates),
            torch.arange(size).expand(batch, steps, size).contiguous(),
            torch.from_numpy(claim(q)),
        )
        u = torch.from_numpy(uniforms)
        rows = torch.from_numpy(p.reshape(-1, size)).float()
        return rule(rows, chains, u[:, :steps], u[:, steps]).numpy()

    return sampler


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's kernels as its workers have them: the wheel's C++ ones on a CPU without Triton.

    Not by `register_triton_kernel_overrides`: its scan of all modules fails once llvmlite (numba)
    is loaded, whose library wrapper answers to every attribute.
    """
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON
    from vllm.triton_utils.dispatcher import KernelOverride
    from vllm.utils import cpu_triton_utils
    from vllm.v1.sample import rejection_sampler

    current_platform.import_kernels()
    for name in ("rejection_random_sample", "sample_recovered_tokens"):
        launcher = getattr(rejection_sampler, f"_{name}")
        if HAS_TRITON or isinstance(launcher.kernel, KernelOverride):
            continue
        fallback = getattr(cpu_triton_utils, f"_{name}_kernel_impl")
        monkeypatch.setattr(launcher, "kernel", KernelOverride(launcher.kernel, fallback))
        monkeypatch.delitem(launcher.__dict__, "_kernel_arg_names", raising=False)


def stock(claim: Callable[[Array], Array] = lambda q: q) -> Any:
    """vLLM's own rejection_sample, on the kernels of this wheel, with a dense q."""
    from vllm.v1.sample.rejection_sampler import rejection_sample

    def sampler(p: Array, q: Array, candidates: Array, uniforms: Array) -> Array:
        batch, steps, size = q.shape
        target = torch.from_numpy(p)
        metadata = SimpleNamespace(
            all_greedy=False, all_random=True, temperature=torch.ones(batch), generators={}
        )
        return rejection_sample(
            torch.from_numpy(candidates.reshape(-1)).int(),
            [steps] * batch,
            steps,
            (torch.arange(1, batch + 1) * steps).int(),
            torch.from_numpy(claim(q).reshape(-1, size)).float().contiguous(),
            target[:, :steps].reshape(-1, size).log().float().contiguous(),
            torch.multinomial(target[:, steps], 1).int().contiguous(),
            metadata,
        ).numpy()

    return sampler


def hugging_face(target_in_place_of_residual: bool = False) -> Any:
    """transformers' _speculative_sampling, which draws its own noise, one row at a time."""
    from transformers.generation.utils import _speculative_sampling

    def sampler(p: Array, q: Array, candidates: Array, uniforms: Array) -> Array:
        batch, steps, _ = q.shape
        out = np.full((batch, steps + 1), -1)
        target, draft = torch.from_numpy(p).log(), torch.from_numpy(q).log()
        drafts = torch.from_numpy(candidates)
        for b in range(batch):
            tokens, kept = _speculative_sampling(
                drafts[b : b + 1], draft[b : b + 1], steps, target[b : b + 1]
            )
            out[b, : tokens.shape[1]] = tokens[0].numpy()
            if target_in_place_of_residual:
                out[b, int(kept)] = torch.multinomial(target[b, int(kept)].exp(), 1).item()
        return out

    return sampler


@pytest.mark.parametrize("rule", OURS)
def test_our_rules_are_lossless_exactly(rule: str) -> None:
    report = check_sampler(ours(OURS[rule]), vocabulary=[2, 3], candidates=2, kind="chain")
    assert report.verdict == "lossless", report
    assert report.pure
    assert {f.method for f in report.findings} == {"exact"}
    assert report.tv < 1e-6  # float32 probabilities


@pytest.mark.parametrize("rule", OURS)
def test_our_rules_with_a_q_from_an_updated_table_are_refuted(rule: str) -> None:
    stale = ours(OURS[rule], lambda q: (q + 1 / q.shape[-1]) / 2)
    report = check_sampler(stale, vocabulary=[2, 3], candidates=[2], kind="chain")
    assert report.verdict == "refuted"


def test_our_block_rule_emits_more_than_the_token_rule() -> None:
    token, block = (
        check_sampler(ours(OURS[name]), vocabulary=[3], candidates=[2], kind="chain").reached
        for name in ("token", "block")
    )
    assert token is not None
    assert block is not None
    assert block > token + 0.01


def test_stock_vllm_is_lossless_with_several_drafts(kernels: None) -> None:
    report = check_sampler(stock(), vocabulary=[2, 3], candidates=[2], kind="chain")
    assert report.verdict == "lossless", report
    assert not report.pure
    assert report.visible <= 0.05


def test_stock_vllm_with_a_q_at_another_temperature_is_refuted(kernels: None) -> None:
    def colder(q: Array) -> Array:
        return np.asarray(q**2 / (q**2).sum(-1, keepdims=True))

    report = check_sampler(stock(colder), vocabulary=[2, 3], candidates=[2], kind="chain")
    assert report.verdict == "refuted"


def test_hugging_face_is_lossless() -> None:
    report = check_sampler(
        hugging_face(),
        vocabulary=[3],
        candidates=[2],
        kind="chain",
        samples=1200,
        resolution=0.2,
    )
    assert report.verdict == "lossless", report
    assert not report.pure


def test_hugging_face_without_its_residual_is_refuted() -> None:
    report = check_sampler(
        hugging_face(target_in_place_of_residual=True),
        vocabulary=[3],
        candidates=[1],
        kind="chain",
        samples=1200,
        resolution=0.2,
    )
    assert report.verdict == "refuted"
