"""Drafters by name, with the options that the plugin takes under ``specproof``.

Names, option names and defaults are those of vllm_plugin.config.Options (a test holds the two
together), so that what a replay finds can be given to the engine as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from proposers.aded import AdedDrafter
from proposers.batch import Drafter
from proposers.chooser import ChooserDrafter
from proposers.prompt_lookup import PromptLookupDrafter
from proposers.stand import StandDrafter
from proposers.suffix import SuffixDrafter
from proposers.table import ENTRIES, MAX_ORDER, StandTable, bytes_per_slot
from proposers.token_recycling import TokenRecyclingDrafter
from proposers.trigrams import TrigramTable

Options = Mapping[str, Any]
_SPARSE = 32  # slots for each context: nine of them in one bucket of eight are not to be expected
ENGINE_OPTIONS = (
    "rule", "candidates", "drafting", "branching", "shape", "table_path", "table_save_minutes",
    "length", "h", "step_times_path",
)  # fmt: skip
"""Options of the plugin that are no drafter's: allowed beside a drafter's own, and not read."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One drafter: how to build it, the options it reads with their defaults, and its class.

    ``build(options, draft_length, seed)`` gets every option of ``defaults``. A drafter whose chain
    of K drafts does not begin with its chain of fewer ``depends_on_length``: it has to be profiled
    for each K.
    """

    build: Callable[[Options, int, int], Drafter]
    defaults: Options
    engine_class: str
    depends_on_length: bool = False


def _stand(options: Options, draft_length: int, seed: int) -> Drafter:
    cap = options["count_cap"]
    table = StandTable(
        order=options["order"],
        budget_bytes=options["table_mib"] * 2**20,
        entries=options["entries"],
        decay=options["decay"],
        count_cap=math.inf if cap is None else cap,
        emitted_weight=options["emitted_weight"],
    )
    return StandDrafter(
        table,
        draft_length=draft_length,
        seed=seed,
        prompt_visits=options["prompt_visits"],
        min_survival=options["min_survival"],
        interpolation=options["interpolation"],
    )


def _prompt_lookup(options: Options, draft_length: int, seed: int) -> Drafter:
    return PromptLookupDrafter(
        draft_length=draft_length,
        longest=options["longest_match"],
        shortest=options["shortest_match"],
        occurrence=options["occurrence"],
    )


def _suffix(options: Options, draft_length: int, seed: int) -> Drafter:
    return SuffixDrafter(
        draft_length=draft_length,
        max_tree_depth=options["suffix_max_tree_depth"],
        max_spec_factor=options["suffix_max_spec_factor"],
        min_token_prob=options["suffix_min_token_prob"],
        max_cached_requests=options["suffix_max_cached_requests"],
    )


def _token_recycling(options: Options, draft_length: int, seed: int) -> Drafter:
    return TokenRecyclingDrafter(draft_length=draft_length, prompt_visits=options["prompt_visits"])


def _aded(options: Options, draft_length: int, seed: int) -> Drafter:
    return AdedDrafter(
        TrigramTable(budget_bytes=options["table_mib"] * 2**20),
        draft_length=draft_length,
        rounds=options["search_rounds"],
        exploration=options["exploration"],
        prompt_visits=options["prompt_visits"],
    )


def _chooser(options: Options, draft_length: int, seed: int) -> Drafter:
    names = options["members"]
    for name in names:
        if name not in MEMBERS:
            raise ValueError(f"members has {name!r}; it may hold {', '.join(MEMBERS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"members is {', '.join(names)}; each can be named once")
    kinds = {name: MEMBERS[name] for name in names}
    return ChooserDrafter(
        {
            name: kind.build({key: options[key] for key in kind.defaults}, draft_length, seed)
            for name, kind in kinds.items()
        },
        draft_length=draft_length,
    )


MEMBERS: dict[str, Kind] = {
    "stand": Kind(
        _stand,
        {
            "order": 6,
            "table_mib": 256,
            "entries": 10,
            "decay": 0.5,
            "count_cap": None,
            "emitted_weight": 0.7,
            "prompt_visits": True,
            "min_survival": 0.05,
            "interpolation": 1.0,
        },
        "vllm_plugin.Stand",
    ),
    "prompt_lookup": Kind(
        _prompt_lookup,
        {"longest_match": 4, "shortest_match": 1, "occurrence": "latest"},
        "vllm_plugin.PromptLookup",
    ),
    "suffix": Kind(
        _suffix,
        {
            "suffix_max_tree_depth": 24,
            "suffix_max_spec_factor": 1.0,
            "suffix_min_token_prob": 0.1,
            "suffix_max_cached_requests": 10_000,
        },
        "vllm_plugin.Suffix",
        depends_on_length=True,
    ),
    "token_recycling": Kind(
        _token_recycling, {"prompt_visits": True}, "vllm_plugin.TokenRecycling"
    ),
    "aded": Kind(
        _aded,
        {"table_mib": 256, "search_rounds": 32, "exploration": 1.25, "prompt_visits": True},
        "vllm_plugin.Aded",
        depends_on_length=True,
    ),
}


DRAFTERS: dict[str, Kind] = MEMBERS | {
    "chooser": Kind(
        _chooser,
        {key: value for kind in MEMBERS.values() for key, value in kind.defaults.items()}
        | {"members": ["stand", "prompt_lookup"]},
        "vllm_plugin.Chooser",
        depends_on_length=True,
    )
}


def make_drafter(
    name: str,
    options: Options | None = None,
    *,
    draft_length: int,
    seed: int = 0,
    tokens: int | None = None,
) -> Callable[[], Drafter]:
    """A function that builds the drafter, a fresh one with the same noise at every call.

    ``tokens`` is the most text that it will be shown (:func:`proposers.replay.most_tokens`): a
    table is then not built larger than what so few tokens leave nearly empty, where nothing is
    ever evicted and its size makes no difference but to the time it takes to build.

    ``options`` may hold options of other drafters too, as the plugin's own section does; they are
    not read. One drafter is built here already, with a small table, to check the values.

    Raises
    ------
    ValueError
        In one sentence, for an unknown drafter or option, and for a value that is not allowed.
    ImportError
        In one sentence, when the package behind a drafter is not installed.
    """
    if name not in DRAFTERS:
        raise ValueError(f"no drafter is called {name!r}; there are {', '.join(DRAFTERS)}")
    kind, given = DRAFTERS[name], dict(options or {})
    known = {key: value for each in DRAFTERS.values() for key, value in each.defaults.items()}
    for key, value in given.items():
        if key not in known and key not in ENGINE_OPTIONS:
            raise ValueError(
                f"no drafter has an option {key!r}; the options are {', '.join(sorted(known))}"
            )
        if key in known and not _alike(value, known[key]):
            raise ValueError(f"{key} is {value!r}, which is not of the kind of {known[key]!r}")
    chosen: dict[str, Any] = {k: given.get(k, value) for k, value in kind.defaults.items()}
    least = {"table_mib": min(chosen["table_mib"], 1)} if "table_mib" in chosen else {}
    kind.build(chosen | least, draft_length, seed)
    if "table_mib" in chosen and tokens is not None:
        width = chosen.get("entries", ENTRIES)
        slots = _SPARSE * chosen.get("order", MAX_ORDER) * tokens
        chosen["table_mib"] = min(chosen["table_mib"], 1 + (slots * bytes_per_slot(width) >> 20))
    return lambda: kind.build(chosen, draft_length, seed)


def _alike(value: object, default: object) -> bool:
    """Whether a value has the type that an option's default shows; None stands for a number."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if default is None or isinstance(default, float):
        return isinstance(value, (int, float)) or (value is None and default is None)
    return isinstance(value, type(default))
