"""specproof's vLLM plugin: lossless speculative decoding with published draft laws.

vLLM calls :func:`register` in each of its processes (entry point group ``vllm.general_plugins``).
The proposer classes are named in ``--speculative-config``; they are loaded on first use, so that
``import vllm_plugin`` needs neither torch nor vllm.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_plugin.proposer import (
        Aded,
        Chooser,
        PromptLookup,
        SpecTr,
        Stand,
        Suffix,
        TokenRecycling,
    )

__version__ = "0.1.0"
__all__ = [
    "Aded",
    "Chooser",
    "PromptLookup",
    "SpecTr",
    "Stand",
    "Suffix",
    "TokenRecycling",
    "__version__",
    "register",
]

PROPOSERS = ("Stand", "SpecTr", "PromptLookup", "Suffix", "TokenRecycling", "Aded", "Chooser")


def register() -> None:
    """Prepare this process: preload, start-up checks and fixes of vLLM faults; safe to repeat."""
    from vllm_plugin import cpu_repair, draft_delivery, guard, let_through, openmp

    openmp.preload_for_children()
    guard.install()
    let_through.install_in_frontend()
    cpu_repair.install_on_cpu()
    draft_delivery.install_where_core_is()


def __getattr__(name: str) -> Any:
    if name in PROPOSERS:
        from vllm_plugin import proposer

        return getattr(proposer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
