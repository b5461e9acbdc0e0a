"""Every way of drafting several paths with every rule that is lossless for it, in one engine.

The engine is started with some pair of k paths; :func:`switch` gives it another, on the same table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.engine.engines import STAND, engine
from tests.engine.exact import Sampling
from tests.engine.scripted_paths import adapter_of
from vllm_plugin.local_engine import runner_of
from vllm_plugin.path_settings import LEGAL

PAIRS = tuple(sorted((drafting, rule) for rule, ways in LEGAL.items() for drafting in ways))
PATHS, DEPTH = 3, 3
SETTINGS = {
    "T=0.7": Sampling(0.7),
    "T=1": Sampling(1.0),
    "T=0.7, top-p": Sampling(0.7, top_p=0.8),
    "T=1, top-p": Sampling(1.0, top_p=0.8),
}


def path_engine(model: Path, **settings: Any) -> Any:
    """An engine of ``PATHS`` paths on a table with contexts of one token, so that q is not p."""
    return engine(
        model,
        proposer=STAND,
        draft_length=DEPTH,
        options={"candidates": PATHS, "order": 1, "table_mib": 1, "min_survival": 0.03},
        skip_tokenizer_init=True,
        **({"max_num_seqs": 256, "max_model_len": 64} | settings),
    )


def switch(worker: Any, drafting: str, rule: str) -> None:
    """Draft and verify by another pair from now on."""
    from proposers.path_stand import StandPathDrafter
    from vllm_plugin.sparse_flow import MAX_SUPPORT

    adapter = adapter_of(worker)
    adapter.serve(runner_of(worker))  # which it does by itself in its first step
    adapter.drafter = StandPathDrafter(
        adapter.drafter.table,
        draft_length=adapter.settings.depth,
        candidates=adapter.settings.paths,
        drafting=drafting,
        max_support=MAX_SUPPORT if rule == "sparse_optimal" else None,
        max_paths=adapter.settings.paths if drafting == "beam" else None,
        min_survival=adapter.drafter.min_survival,
        seed=11,
    )
    adapter.rule = adapter.verifier.node_rule = rule


def publish_another_law(worker: Any) -> None:
    """Make the engine verify with a q that its drafts were not drawn from."""
    drafter = adapter_of(worker).drafter
    right = drafter.draft_paths

    def wrong(requests: Any, min_survival: float) -> Any:
        drafts = right(requests, min_survival)
        some = drafts.laws > 0
        even = some / np.maximum(some.sum(-1, keepdims=True), 1)
        drafts.laws[:] = np.where(some, 0.5 * drafts.laws + 0.5 * even, 0)
        return drafts

    drafter.draft_paths = wrong


def drop_by_token(worker: Any) -> None:
    """Leave paths out because of the token that they begin with: what must never happen."""
    drafter = adapter_of(worker).drafter
    right = drafter.draft_paths

    def wrong(requests: Any, min_survival: float) -> Any:
        drafts = right(requests, min_survival)
        dropped = drafts.tokens[:, :, 0] % 2 == 1
        drafts.lengths[dropped] = 0
        drafts.tokens[dropped] = -1
        return drafts

    drafter.draft_paths = wrong


def temperatures() -> Iterator[tuple[str, str, str]]:
    """Each pair at one of the temperatures, in turn."""
    for i, pair in enumerate(PAIRS):
        yield *pair, ("T=0.7", "T=1")[i % 2]
