"""The classes that ``--speculative-config`` names; vLLM builds one per model runner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from proposers import Drafter, StandDrafter
from proposers.path_stand import StandPathDrafter
from proposers.replay.drafters import DRAFTERS
from vllm_plugin import (
    draft_delivery,
    hooks,
    length_settings,
    let_through,
    path_engine,
    path_settings,
    row_log,
    runner_hooks,
    stopwatch,
    table_keeper,
)
from vllm_plugin.adapter_v1 import V1Adapter
from vllm_plugin.config import ConfigurationError, Options, read_options
from vllm_plugin.length_control import LengthControl
from vllm_plugin.path_adapter import PathAdapter
from vllm_plugin.provenance import hardware
from vllm_plugin.sparse_flow import MAX_SUPPORT
from vllm_plugin.warm_up import warm_up, warm_up_lengths

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class Proposer:
    """vLLM's side of a drafter: what the V1 runner's ``custom_class`` interface asks for."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        wrong = hooks.speculation_problem()
        if wrong:
            raise ConfigurationError(f"specproof refuses to speculate: {wrong}")
        speculative = vllm_config.speculative_config
        assert speculative is not None
        self.options = length_settings.with_length(self.read_options(vllm_config))
        self.paths = path_engine.settings_of(vllm_config)
        self.draft_length = speculative.num_speculative_tokens
        if self.paths is not None:
            self.draft_length = self.paths.depth
        drafter = self._drafter(self.options, vllm_config.model_config.seed or 0)
        self.keeper = table_keeper.keep(drafter, self.options, vllm_config)
        self._device = getattr(vllm_config.device_config, "device", None)
        common: dict[str, Any] = {
            "order": self.options.order,
            "entries": self.options.entries,
            "max_model_len": vllm_config.model_config.max_model_len,
            "row_log": row_log.asked_for(),
            "control": self._control(),
        }
        self.adapter: V1Adapter
        if self.paths is not None:
            assert isinstance(drafter, StandPathDrafter)
            self.adapter = PathAdapter(drafter, self.paths, **common)
        else:
            rule = path_settings.chain_rule(self.options)
            self.adapter = V1Adapter(drafter, rule=rule, draft_length=self.draft_length, **common)
        runner_hooks.install(paths=self.paths is not None)
        let_through.install_in_runner()
        draft_delivery.install_in_worker()
        stopwatch.install_if_asked()

    def read_options(self, vllm_config: VllmConfig) -> Options:
        """The server's options."""
        return read_options(vllm_config.additional_config)

    def make_drafter(self, options: Options, draft_length: int, seed: int) -> Drafter:
        """The drafter behind this class."""
        raise NotImplementedError

    def _control(self) -> LengthControl:
        return length_settings.make_control(
            self.options,
            self.draft_length,
            trees=self.paths is not None,
            hardware=hardware(self._device),
        )

    def _drafter(self, options: Options, seed: int) -> Drafter:
        """The class's drafter, of several paths if they are asked for."""
        drafter = self.make_drafter(options, self.draft_length, seed)
        if self.paths is None:
            return drafter
        assert isinstance(drafter, StandDrafter)
        beam = self.paths.drafting == "beam"
        return StandPathDrafter(
            drafter.table,
            draft_length=self.paths.depth,
            candidates=self.paths.paths,
            drafting=self.paths.drafting,
            shape=self.paths.shape,
            max_support=MAX_SUPPORT if self.paths.rule == "sparse_optimal" else None,
            max_paths=self.paths.paths if beam else None,
            seed=seed,
            prompt_visits=options.prompt_visits,
            min_survival=options.min_survival,
            interpolation=options.interpolation,
        )

    def load_model(self, model: Any) -> None:
        """There is no draft model; what is compiled on first use is compiled now instead."""
        small = self.options.model_copy(update={"table_mib": 1})
        drafter = self._drafter(small, 0)
        warm_up(drafter)
        if self.options.length != "fixed":
            warm_up_lengths(self._control(), drafter)

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: np.ndarray,
        token_ids_cpu: np.ndarray,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Drafts for every request that sampled a token in this step."""
        return self.adapter.propose(sampled_token_ids, num_tokens_no_spec, token_ids_cpu)


def _built(name: str, options: Options, draft_length: int, seed: int) -> Drafter:
    """A drafter made as a replay makes it."""
    kind = DRAFTERS[name]
    chosen = {option: getattr(options, option) for option in kind.defaults}
    return kind.build(chosen, draft_length, seed)


class Stand(Proposer):
    """STAND: stochastic drafts from a table of the target's own laws (arXiv 2506.04708)."""

    def make_drafter(self, options: Options, draft_length: int, seed: int) -> Drafter:
        """A STAND table shared by all requests of the server, and its drafter."""
        return _built("stand", options, draft_length, seed)


class SpecTr(Stand):
    """SpecTr: k independent sequences, verified together by K-SEQ (arXiv 2310.15141).

    The drafts come from STAND's table. The paper's defaults are k = 8 sequences and K = 8 tokens
    (num_speculative_tokens).
    """


class PromptLookup(Proposer):
    """Prompt lookup with back-off: deterministic drafts copied from the request's own text."""

    def make_drafter(self, options: Options, draft_length: int, seed: int) -> Drafter:
        """A stateless look-up of the longest earlier match."""
        return _built("prompt_lookup", options, draft_length, seed)


class Suffix(Proposer):
    """Suffix decoding through ``arctic-inference``, as in vLLM (arXiv 2411.04975)."""

    def make_drafter(self, options: Options, draft_length: int, seed: int) -> Drafter:
        """Suffix trees of each request's text and of all answers."""
        return _built("suffix", options, draft_length, seed)


class TokenRecycling(Proposer):
    """Token Recycling: a chain of the target's last candidates (arXiv 2408.08696)."""

    def make_drafter(self, options: Options, draft_length: int, seed: int) -> Drafter:
        """An adjacency table shared by all requests of the server."""
        return _built("token_recycling", options, draft_length, seed)


class Aded(Proposer):
    """ADED: a search in a table of tri-grams (arXiv 2407.12021)."""

    def make_drafter(self, options: Options, draft_length: int, seed: int) -> Drafter:
        """A tri-gram table shared by all requests of the server, and its search."""
        return _built("aded", options, draft_length, seed)


class Chooser(Proposer):
    """Several drafters score every emitted token; the one expected to gain most drafts."""

    def make_drafter(self, options: Options, draft_length: int, seed: int) -> Drafter:
        """The members that the options name, and their chooser."""
        return _built("chooser", options, draft_length, seed)
