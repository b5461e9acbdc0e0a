"""Many settings on one trace: every drafter is walked along it as seldom as possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from proposers.replay.drafters import DRAFTERS, Options, make_drafter
from proposers.replay.path_scoring import PATH_RULES, score_paths
from proposers.replay.paths import PathProfile, profile_paths
from proposers.replay.profiling import Order, Profile, Share, most_tokens, profile
from proposers.replay.scoring import RULES, Score, score
from theory.acceptance import Rule
from theory.accepted_mass import LEGAL, check_drafts
from theory.optimum import Drafts
from theory.traces import Trace

DEFAULT_RULE: dict[Drafts, str] = {
    "iid": "kseq",
    "without_replacement": "rrs_without_replacement",
    "top_plus_one": "top_plus_one",
}
DEFAULT_DRAFTS: Drafts = "top_plus_one"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of a simulation; ``drafts`` is None for one candidate."""

    drafter: str
    draft_length: int
    candidates: int
    rule: str
    drafts: Drafts | None

    @property
    def how(self) -> tuple[int, int, str]:
        """What two drafters must have in common to be compared."""
        return (self.draft_length, self.candidates, self.rule)


def resolve(
    drafters: Sequence[str],
    draft_lengths: Sequence[int],
    candidates: Sequence[int],
    rule: str | None,
    drafts: str | None,
) -> list[Setting]:
    """Every combination, with the rule and the way of drafting that were left open.

    One candidate is judged by "token", "block" (the default) or "match"; what a rule for several
    does with one is the token rule. Several are drafted as the rule needs, top_plus_one unless
    anything is given.

    Raises
    ------
    ValueError
        For an unknown name, and for a rule that is not right for so many candidates or for these
        drafts, with what is legal.
    """
    if drafts is not None and drafts not in get_args(Drafts):
        raise ValueError(f"drafts must be one of {', '.join(get_args(Drafts))}; got {drafts!r}")
    if rule is not None and rule not in (*RULES, *PATH_RULES):
        names = ", ".join(dict.fromkeys((*RULES, *PATH_RULES)))
        raise ValueError(f"rule must be one of {names}; got {rule!r}")
    found = []
    for drafter in drafters:
        for count in candidates:
            if count == 1:
                one = rule if rule in RULES else ("token" if rule else "block")
                found += [Setting(drafter, k, 1, one, None) for k in draft_lengths]
                continue
            way, judge = _for_several(rule, cast("Drafts | None", drafts))
            found += [Setting(drafter, k, count, judge, way) for k in draft_lengths]
    return found


def _for_several(rule: str | None, drafts: Drafts | None) -> tuple[Drafts, str]:
    if rule is None:
        way = drafts or DEFAULT_DRAFTS
        return way, DEFAULT_RULE[way]
    if rule not in PATH_RULES:
        fit = [name for name in PATH_RULES if drafts is None or drafts in LEGAL[cast(Rule, name)]]
        raise ValueError(
            f"rule {rule!r} is for one candidate; several "
            + (f"{drafts} drafts " if drafts else "")
            + f"go with {', '.join(fit)}"
        )
    return check_drafts(cast(Rule, rule), drafts), rule


def simulate(
    trace: Trace,
    settings: Sequence[Setting],
    *,
    options: Options | None = None,
    share: Share = "all",
    order: Order = "sequential",
    step_times: NDArray[np.float64] | None = None,
    seed: int = 0,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[Setting, Score]]:
    """Score every setting, in the order given; a drafter is walked once for all that share a walk.

    ``advance`` is told of the tokens of each walk; there are `walks` of them.
    """
    kept: dict[tuple[Any, ...], Profile | PathProfile] = {}
    last_use = {_walk_of(setting, settings): i for i, setting in enumerate(settings)}
    for place, setting in enumerate(settings):
        walk = _walk_of(setting, settings)
        drafter, length, candidates, drafts = walk
        if walk not in kept:
            make = make_drafter(
                drafter, options, draft_length=length, seed=seed, tokens=most_tokens(trace, share)
            )
            if drafts is None:
                kept[walk] = profile(
                    trace, make, draft_length=length, share=share, order=order, advance=advance
                )
            else:
                kept[walk] = profile_paths(
                    trace, make, draft_length=length, candidates=candidates, drafts=drafts,
                    share=share, order=order, seed=seed, advance=advance,
                )  # fmt: skip
        held = kept[walk]
        judge: Any = score if isinstance(held, Profile) else score_paths
        yield setting, judge(
            held, trace, rule=setting.rule, draft_length=setting.draft_length,
            step_times=step_times,
        )  # fmt: skip
        if last_use[walk] == place:
            del kept[walk]


def walks(settings: Sequence[Setting]) -> int:
    """How often `simulate` walks a drafter along the trace."""
    return len({_walk_of(setting, settings) for setting in settings})


def _walk_of(setting: Setting, settings: Sequence[Setting]) -> tuple[str, int, int, Drafts | None]:
    """The walk that serves a setting: at its own K, or at the largest where chains begin alike."""
    length = setting.draft_length
    if not DRAFTERS[setting.drafter].depends_on_length:
        length = max(s.draft_length for s in settings if s.drafter == setting.drafter)
    return setting.drafter, length, setting.candidates, setting.drafts
