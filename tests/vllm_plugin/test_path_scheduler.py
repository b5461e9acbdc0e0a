"""The scheduler of several paths: it does not know the scratch blocks, and counts drafts once."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
)

from vllm_plugin.config import ConfigurationError
from vllm_plugin.flat_drafts import FlatDrafts
from vllm_plugin.path_scheduler import PathScheduler

SPEC = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32)
CONFIG: Any = SimpleNamespace(
    speculative_config=SimpleNamespace(model="vllm_plugin.Stand", num_speculative_tokens=14),
    additional_config={"specproof": {"candidates": 3}},
    scheduler_config=SimpleNamespace(max_num_seqs=4),
    model_config=SimpleNamespace(max_model_len=256),
)


def cache(*specs: Any, blocks: int = 400) -> KVCacheConfig:
    groups = [KVCacheGroupSpec([f"layer {i}"], spec) for i, spec in enumerate(specs)]
    return KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups)


class Stock:
    """What vLLM's scheduler is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[int] = []
        self.drafts: list[Any] = []
        self.stats: list[dict[str, Any]] = []

        def init(scheduler: Any, config: Any, kv: KVCacheConfig, *args: Any, **more: Any) -> None:
            self.blocks.append(kv.num_blocks)
            scheduler.requests = {"a": None, "b": None}

        def stats(scheduler: Any, spec_decoding_stats: Any, **given: Any) -> Any:
            self.stats.append(given)
            return spec_decoding_stats

        monkeypatch.setattr(Scheduler, "__init__", init)
        monkeypatch.setattr(
            Scheduler, "update_draft_token_ids", lambda scheduler, ids: self.drafts.append(ids)
        )
        monkeypatch.setattr(Scheduler, "make_spec_decoding_stats", stats)


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Stock:
    return Stock(monkeypatch)


def flat(tokens: list[int], distinct: list[int]) -> FlatDrafts:
    made = FlatDrafts(tokens)
    made.distinct = distinct
    return made


def observed(scheduler: PathScheduler, request: str, drafts: int, accepted: int = 1) -> None:
    scheduler.make_spec_decoding_stats(
        "stats", num_draft_tokens=drafts, num_accepted_tokens=accepted,
        num_invalid_spec_tokens=None, request_id=request,
    )  # fmt: skip


def drafted(scheduler: PathScheduler, **drafts: list[int]) -> None:
    ids: Any = SimpleNamespace(req_ids=list(drafts), draft_token_ids=list(drafts.values()))
    scheduler.update_draft_token_ids(ids)


def test_it_sees_a_smaller_cache(stock: Stock) -> None:
    given = cache(SPEC)
    PathScheduler(CONFIG, given, "more", log_stats=True)
    hidden = 4 * 2 * 2  # requests, paths beside the first, blocks of a path 4 tokens deep
    assert stock.blocks == [400 - hidden]
    assert given.num_blocks == 400  # the worker's


def test_caches_and_settings_that_do_not_fit_are_refused(stock: Stock) -> None:
    mamba = MambaSpec(block_size=16, shapes=((1,),), dtypes=(torch.float32,))
    with pytest.raises(ConfigurationError, match="MambaSpec"):
        PathScheduler(CONFIG, cache(mamba))
    with pytest.raises(ConfigurationError, match="has 2"):
        PathScheduler(CONFIG, cache(SPEC, SPEC))
    wrong = SimpleNamespace(**vars(CONFIG))
    wrong.speculative_config = SimpleNamespace(model="vllm_plugin.Stand", num_speculative_tokens=13)
    with pytest.raises(ConfigurationError, match="13 tokens a step"):
        PathScheduler(wrong, cache(SPEC))
    assert not stock.blocks


def test_drafts_that_paths_share_are_counted_once(stock: Stock) -> None:
    scheduler = PathScheduler(CONFIG, cache(SPEC))
    drafts = flat([1, 2, 9, 1, 3], [0, 1, 2, 2, 2, 3])
    drafted(scheduler, a=drafts, b=flat([4], [0, 1]))
    assert stock.drafts[0].draft_token_ids[0] is drafts
    observed(scheduler, "a", 5)
    observed(scheduler, "b", 1)
    assert [s["num_draft_tokens"] for s in stock.stats] == [3, 1]
    assert [s["num_accepted_tokens"] for s in stock.stats] == [1, 1]
    assert [s["request_id"] for s in stock.stats] == ["a", "b"]


@pytest.mark.parametrize(("cut", "count"), list(enumerate([0, 1, 2, 2, 2, 3])))
def test_of_a_list_that_was_cut_the_first_are_counted(stock: Stock, cut: int, count: int) -> None:
    scheduler = PathScheduler(CONFIG, cache(SPEC))
    drafted(scheduler, a=flat([1, 2, 9, 1, 3], [0, 1, 2, 2, 2, 3]))
    observed(scheduler, "a", cut)
    assert stock.stats[0]["num_draft_tokens"] == count


def test_counts_are_of_the_last_list_and_used_once(stock: Stock) -> None:
    scheduler = PathScheduler(CONFIG, cache(SPEC))
    drafted(scheduler, a=flat([1, 9, 1], [0, 1, 1, 1]))
    drafted(scheduler, a=flat([1, 9, 2], [0, 1, 1, 2]))
    observed(scheduler, "a", 3)
    observed(scheduler, "a", 3)  # nothing is known of these
    assert [s["num_draft_tokens"] for s in stock.stats] == [2, 3]


def test_lists_of_others_are_counted_as_vllm_does(stock: Stock) -> None:
    scheduler = PathScheduler(CONFIG, cache(SPEC))
    drafted(scheduler, a=[1, 2, 3])
    observed(scheduler, "a", 3, 2)
    assert stock.stats[0]["num_draft_tokens"] == 3
    drafted(scheduler, b=flat([1], [0, 1]))
    observed(scheduler, "b", 7)  # more than the list that we know of
    assert stock.stats[1]["num_draft_tokens"] == 7


def test_requests_that_have_ended_are_forgotten(stock: Stock) -> None:
    scheduler = PathScheduler(CONFIG, cache(SPEC))
    for number in range(50):
        name = f"r{number}"
        scheduler.requests = {name: None}  # type: ignore[dict-item]
        drafted(scheduler, **{name: flat([1], [0, 1])})
        assert set(scheduler._distinct) == {name}
