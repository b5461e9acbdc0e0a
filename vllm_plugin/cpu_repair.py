"""Repair of vLLM's CPU fault that makes every speculative method sample with garbage temperatures.

``_expand_kernel_impl`` converts its output tensor to an int64 copy, lets C++ fill the copy and
drops it, so ``expand_batch_to_tokens`` returns uninitialised memory. Measured on 0.32: ngram
accepts [1592, 2, 2, 2, 2, 2, 1, 0] drafts per position instead of a smooth decline.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from vllm_plugin import hooks


def expand_batch_to_tokens(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """``x[b]`` repeated once per draft of request b, with one value replaced by another.

    x (B,) any dtype; cu_num_tokens (B,) integer, inclusive cumulative draft counts. Returns
    (num_tokens,) of x's dtype.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    expanded = torch.repeat_interleave(x, counts.long(), output_size=num_tokens)
    return torch.where(expanded == replace_from, replace_to, expanded).to(x.dtype)


def fault_present() -> bool:
    """Whether the installed vLLM has the fault: its own CPU kernel wrapper loses a float output."""
    from vllm.platforms import current_platform
    from vllm.utils import cpu_triton_utils

    current_platform.import_kernels()
    output = torch.zeros(1, dtype=torch.float32)
    counts = torch.ones(1, dtype=torch.int32)
    cpu_triton_utils._expand_kernel_impl(output, torch.ones(1), counts, 0, 0)
    return bool(output.item() != 1.0)


def installed() -> bool:
    """Whether this process verifies with the repaired function."""
    from vllm.v1.sample import rejection_sampler

    return hasattr(rejection_sampler.expand_batch_to_tokens, "__specproof_original__")


def install_on_cpu() -> None:
    """Repair this process if it runs on a CPU whose vLLM has the fault, and say so in its log."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or not _needed() or installed():
        return
    wrong = hooks.problem(hooks.EXPAND)
    if wrong:
        _log().warning("specproof: CPU repair not applied, since %s", wrong)
        return
    hooks.install(hooks.EXPAND, _replacement)
    _log().info(
        "specproof: repaired expand_batch_to_tokens; without it vLLM's CPU engine samples with "
        "uninitialised temperatures under every speculative method."
    )


def _replacement(original: Any) -> Any:
    @functools.wraps(original)
    def repaired(*args: Any, **kwargs: Any) -> Tensor:
        return expand_batch_to_tokens(*args, **kwargs)

    return repaired


def _needed() -> bool:
    try:
        return fault_present()
    except (ImportError, AttributeError, RuntimeError, TypeError):
        return False  # another vLLM, where the faulty function is gone or works differently


def _log() -> Any:
    from vllm.logger import init_logger

    return init_logger("vllm.specproof")
