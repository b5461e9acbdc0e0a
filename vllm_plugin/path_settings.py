"""How many candidates are drafted, how, and which rule judges them: what goes together, and why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from theory.accepted_mass import LEGAL as RIGHT_FOR
from vllm_plugin.config import MAX_DRAFT_LENGTH, SECTION, ConfigurationError, Options
from vllm_plugin.path_scratch import scratch_blocks

if TYPE_CHECKING:
    from proposers.shape import TreeShape

CHAIN_RULES = ("block", "token", "match")
"""Rules for one candidate, the default first."""
SEVERAL = ("Stand", "SpecTr")
"""Proposers that draft several candidates."""
DRAFTING = ("iid", "without_replacement", "top_plus_one", "beam")
SHAPED = ("without_replacement", "top_plus_one")
"""Ways of drafting that can fill a tree of a given shape."""
SPECTR_CANDIDATES = 8
LEGAL: dict[str, frozenset[str]] = {
    str(rule): frozenset({*drafts, *(["beam"] if "without_replacement" in drafts else [])})
    for rule, drafts in RIGHT_FOR.items()
    if rule not in ("token", "sparse_optimal")
} | {"sparse_optimal": frozenset(map(str, RIGHT_FOR["sparse_optimal"]))}
"""The ways of drafting that each rule for several candidates is lossless for.

Beam search draws a node's candidates without replacement too, but how many of them there are
depends on those drawn before; sparse_optimal needs a number that does not.
"""
RULE_OF = {
    "iid": "kseq",
    "without_replacement": "rrs_without_replacement",
    "top_plus_one": "top_plus_one",
    "beam": "rrs_without_replacement",
}
DRAFTING_OF = {
    "kseq": "iid",
    "rrs": "iid",
    "rrs_without_replacement": "without_replacement",
    "sparse_optimal": "without_replacement",
    "top_plus_one": "top_plus_one",
    "match": "without_replacement",
}


@dataclass(frozen=True)
class PathSettings:
    """Several candidates: ``paths`` of up to ``depth`` drafts, how they are drawn and judged."""

    paths: int
    depth: int
    drafting: str
    rule: str
    shape: TreeShape | None = None

    @cached_property
    def tokens(self) -> int:
        """Most entries of the flat list of drafts that the engine is given for a request."""
        if self.shape is None:
            return self.paths * (self.depth + 1) - 1
        parents = {node[:-1] for node in self.shape.nodes}
        leaves = [node for node in self.shape.nodes if node not in parents]
        return sum(len(leaf) + 1 for leaf in leaves) - 1

    def hidden_blocks(self, vllm_config: Any, num_blocks: int, block_size: int) -> int:
        """Scratch blocks: scheduler and runner compute the same number from the same facts."""
        return scratch_blocks(
            paths=self.paths,
            depth=self.depth,
            block_size=block_size,
            num_blocks=num_blocks,
            max_num_seqs=vllm_config.scheduler_config.max_num_seqs,
            max_model_len=vllm_config.model_config.max_model_len,
        )

    def hidden_blocks_of(self, runner: Any) -> int:
        """:meth:`hidden_blocks` for a runner."""
        cache = runner.kv_cache_config
        block_size = cache.kv_cache_groups[0].kv_cache_spec.block_size
        return self.hidden_blocks(runner.vllm_config, cache.num_blocks, block_size)


def chain_rule(options: Options) -> str:
    """The rule where one candidate is drafted."""
    return options.rule or CHAIN_RULES[0]


def asks_for_several(proposer: str, options: Options) -> bool:
    """Whether a proposer, by class name, is asked for several candidates."""
    return proposer == "SpecTr" or options.shape is not None or (options.candidates or 1) > 1


def resolve(proposer: str, options: Options, draft_length: int) -> PathSettings | None:
    """The settings of a proposer, by class name; None where it drafts one candidate.

    Raises
    ------
    ConfigurationError
        For what does not go together, in one sentence that names what does.
    """
    shape = None if options.shape is None else _shape(proposer, options, draft_length)
    paths = _paths(proposer, options, shape)
    if paths == 1:
        for name in ("drafting", "branching"):
            if getattr(options, name) is not None:
                raise _wrong(
                    f"{name} is {getattr(options, name)!r}, but candidates is 1; set it to 2..16"
                )
        if chain_rule(options) not in CHAIN_RULES:
            raise _wrong(
                f"rule is {options.rule!r}, which judges several candidates, but candidates is 1; "
                f"set candidates to 2..16, or rule to one of {', '.join(CHAIN_RULES)}"
            )
        return None
    if proposer not in SEVERAL:
        raise _wrong(
            f"candidates is {paths}, but vllm_plugin.{proposer} drafts one; "
            f"those that draft several are {', '.join(f'vllm_plugin.{name}' for name in SEVERAL)}"
        )
    rule, drafting = _pair(proposer, options)
    if shape is not None and drafting not in SHAPED:
        raise _wrong(
            f"shape is given, but drafting is {drafting!r}; a shape can be filled by "
            f"{' or '.join(SHAPED)}"
        )
    if options.branching is not None and (shape is not None or drafting not in SHAPED):
        other = "a shape is given" if shape is not None else f"drafting is {drafting!r}"
        raise _wrong(f"branching is {options.branching!r}, but {other}; leave branching out")
    if options.branching == "root":
        shape = _root_branching(paths, draft_length)
    settings = PathSettings(paths, draft_length, drafting, rule, shape)
    if settings.tokens > MAX_DRAFT_LENGTH:
        raise _wrong(
            f"{paths} candidates of num_speculative_tokens {draft_length} take {settings.tokens} "
            f"tokens a request and step, but vLLM allows {MAX_DRAFT_LENGTH}; make one of them less"
        )
    return settings


def _paths(proposer: str, options: Options, shape: TreeShape | None) -> int:
    if shape is not None:
        if options.candidates not in (None, shape.paths):
            raise _wrong(
                f"candidates is {options.candidates}, but the shape has {shape.paths} leaves; "
                "leave candidates out where a shape is given"
            )
        return shape.paths
    if proposer == "SpecTr":
        if options.candidates == 1:
            raise _wrong("candidates is 1, but vllm_plugin.SpecTr needs 2..16")
        return options.candidates or SPECTR_CANDIDATES
    return options.candidates or 1


def _shape(proposer: str, options: Options, draft_length: int) -> TreeShape:
    from proposers.shape import TreeShape

    assert options.shape is not None
    if proposer != "Stand":
        raise _wrong(f"shape is given, but only vllm_plugin.Stand takes one, not {proposer}")
    try:
        shape = TreeShape.read(Path(options.shape))
    except ValueError as error:
        raise _wrong(f"shape: {error}") from None
    if shape.depth != draft_length:
        raise ConfigurationError(
            f"--speculative-config: num_speculative_tokens is {draft_length}, but the shape in "
            f"{options.shape} is {shape.depth} tokens deep; set it to {shape.depth}"
        )
    return shape


def _root_branching(paths: int, depth: int) -> TreeShape:
    from proposers.shape import TreeShape

    return TreeShape.root_branching(paths, depth)


def _pair(proposer: str, options: Options) -> tuple[str, str]:
    """Rule and drafting, each taken from the other where it is not given."""
    rule: str | None = options.rule
    drafting: str | None = options.drafting
    if rule in ("block", "token"):
        raise _wrong(
            f"rule is {rule!r}, which judges one candidate; for several it must be one of "
            f"{', '.join(LEGAL)}"
        )
    if proposer == "SpecTr":
        if drafting not in (None, "iid"):
            raise _wrong(f"drafting is {drafting!r}, but vllm_plugin.SpecTr drafts 'iid'")
        drafting = "iid"
    if drafting is None:
        drafting = "top_plus_one" if rule is None else DRAFTING_OF[rule]
    if rule is None:
        rule = RULE_OF[drafting]
    if drafting not in LEGAL[rule]:
        legal = sorted(name for name, drafts in LEGAL.items() if drafting in drafts)
        raise _wrong(
            f"rule {rule!r} is not lossless for drafting {drafting!r}; it is for "
            f"{', '.join(sorted(LEGAL[rule]))}, and this drafting has the rules {', '.join(legal)}"
        )
    return rule, drafting


def _wrong(sentence: str) -> ConfigurationError:
    return ConfigurationError(f"--additional-config: {SECTION}: {sentence}")
