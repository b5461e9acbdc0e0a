"""What several candidates need of an engine: arguments that are set, others that are refused."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    MambaSpec,
    MLAAttentionSpec,
    SinkFullAttentionSpec,
    SlidingWindowSpec,
)

from proposers.shape import TreeShape
from vllm_plugin import guard, hooks, metrics, path_engine
from vllm_plugin.config import ConfigurationError
from vllm_plugin.path_engine import (
    SCHEDULER,
    adapt,
    cache_problem,
    prepared,
    refuse_model,
    settings_of,
)
from vllm_plugin.path_settings import PathSettings

SEVERAL = PathSettings(3, 4, "iid", "kseq")
SPECULATIVE = {"method": "custom_class", "model": "vllm_plugin.Stand", "num_speculative_tokens": 4}
OPTIONS = {"specproof": {"candidates": 3, "rule": "kseq"}}


@dataclass
class Arguments:
    """The part of vLLM's EngineArgs that matters here."""

    model: str = "org/name"
    speculative_config: Any = field(default_factory=lambda: dict(SPECULATIVE))
    additional_config: Any = field(default_factory=lambda: dict(OPTIONS))
    scheduler_cls: Any = None
    kv_transfer_config: Any = None
    enable_dbo: bool = False
    kv_sharing_fast_prefill: bool = False
    decode_context_parallel_size: int = 1
    prefill_context_parallel_size: int = 1
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1


@pytest.mark.parametrize("given", [SPECULATIVE, json.dumps(SPECULATIVE)])
def test_arguments_are_vllms_inside_and_the_users_outside(given: Any) -> None:
    arguments = Arguments(speculative_config=given)
    with prepared(arguments, SEVERAL):
        assert arguments.speculative_config == SPECULATIVE | {"num_speculative_tokens": 14}
        assert arguments.scheduler_cls == SCHEDULER
    assert arguments.speculative_config is given
    assert arguments.scheduler_cls is None
    assert SPECULATIVE["num_speculative_tokens"] == 4


def test_arguments_are_given_back_after_a_failure() -> None:
    arguments = Arguments()
    given = arguments.speculative_config
    with pytest.raises(ZeroDivisionError), prepared(arguments, SEVERAL):
        raise ZeroDivisionError
    assert arguments.speculative_config is given
    assert arguments.scheduler_cls is None


def test_one_candidate_changes_nothing_and_refuses_nothing() -> None:
    arguments = Arguments(scheduler_cls="my.Scheduler", decode_context_parallel_size=2)
    with prepared(arguments, None):
        assert arguments == Arguments(scheduler_cls="my.Scheduler", decode_context_parallel_size=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scheduler_cls", "my.Scheduler"),
        ("kv_transfer_config", {"kv_connector": "NixlConnector"}),
        ("enable_dbo", True),
        ("kv_sharing_fast_prefill", True),
        ("decode_context_parallel_size", 2),
        ("prefill_context_parallel_size", 2),
    ],
)
def test_arguments_that_do_not_go_with_several(name: str, value: Any) -> None:
    from vllm.engine.arg_utils import EngineArgs

    assert name in EngineArgs.__dataclass_fields__  # or nothing would be refused
    arguments = Arguments(**{name: value})
    with pytest.raises(ConfigurationError) as refused, prepared(arguments, SEVERAL):
        pass
    text = str(refused.value)
    assert f"--{name.replace('_', '-')}" in text
    assert text.endswith("leave it out, or use vllm_plugin.Stand with candidates 1")
    assert arguments == Arguments(**{name: value})


def test_the_scheduler_that_is_named_is_ours() -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    from vllm_plugin.path_scheduler import PathScheduler

    assert resolve_obj_by_qualname(SCHEDULER) is PathScheduler


def of(tokens: int, options: dict[str, Any], proposer: str = "Stand") -> PathSettings | None:
    speculative = SimpleNamespace(model=f"vllm_plugin.{proposer}", num_speculative_tokens=tokens)
    config = SimpleNamespace(
        speculative_config=speculative, additional_config={"specproof": options}
    )
    return settings_of(config)


@pytest.mark.parametrize("depth", [1, 2, 8])
@pytest.mark.parametrize("paths", [2, 3, 8])
def test_settings_are_read_back_from_the_length_of_the_list(paths: int, depth: int) -> None:
    found = of(paths * (depth + 1) - 1, {"candidates": paths, "rule": "rrs"})
    assert found == PathSettings(paths, depth, "iid", "rrs")
    assert of(8 * (depth + 1) - 1, {}, "SpecTr") == PathSettings(8, depth, "iid", "kseq")
    assert of(depth, {}) is None
    assert of(depth, {"candidates": 1, "rule": "token"}) is None


def test_settings_of_a_shape_are_read_back(tmp_path: Path) -> None:
    tree, chain = tmp_path / "tree.json", tmp_path / "chain.json"
    TreeShape(((0,), (0, 0), (0, 0, 0), (0, 1), (1,))).write(tree)
    TreeShape.root_branching(1, 4).write(chain)
    found = of(8, {"shape": str(tree)})
    assert found is not None
    assert (found.paths, found.depth, found.tokens) == (3, 3, 8)
    assert of(4, {"shape": str(chain)}) is None  # one path, served as a chain


@pytest.mark.parametrize("tokens", [1, 13, 15])
def test_a_list_that_no_draft_length_gives_is_refused(tokens: int) -> None:
    with pytest.raises(ConfigurationError, match=f"{tokens} tokens a step"):
        of(tokens, {"candidates": 3})


def model(**changed: Any) -> Any:
    kinds = changed.pop("layer_types", None)
    facts = dict.fromkeys(
        ("is_hybrid", "is_attention_free", "use_mla", "is_encoder_decoder", "uses_mrope"), False
    )
    text = SimpleNamespace() if kinds is None else SimpleNamespace(layer_types=kinds)
    return SimpleNamespace(**(facts | changed), hf_text_config=text)


def config(hybrid_off: bool | None = None, **changed: Any) -> Any:
    scheduler = SimpleNamespace(disable_hybrid_kv_cache_manager=hybrid_off)
    return SimpleNamespace(model_config=model(**changed), scheduler_config=scheduler)


def test_ordinary_models_are_served() -> None:
    refuse_model(config())
    refuse_model(config(layer_types=["full_attention"] * 3))
    refuse_model(config(hybrid_off=True, layer_types=["full_attention", "sliding_attention"]))


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        ("is_hybrid", "state-space layers"),
        ("is_attention_free", "state-space layers"),
        ("use_mla", "multi-head latent attention"),
        ("is_encoder_decoder", "encoder-decoder"),
        ("uses_mrope", "rotary positions"),
    ],
)
def test_models_that_cannot_be_served(fact: str, words: str) -> None:
    from vllm.config import ModelConfig

    assert hasattr(ModelConfig, fact)
    with pytest.raises(ConfigurationError, match=words) as refused:
        refuse_model(config(**{fact: True}))
    assert str(refused.value).endswith("leave it out, or use vllm_plugin.Stand with candidates 1")


@pytest.mark.parametrize("hybrid_off", [None, False])
def test_layers_of_several_kinds_need_one_group(hybrid_off: bool | None) -> None:
    with pytest.raises(ConfigurationError) as refused:
        refuse_model(config(hybrid_off, layer_types=["sliding_attention", "full_attention"] * 4))
    text = str(refused.value)
    assert "full_attention, sliding_attention" in text
    assert "--disable-hybrid-kv-cache-manager" in text


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        (CUDAGraphMode.FULL, CUDAGraphMode.PIECEWISE),
        (CUDAGraphMode.FULL_AND_PIECEWISE, CUDAGraphMode.PIECEWISE),
        (CUDAGraphMode.FULL_DECODE_ONLY, CUDAGraphMode.PIECEWISE),
        (CUDAGraphMode.PIECEWISE, CUDAGraphMode.PIECEWISE),
        (CUDAGraphMode.NONE, CUDAGraphMode.NONE),
        (None, None),
    ],
)
def test_graphs_that_fix_the_rows_are_not_captured(given: Any, becomes: Any) -> None:
    made: Any = SimpleNamespace(
        model_config=SimpleNamespace(disable_cascade_attn=False),
        compilation_config=SimpleNamespace(cudagraph_mode=given),
    )
    adapt(made)
    assert made.compilation_config.cudagraph_mode == becomes
    assert made.model_config.disable_cascade_attn is True


def a_spec(kind: Any, **more: Any) -> Any:
    return kind(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.float32, **more)


def cache(*specs: Any) -> Any:
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=s) for s in specs])


def test_caches_of_one_ordinary_group_are_served() -> None:
    assert cache_problem(cache(a_spec(FullAttentionSpec))) is None
    assert cache_problem(cache(a_spec(FullAttentionSpec, sliding_window=64))) is None
    assert cache_problem(cache(a_spec(SlidingWindowSpec, sliding_window=64))) is None


def test_other_caches_are_refused() -> None:
    full = a_spec(FullAttentionSpec)
    assert "has 2; use vllm_plugin.Stand with candidates 1" in str(cache_problem(cache(full, full)))
    assert "has 0" in str(cache_problem(cache()))
    for spec in (
        MambaSpec(block_size=16, shapes=((1,),), dtypes=(torch.float32,)),
        a_spec(MLAAttentionSpec),
        a_spec(SinkFullAttentionSpec, sink_len=4),
    ):
        text = cache_problem(cache(spec))
        assert text is not None
        assert f"are {type(spec).__name__}; use vllm_plugin.Stand with candidates 1" in text


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What vLLM was given by each start; it makes a configuration of a plain model of it."""
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    monkeypatch.setattr(metrics, "prepare", lambda: None)
    return []


def create(arguments: Arguments, started: list[Any], **facts: Any) -> Any:
    def original(self: Any) -> Any:
        started.append((dict(self.speculative_config), self.scheduler_cls))
        made = config(**facts)
        made.compilation_config = SimpleNamespace(cudagraph_mode=CUDAGraphMode.FULL)
        made.speculative_config = SimpleNamespace(model=self.speculative_config["model"])
        return made

    return guard._guarded(original)(arguments)


def test_the_guard_prepares_checks_and_adapts(started: list[Any]) -> None:
    arguments = Arguments()
    made = create(arguments, started)
    assert started == [(SPECULATIVE | {"num_speculative_tokens": 14}, SCHEDULER)]
    assert arguments == Arguments()
    assert made.model_config.disable_cascade_attn is True
    assert made.compilation_config.cudagraph_mode is CUDAGraphMode.PIECEWISE
    with pytest.raises(ConfigurationError, match="latent attention"):
        create(Arguments(), started, use_mla=True)


def test_the_guard_leaves_one_candidate_alone(started: list[Any]) -> None:
    made = create(Arguments(additional_config=None), started, use_mla=True)
    assert started == [(SPECULATIVE, None)]
    assert made.compilation_config.cudagraph_mode is CUDAGraphMode.FULL


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"additional_config": {"specproof": {"candidates": 17}}}, "candidates is 17"),
        ({"additional_config": {"specproof": {"rule": "kseq"}}}, "candidates to 2..16"),
        ({"scheduler_cls": "my.Scheduler"}, "a scheduler of your own"),
        ({"tensor_parallel_size": 2}, "one worker"),
    ],
)
def test_the_guard_refuses_before_vllm_acts(
    started: list[Any], changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        create(Arguments(**changed), started)
    assert not started


@pytest.mark.parametrize("seam", hooks.PATHS, ids=lambda seam: seam.target.rpartition(":")[2])
def test_a_seam_that_several_need_is_checked_for_several_only(
    started: list[Any], seam: hooks.Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = hooks.problem
    assert right(seam) is None
    monkeypatch.setattr(
        hooks, "problem", lambda hook: "vLLM has changed" if hook is seam else right(hook)
    )
    with pytest.raises(ConfigurationError, match="several candidates: vLLM has changed"):
        create(Arguments(), started)
    assert not started
    create(Arguments(additional_config=None), started)
    assert len(started) == 1
    assert path_engine.SCHEDULER not in started[0]
