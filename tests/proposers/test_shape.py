"""Shapes of trees: closed under parents and ranks, kept in files, laid out for kernels."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proposers.shape import FORMAT, MAX_NODES, Node, TreeShape


@st.composite
def shapes(draw: st.DrawFn) -> TreeShape:
    """Grown node by node from a child of the root."""
    nodes: list[Node] = [(0,)]
    for _ in range(draw(st.integers(0, 25))):
        parent = draw(st.sampled_from([(), *nodes]))
        rank = sum(node[:-1] == parent for node in nodes)
        nodes.append((*parent, rank))
    return TreeShape(tuple(draw(st.permutations(nodes))))


@given(shapes())
def test_nodes_come_depth_first_and_leaves_are_paths(shape: TreeShape) -> None:
    def below(node: Node) -> list[Node]:
        children = [(*node, rank) for rank in range(shape.children(node))]
        return [found for child in children for found in (child, *below(child))]

    assert list(shape.nodes) == below(())
    leaves = [node for node in shape.nodes if shape.children(node) == 0]
    assert shape.paths == len(leaves)
    assert shape.depth == max(map(len, leaves))
    assert shape.width == max(shape.children(node) for node in ((), *shape.nodes))


@given(shapes())
def test_arrays_describe_the_same_tree(shape: TreeShape) -> None:
    arrays = shape.arrays
    names: list[Node] = [()]
    for v in range(1, len(shape.nodes) + 1):
        assert arrays.parents[v] < v
        names.append((*names[arrays.parents[v]], int(arrays.ranks[v])))
    assert sorted(names[1:]) == list(shape.nodes)
    assert names == sorted(names, key=lambda node: (len(node), node))
    for v, node in enumerate(names):
        assert arrays.depths[v] == len(node)
        assert arrays.child_counts[v] == shape.children(node)
        for rank in range(shape.children(node)):
            assert names[arrays.first_child[v] + rank] == (*node, rank)
        assert (arrays.first_child[v] == -1) == (shape.children(node) == 0)
    assert [names[v] for v in arrays.depth_first] == list(shape.nodes)
    assert all(array.dtype == "int64" for array in arrays)


@given(shapes())
def test_a_shape_equals_itself_after_a_file(tmp_path_factory: Any, shape: TreeShape) -> None:
    path = tmp_path_factory.getbasetemp() / "shape.json"
    shape.write(path, {"budget": 16})
    assert TreeShape.read(path) == shape
    assert json.loads(path.read_text())["about"] == {"budget": 16}


def test_root_branching_is_chains_that_part_at_the_root() -> None:
    shape = TreeShape.root_branching(2, 3)
    assert shape.nodes == ((0,), (0, 0), (0, 0, 0), (1,), (1, 0), (1, 0, 0))
    assert (shape.paths, shape.depth, shape.width) == (2, 3, 2)
    assert TreeShape.root_branching(1, 1).nodes == ((0,),)


@pytest.mark.parametrize(("candidates", "length"), [(0, 3), (3, 0), (-1, 2)])
def test_no_tree_without_paths(candidates: int, length: int) -> None:
    with pytest.raises(ValueError, match="both must be 1 or more"):
        TreeShape.root_branching(candidates, length)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ((), "has 0"),
        (((),), "list of ranks"),
        (((0,), (-1,)), "each 0 or more"),
        (((0,), (0, 0, 0)), r"its parent \[0, 0\] is not"),
        (((0,), (2,)), r"\[1\] of smaller rank is not"),
        (((0,), (0, 1)), r"\[0, 0\] of smaller rank is not"),
        (tuple((rank,) for rank in range(MAX_NODES + 1)), f"has {MAX_NODES + 1}"),
    ],
)
def test_what_is_no_tree_is_refused(nodes: tuple[Node, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TreeShape(nodes)


def content(**changed: Any) -> str:
    return json.dumps({"format": FORMAT, "version": 1, "nodes": [[0], [1]]} | changed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[[0], [1]]", "format"),
        (content(format="specproof table"), "format"),
        (content(version=2), "has version 2; this program reads 1"),
        (content(version=True), "has version True"),
        (content(nodes=None), "list of lists"),
        (content(nodes=[0, 1]), "whole numbers; got 0"),
        (content(nodes=[[0], [0.0]]), "whole numbers"),
        (content(nodes=[[0], [True]]), "whole numbers"),
        (content(nodes=[["0"]]), "whole numbers"),
        (content(nodes=[[0], [0]]), "twice"),
        (content(nodes=[]), "has 0"),
        (content(nodes=[[0], [0, 1]]), "smaller rank"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_sentence(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "shape.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as refused:
        TreeShape.read(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b'{"format": "\xff"}'])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "shape.json"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="not JSON"):
        TreeShape.read(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json cannot be read: No such file"):
        TreeShape.read(tmp_path / "none.json")
