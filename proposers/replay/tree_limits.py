"""What a tree of drafts costs: nodes, or the tokens of the forward that evaluates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from proposers.shape import TreeShape

Cost = Literal["nodes", "tokens"]
COSTS: tuple[Cost, ...] = get_args(Cost)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tree may cost: ``budget`` nodes or tokens, and the most leaves, if they are bounded.

    Raises ValueError for a budget in which no node has place, or no leaf.
    """

    budget: int
    cost: Cost = "nodes"
    paths: int | None = None

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise ValueError(f"cost must be one of {', '.join(COSTS)}; got {self.cost!r}")
        least = 1 if self.cost == "nodes" else 2
        if self.budget < least:
            raise ValueError(
                f"a budget of {self.budget} {self.cost} has no place for a draft; it must be "
                f"{least} or more"
            )
        if self.paths is not None and self.paths < 1:
            raise ValueError(f"paths is {self.paths}; it must be 1 or more")

    def allow(self, shape: TreeShape) -> bool:
        """Whether a shape keeps them."""
        spent = len(shape.nodes) if self.cost == "nodes" else forward_tokens(shape)
        return spent <= self.budget and (self.paths is None or shape.paths <= self.paths)


def forward_tokens(shape: TreeShape) -> int:
    """Tokens of a forward that evaluates a tree as its root-to-leaf paths.

    Each path is evaluated whole, with the token before it: the sum over leaves of depth + 1.
    """
    return sum(len(node) + 1 for node in shape.nodes if not shape.children(node))
