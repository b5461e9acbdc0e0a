"""The picture of a shape: the tree, as dark as its nodes are likely to hold an accepted token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from proposers.replay.tree_chances import RankChances
from proposers.shape import Node, TreeShape

_FAINT = 0.12


def draw(path: Path, shape: TreeShape, chances: RankChances) -> None:
    """Write the picture; ends the command with a sentence where the path cannot be written."""
    from theory.figures import load_pyplot, save_picture

    pyplot = load_pyplot()
    width = max(5.0, 1.1 * (shape.depth + 1))
    height = max(2.8, 0.34 * shape.paths + 1.2)
    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    reach = node_reach(shape, chances)
    _tree(axes, shape, reach)
    axes.set(
        xlabel="drafted tokens",
        title=f"{len(shape.nodes)} nodes, {sum(reach.values()):.2f} accepted a step",
    )
    axes.set_xticks(range(shape.depth + 1))
    axes.set_yticks([])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    save_picture(figure, path)
    pyplot.close(figure)


def node_reach(shape: TreeShape, chances: RankChances) -> dict[Node, float]:
    """P(a step accepts the draft at a node), by the places' weights, for every node of a shape."""
    reach = chances.node_sums(shape) / max(chances.steps, 1)
    return dict(zip(shape.nodes, reach.tolist(), strict=True))


def _tree(axes: Any, shape: TreeShape, reach: dict[Node, float]) -> None:
    """Depth to the right, paths downwards; each chain of first children is a straight line."""
    rows, most = _rows(shape), max(max(reach.values()), 1e-9)
    for node, chance in reach.items():
        x, y = len(node), rows[node]
        shade = _FAINT + (1 - _FAINT) * math.sqrt(chance / most)
        axes.plot(
            [x - 1, x], [rows[node[:-1]], y], color="black", alpha=shade, linewidth=1 + 2 * shade,
            solid_capstyle="round", zorder=1,
        )  # fmt: skip
        axes.scatter([x], [y], s=42, color=str(1 - shade), edgecolors="black", linewidths=0.5,
                     zorder=2)  # fmt: skip
        axes.annotate(
            f"{chance:.2f}" if chance >= 0.005 else "", (x, y), xytext=(0, 5),
            textcoords="offset points", ha="center", fontsize="x-small",
        )  # fmt: skip
    axes.scatter([0], [rows[()]], s=60, color="black", marker="s", zorder=2)
    axes.set_ylim(min(rows.values()) - 0.6, 0.8)


def _rows(shape: TreeShape) -> dict[Node, float]:
    """A row for each path from the top; a node stands on that of its first leaf."""
    rows: dict[Node, float] = {}
    leaves = [node for node in shape.nodes if not shape.children(node)]
    for row, leaf in enumerate(leaves):
        for depth in range(len(leaf), -1, -1):
            rows.setdefault(leaf[:depth], -float(row))
    return rows
