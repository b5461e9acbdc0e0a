"""How many candidates, how drawn, how judged: what goes together, and the sentence for what not."""

import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from proposers import path_batch
from proposers.shape import TreeShape
from theory.accepted_mass import LEGAL as RIGHT_FOR
from vllm_plugin import PROPOSERS
from vllm_plugin.backends import CHAIN_RULES as BACKENDS_RULES
from vllm_plugin.config import MAX_DRAFT_LENGTH, ConfigurationError, Rule, read_options
from vllm_plugin.nodes import RULES
from vllm_plugin.path_scratch import scratch_blocks
from vllm_plugin.path_settings import (
    CHAIN_RULES,
    DRAFTING,
    DRAFTING_OF,
    LEGAL,
    RULE_OF,
    SHAPED,
    PathSettings,
    asks_for_several,
    chain_rule,
    resolve,
)

ROOT = Path(__file__).parents[2]


def settings(proposer: str = "Stand", length: int = 4, **options: Any) -> PathSettings | None:
    return resolve(proposer, read_options({"specproof": options}), length)


def refusal(proposer: str = "Stand", length: int = 4, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as refused:
        settings(proposer, length, **options)
    text = str(refused.value)
    assert "\n" not in text
    assert text.startswith(("--additional-config: specproof: ", "--speculative-config: "))
    return text


def test_the_tables_are_those_of_the_modules_that_do_the_work() -> None:
    assert path_batch.DRAFTING == DRAFTING
    assert sorted(CHAIN_RULES) == sorted(BACKENDS_RULES)
    assert set(LEGAL) | set(CHAIN_RULES) == set(get_args(Rule))
    assert set(LEGAL) == set(RULES) - {"token"}
    for rule, drafts in LEGAL.items():
        assert drafts - {"beam"} == set(RIGHT_FOR[rule])
    assert {rule for rule, drafts in LEGAL.items() if "beam" in drafts} == {
        "match", "rrs_without_replacement",
    }  # fmt: skip


def test_what_is_chosen_for_the_user_is_legal() -> None:
    assert set(RULE_OF) == set(DRAFTING)
    assert set(DRAFTING_OF) == set(LEGAL)
    assert all(drafting in LEGAL[rule] for drafting, rule in RULE_OF.items())
    assert all(drafting in LEGAL[rule] for rule, drafting in DRAFTING_OF.items())


@pytest.mark.parametrize(("rule", "drafting"), list(product(LEGAL, DRAFTING)))
def test_every_pair_is_taken_or_refused(rule: str, drafting: str) -> None:
    asked: Any = {"candidates": 3, "rule": rule, "drafting": drafting}
    if drafting in LEGAL[rule]:
        found = settings(**asked)
        assert found == PathSettings(3, 4, drafting, rule)
        return
    text = refusal(**asked)
    assert f"rule {rule!r} is not lossless for drafting {drafting!r}" in text
    assert all(name in text for name in LEGAL[rule])
    legal = [name for name in LEGAL if drafting in LEGAL[name]]
    assert text.endswith(f"has the rules {', '.join(sorted(legal))}")


@pytest.mark.parametrize("drafting", DRAFTING)
def test_a_rule_is_taken_for_the_drafting(drafting: str) -> None:
    found = settings(candidates=2, drafting=drafting)
    assert found is not None
    assert (found.rule, found.drafting) == (RULE_OF[drafting], drafting)


@pytest.mark.parametrize("rule", LEGAL)
def test_a_drafting_is_taken_for_the_rule(rule: str) -> None:
    found = settings(candidates=2, rule=rule)
    assert found is not None
    assert (found.rule, found.drafting) == (rule, DRAFTING_OF[rule])


def test_defaults() -> None:
    assert settings() is None
    assert settings(candidates=1) is None
    assert settings(candidates=2) == PathSettings(2, 4, "top_plus_one", "top_plus_one")
    assert settings("SpecTr", 8) == PathSettings(8, 8, "iid", "kseq")
    assert settings("SpecTr", candidates=3, rule="rrs") == PathSettings(3, 4, "iid", "rrs")
    assert chain_rule(read_options(None)) == "block"
    assert chain_rule(read_options({"specproof": {"rule": "match"}})) == "match"


@pytest.mark.parametrize("proposer", PROPOSERS)
def test_who_drafts_several(proposer: str) -> None:
    options = read_options({"specproof": {"candidates": 2}})
    assert asks_for_several(proposer, options)
    assert asks_for_several(proposer, read_options(None)) is (proposer == "SpecTr")
    if proposer in ("Stand", "SpecTr"):
        assert settings(proposer, candidates=2) is not None
    else:
        text = refusal(proposer, candidates=2)
        assert f"candidates is 2, but vllm_plugin.{proposer} drafts one" in text
        assert "vllm_plugin.Stand, vllm_plugin.SpecTr" in text


@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_one_candidate_has_its_own_rules(rule: str) -> None:
    assert settings(rule=rule) is None
    assert settings("PromptLookup", rule=rule) is None


@pytest.mark.parametrize("rule", sorted(set(LEGAL) - set(CHAIN_RULES)))
def test_a_rule_for_several_needs_several(rule: str) -> None:
    for asked in ({}, {"candidates": 1}):
        text = refusal(rule=rule, **asked)
        assert f"rule is {rule!r}" in text
        assert "candidates to 2..16" in text
        assert "block, token, match" in text


@pytest.mark.parametrize("rule", ["block", "token"])
def test_a_rule_for_one_candidate_cannot_judge_several(rule: str) -> None:
    text = refusal(candidates=2, rule=rule)
    assert f"rule is {rule!r}, which judges one candidate" in text
    assert all(name in text for name in LEGAL)
    assert "rule is" in refusal("SpecTr", rule=rule)


def test_a_drafting_needs_several() -> None:
    assert "drafting is 'iid', but candidates is 1; set it to 2..16" in refusal(drafting="iid")


@pytest.mark.parametrize("drafting", sorted(set(DRAFTING) - {"iid"}))
def test_spectr_drafts_iid(drafting: str) -> None:
    text = refusal("SpecTr", drafting=drafting)
    assert f"drafting is {drafting!r}, but vllm_plugin.SpecTr drafts 'iid'" in text


def test_spectr_needs_several() -> None:
    assert "candidates is 1, but vllm_plugin.SpecTr needs 2..16" in refusal("SpecTr", candidates=1)
    text = refusal("SpecTr", rule="top_plus_one")
    assert "is not lossless for drafting 'iid'" in text


@pytest.mark.parametrize("count", [0, 17, -1, 2.0, "2", True])
def test_candidates_out_of_bounds(count: object) -> None:
    with pytest.raises(ConfigurationError, match=r"specproof\.candidates is"):
        settings(candidates=count)


@pytest.mark.parametrize("name", ["rule", "drafting"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"specproof\.{name} is 'best'"):
        settings(candidates=2, **{name: "best"})


def test_no_more_tokens_than_vllm_verifies() -> None:
    for paths, longest in ((2, 63), (8, 15), (16, 7)):
        found = settings(length=longest, candidates=paths)
        assert found is not None
        assert found.tokens == paths * (longest + 1) - 1 <= MAX_DRAFT_LENGTH
        text = refusal(length=longest + 1, candidates=paths)
        assert f"{paths} candidates of num_speculative_tokens {longest + 1} take" in text
        assert f"but vLLM allows {MAX_DRAFT_LENGTH}" in text


@pytest.fixture
def shape(tmp_path: Path) -> str:
    file = tmp_path / "tree.json"
    TreeShape(((0,), (0, 0), (0, 0, 0), (0, 1), (1,))).write(file)
    return str(file)


@pytest.mark.parametrize("drafting", DRAFTING)
def test_a_shape_is_filled_without_replacement(shape: str, drafting: str) -> None:
    asked: Any = {"shape": shape, "drafting": drafting}
    if drafting in SHAPED:
        found = settings(length=3, **asked)
        assert found is not None
        assert (found.paths, found.depth, found.drafting) == (3, 3, drafting)
        assert found.tokens == len("abc,ab,a")
        assert found.shape is not None
        assert found.shape.paths == 3
    else:
        text = refusal(length=3, **asked)
        assert f"shape is given, but drafting is {drafting!r}" in text
        assert "without_replacement or top_plus_one" in text


def test_a_shape_says_how_many_candidates_and_how_deep(shape: str) -> None:
    assert settings(length=3, shape=shape) == settings(length=3, shape=shape, candidates=3)
    text = refusal(length=3, shape=shape, candidates=2)
    assert "candidates is 2, but the shape has 3 leaves" in text
    text = refusal(length=4, shape=shape)
    assert "num_speculative_tokens is 4" in text
    assert text.endswith("is 3 tokens deep; set it to 3")
    assert "only vllm_plugin.Stand takes one" in refusal("SpecTr", 3, shape=shape)
    assert "not PromptLookup" in refusal("PromptLookup", 3, shape=shape)


def test_a_shape_that_is_none(tmp_path: Path) -> None:
    assert "shape: the tree shape" in refusal(shape=str(tmp_path / "nowhere.json"))
    file = tmp_path / "bad.json"
    file.write_text("{}")
    assert f"shape: {file} is no tree shape" in refusal(shape=str(file))


def test_a_shape_of_one_chain_is_one_candidate(tmp_path: Path) -> None:
    file = tmp_path / "chain.json"
    TreeShape.root_branching(1, 4).write(file)
    assert settings(shape=str(file)) is None
    assert "candidates is 1" in refusal(shape=str(file), rule="kseq")


def test_scheduler_and_runner_hide_the_same_blocks() -> None:
    found = settings(candidates=4)
    assert found is not None
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=6),
        model_config=SimpleNamespace(max_model_len=512),
    )
    expected = scratch_blocks(
        paths=4, depth=4, block_size=16, num_blocks=900, max_num_seqs=6, max_model_len=512
    )
    assert expected > 0
    assert found.hidden_blocks(config, 900, 16) == expected
    spec = SimpleNamespace(block_size=16)
    cache = SimpleNamespace(num_blocks=900, kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec)])
    runner = SimpleNamespace(kv_cache_config=cache, vllm_config=config)
    assert found.hidden_blocks_of(runner) == expected


IN_A_PROCESS = """
import sys
from vllm_plugin import guard, path_engine, path_settings
from vllm_plugin.config import read_options
options = read_options({"specproof": {"shape": sys.argv[1]}})
assert path_settings.resolve("Stand", options, 3).paths == 3
assert not {"numba", "llvmlite", "torch", "vllm"} & set(sys.modules)
"""


def test_reading_settings_loads_no_compiler(shape: str) -> None:
    """The guard reads them in every vLLM process; a CPU worker fails once llvmlite is loaded."""
    subprocess.run([sys.executable, "-c", IN_A_PROCESS, shape], check=True, cwd=ROOT)
