"""What one request may ask of us: ``vllm_xargs`` over HTTP, ``SamplingParams.extra_args`` else.

``specproof_max_draft`` is the most tokens that are drafted ahead for the request, 0 for none;
``specproof_group`` names who shares its text: what other groups wrote never shapes its drafts.
Wrong values are refused at the door, so the engine reads checked ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_plugin.config import ConfigurationError, Options

PREFIX = "specproof_"
MAX_DRAFT = "specproof_max_draft"
GROUP = "specproof_group"
LONGEST_NAME = 256
NO_LIMIT = 1 << 30
NO_GROUPS = "specproof_no_groups"
"""Name of a mark on vLLM's speculative configuration: why requests may not name groups."""


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """``max_draft`` tokens at most; ``group`` is None for those that share with everyone."""

    max_draft: int = NO_LIMIT
    group: str | None = None


DEFAULTS = RequestOptions()
_UNMARKED = "unmarked"


def read(extra_args: Mapping[str, Any] | None) -> RequestOptions:
    """The options in a request's extra arguments; those of others are left alone.

    Raises
    ------
    ConfigurationError
        One sentence that names the argument, what was given and what is allowed.
    """
    if not extra_args:
        return DEFAULTS
    given = {
        name: value
        for name, value in extra_args.items()
        if isinstance(name, str) and name.startswith(PREFIX)
    }
    unknown = sorted(set(given) - {MAX_DRAFT, GROUP})
    if unknown:
        raise ConfigurationError(
            f"{_short(unknown[0])} is no argument of specproof; its arguments are {GROUP} and "
            f"{MAX_DRAFT}"
        )
    max_draft, group = given.get(MAX_DRAFT, NO_LIMIT), given.get(GROUP)
    whole = isinstance(max_draft, int) and not isinstance(max_draft, bool)
    if not whole or not 0 <= max_draft <= NO_LIMIT:
        raise ConfigurationError(
            f"{MAX_DRAFT} is {_short(max_draft)}, but must be a whole number from 0 to {NO_LIMIT}: "
            "the most tokens drafted ahead for this request"
        )
    if GROUP in given and not _is_name(group):
        raise ConfigurationError(
            f"{GROUP} is {_short(group)}, but must be a text of 1 to {LONGEST_NAME} characters: "
            "the name of those who share drafts"
        )
    return RequestOptions(max_draft, group)


def _is_name(group: Any) -> bool:
    if not isinstance(group, str) or not 0 < len(group) <= LONGEST_NAME:
        return False
    try:
        group.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no message can carry
        return False
    return True


def _short(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) < 80 else shown[:77] + "..."


def check(extra_args: Mapping[str, Any] | None, speculative_config: Any) -> None:
    """Refuse a request's wrong arguments; as :func:`read`, and groups where nothing keeps them."""
    if read(extra_args).group is None:
        return
    wrong = getattr(speculative_config, NO_GROUPS, _UNMARKED)
    if wrong is _UNMARKED:  # a configuration that did not come through our door
        members = Options.model_validate({"members": ["suffix"]})  # a chooser's are not known here
        wrong = no_groups(speculative_config.model.rpartition(".")[2], members)
    if wrong is not None:
        raise ConfigurationError(f"{GROUP} cannot be kept: {wrong}")


def mark(speculative_config: Any, proposer: str, options: Options) -> None:
    """Note on an engine's configuration, which every front end gets, if groups cannot be kept."""
    setattr(speculative_config, NO_GROUPS, no_groups(proposer, options))


def no_groups(proposer: str, options: Options) -> str | None:
    """Why a proposer, by class name, cannot keep groups apart; None where it can."""
    names = {"Suffix": "suffix", "TokenRecycling": "token_recycling", "Aded": "aded"}
    sharing = [names[proposer]] if proposer in names else []
    if proposer == "Chooser":
        sharing = [member for member in options.members if member in names.values()]
    if not sharing:
        return None
    return (
        f"vllm_plugin.{proposer} drafts with {sharing[0]}, which learns from all requests alike; "
        "use vllm_plugin.Stand, SpecTr or PromptLookup"
    )
