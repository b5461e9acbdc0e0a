"""The shape of a tree of drafts: which candidates of which node are drafted further."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from proposers.batch import Longs
from theory.whole_file import whole

Node = tuple[int, ...]
FORMAT = "specproof tree shape"
VERSION = 1
MAX_NODES = 4096


class ShapeArrays(NamedTuple):
    """A shape of N nodes for a kernel: node 0 is the root, 1..N follow breadth first.

    Child r of node v is ``first_child[v] + r`` for ``r < child_counts[v]``. All int64.
    """

    parents: Longs  # (N + 1,) -1 for the root
    ranks: Longs  # (N + 1,) 0 for the root
    depths: Longs  # (N + 1,) tokens on the way from the root
    first_child: Longs  # (N + 1,) -1 for a leaf
    child_counts: Longs  # (N + 1,)
    depth_first: Longs  # (N,) the nodes in the order of TreeShape.nodes


@dataclass(frozen=True)
class TreeShape:
    """A tree of draft nodes, closed under parents and under smaller ranks.

    A node is the tuple of ranks on the way to it from the root, which holds no draft: (0, 2) is the
    third candidate, in draw order, of the root's first. They are kept depth first, children by
    rank, each once.

    Raises
    ------
    ValueError
        For no node, more than :data:`MAX_NODES`, or one whose parent or smaller rank is missing.
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        given = set(self.nodes)
        if not given or len(given) > MAX_NODES:
            raise ValueError(f"a tree shape has 1..{MAX_NODES} nodes; this one has {len(given)}")
        for node in given:
            if not node or min(node) < 0:
                raise ValueError(f"a node is a list of ranks, each 0 or more; got {list(node)}")
            if node[:-1] and node[:-1] not in given:
                raise ValueError(
                    f"node {list(node)} is in the tree, its parent {list(node[:-1])} is not"
                )
            elder = (*node[:-1], node[-1] - 1)
            if node[-1] and elder not in given:
                raise ValueError(
                    f"node {list(node)} is in the tree, {list(elder)} of smaller rank is not"
                )
        object.__setattr__(self, "nodes", tuple(sorted(given)))

    @classmethod
    def root_branching(cls, candidates: int, length: int) -> "TreeShape":
        """``candidates`` children at the root and a chain behind each, ``length`` tokens deep.

        Raises ValueError if either is below 1.
        """
        if candidates < 1 or length < 1:
            raise ValueError(
                f"a tree of {candidates} paths of {length} tokens; both must be 1 or more"
            )
        chain = (0,) * (length - 1)
        return cls(tuple((c, *chain[:depth]) for c in range(candidates) for depth in range(length)))

    @cached_property
    def _counts(self) -> dict[Node, int]:
        counts: dict[Node, int] = {}
        for node in self.nodes:
            counts[node[:-1]] = counts.get(node[:-1], 0) + 1
        return counts

    def children(self, node: Node) -> int:
        """How many candidates are drawn at a node; () is the root."""
        return self._counts.get(node, 0)

    @cached_property
    def paths(self) -> int:
        """Leaves: the most paths that a draft of this shape has."""
        return sum(node not in self._counts for node in self.nodes)

    @cached_property
    def depth(self) -> int:
        """Tokens of the longest path."""
        return max(map(len, self.nodes))

    @cached_property
    def width(self) -> int:
        """Most candidates of one node."""
        return max(self._counts.values())

    @cached_property
    def arrays(self) -> ShapeArrays:
        """The tree for a kernel."""
        order: list[Node] = [(), *sorted(self.nodes, key=lambda node: (len(node), node))]
        place = {node: v for v, node in enumerate(order)}
        columns = (
            [place[node[:-1]] if node else -1 for node in order],
            [node[-1] if node else 0 for node in order],
            [len(node) for node in order],
            [place.get((*node, 0), -1) for node in order],
            [self.children(node) for node in order],
            [place[node] for node in self.nodes],
        )
        return ShapeArrays(*(np.array(column, np.int64) for column in columns))

    @classmethod
    def read(cls, path: Path) -> "TreeShape":
        """The shape in a file that :meth:`write` wrote, or anyone else.

        The file is JSON, ``{"format": "specproof tree shape", "version": 1, "nodes": [[0], [0, 0],
        [1]], "about": {...}}``; the nodes may come in any order, ``about`` is not looked at. Raises
        ValueError for a file that cannot be read or is none.
        """
        try:
            given = json.loads(path.read_bytes())
        except OSError as error:
            raise ValueError(f"the tree shape {path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise ValueError(f"{path} is no tree shape: it is not JSON") from None
        if not isinstance(given, dict) or given.get("format") != FORMAT:
            raise ValueError(f'{path} is no tree shape: its "format" is not "{FORMAT}"')
        if given.get("version") != VERSION or isinstance(given.get("version"), bool):
            raise ValueError(
                f"the tree shape {path} has version {given.get('version')!r}; "
                f"this program reads {VERSION}"
            )
        try:
            return cls(_nodes(given.get("nodes")))
        except ValueError as error:
            raise ValueError(f"the tree shape {path} is broken: {error}") from None

    def write(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write the file that :meth:`read` reads, whole or not at all; ``about`` is free.

        Raises OSError when the folder or the disk refuses.
        """
        nodes = [list(node) for node in self.nodes]
        content = {"format": FORMAT, "version": VERSION, "nodes": nodes, "about": about or {}}
        text = json.dumps(content)
        with whole(path) as file:
            file.write(f"{text}\n".encode())


def _nodes(given: Any) -> tuple[Node, ...]:
    if not isinstance(given, list):
        raise ValueError('"nodes" must be a list of lists of ranks')
    nodes = []
    for node in given:
        if not isinstance(node, list) or not all(_whole_number(rank) for rank in node):
            raise ValueError(f"a node must be a list of whole numbers; got {node!r:.80}")
        nodes.append(tuple(node))
    if len(set(nodes)) < len(nodes):
        raise ValueError("a node stands in it twice")
    return tuple(nodes)


def _whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
