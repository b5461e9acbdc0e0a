"""Replay of recorded trajectories: what a drafter and a rule would have done there, exactly.

:mod:`proposers.replay.profiling` walks a drafter along a trace, as the engine's adapter would have;
:mod:`proposers.replay.scoring` turns what it offered there into expected steps, without sampling.
The equations are in docs/replay.md.
"""

from proposers.replay.drafters import DRAFTERS, make_drafter
from proposers.replay.profiling import Order, Profile, Share, profile
from proposers.replay.scoring import Score, score

__all__ = ["DRAFTERS", "Order", "Profile", "Score", "Share", "make_drafter", "profile", "score"]
