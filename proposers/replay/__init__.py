"""Replay of recorded trajectories: what a drafter and a rule would have done there, exactly.

:mod:`proposers.replay.profiling` walks a drafter along a trace, as the engine's adapter would have;
:mod:`proposers.replay.scoring` turns what it offered there into expected steps, without sampling;
:mod:`proposers.replay.paths` and :mod:`proposers.replay.path_scoring` do the same for several
candidates, :mod:`proposers.replay.tree_counts` and its neighbours for whole trees, and look for the
best tree. The equations are in docs/replay.md. Names are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proposers.replay.drafters import DRAFTERS, make_drafter
    from proposers.replay.path_scoring import score_paths
    from proposers.replay.paths import PathProfile, profile_paths
    from proposers.replay.profiling import Order, Profile, Share, most_tokens, profile
    from proposers.replay.scoring import Score, score
    from proposers.replay.simulation import Setting, resolve, simulate

_HOME = {
    "DRAFTERS": "drafters",
    "make_drafter": "drafters",
    "score_paths": "path_scoring",
    "PathProfile": "paths",
    "profile_paths": "paths",
    "Order": "profiling",
    "Profile": "profiling",
    "Share": "profiling",
    "most_tokens": "profiling",
    "profile": "profiling",
    "Score": "scoring",
    "score": "scoring",
    "Setting": "simulation",
    "resolve": "simulation",
    "simulate": "simulation",
}

__all__ = [
    "DRAFTERS",
    "Order",
    "PathProfile",
    "Profile",
    "Score",
    "Setting",
    "Share",
    "make_drafter",
    "most_tokens",
    "profile",
    "profile_paths",
    "resolve",
    "score",
    "score_paths",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'proposers.replay' has no attribute {name!r}")
    return getattr(import_module(f"proposers.replay.{_HOME[name]}"), name)
