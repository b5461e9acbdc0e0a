"""Scratch blocks: how many are hidden, and that no block is lost or held twice."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_plugin.path_scratch import (
    MOST_OF_THE_CACHE,
    Lane,
    Scratch,
    blocks_of_lane,
    scratch_blocks,
)

SIZES = (16, 32, 128)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", range(1, 21))
def test_a_lane_has_the_blocks_that_its_positions_touch(size: int, depth: int) -> None:
    touched = [
        len({position // size for position in range(n, n + depth + 1)}) for n in range(3 * size)
    ]
    assert blocks_of_lane(depth, size) == max(touched)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", [1, 2, 7, 15, 16, 17, 20])
def test_every_path_is_served_wherever_the_block_border_lies(size: int, depth: int) -> None:
    """With the blocks that scratch_blocks hides, and exactly the blocks that the path touches."""
    paths, requests = 4, 3
    hidden = scratch_blocks(
        paths=paths, depth=depth, block_size=size, num_blocks=10_000, max_num_seqs=requests,
        max_model_len=512,
    )  # fmt: skip
    for begin in range(2 * size + 1):
        scratch = Scratch(range(100, 100 + hidden), size)
        for r in range(requests):
            assert scratch.reserve(f"r{r}", [begin + depth] * (paths - 1), begin) == paths - 1
            for lane in scratch.lanes[f"r{r}"]:
                assert len(lane.blocks) == (begin + depth) // size - begin // size + 1


@given(
    paths=st.integers(2, 16),
    depth=st.integers(1, 20),
    size=st.sampled_from(SIZES),
    blocks=st.integers(1, 3000),
    seqs=st.integers(1, 300),
    length=st.integers(1, 40_000),
)
def test_what_is_hidden_is_bounded(
    paths: int, depth: int, size: int, blocks: int, seqs: int, length: int
) -> None:
    hidden = scratch_blocks(
        paths=paths, depth=depth, block_size=size, num_blocks=blocks, max_num_seqs=seqs,
        max_model_len=length,
    )  # fmt: skip
    assert 0 <= hidden <= blocks // MOST_OF_THE_CACHE
    assert hidden <= seqs * (paths - 1) * blocks_of_lane(depth, size)
    whole = 1 + -(-length // size)  # block 0 and one request
    assert hidden == 0 or blocks - hidden >= whole


class Pool(RuleBasedStateMachine):
    """Requests that grow, reserve lanes and end, on a pool that is too small for all of them."""

    SIZE = 16
    BLOCKS = frozenset(range(50, 61))

    def __init__(self) -> None:
        super().__init__()
        self.scratch = Scratch(self.BLOCKS, self.SIZE)
        self.lengths: dict[str, int] = {}

    @rule(
        request=st.sampled_from("abcd"),
        grown=st.integers(1, 20),
        paths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    )
    def reserve(self, request: str, grown: int, paths: list[int]) -> None:
        begin = self.lengths[request] = self.lengths.get(request, 0) + grown
        ends = [begin + n for n in paths]
        mine = [lane.blocks for lane in self.scratch.lanes.get(request, [])]
        room = len(self.scratch.free) + sum(map(len, mine))
        served = self.scratch.reserve(request, ends, begin)
        lanes = self.scratch.lanes.get(request, [])
        assert served == len(lanes) <= len(ends)
        needed = [end // self.SIZE - begin // self.SIZE + 1 for end in ends]
        assert [len(lane.blocks) for lane in lanes] == needed[:served]
        if served < len(ends):  # the next one really does not fit
            assert sum(needed[: served + 1]) > room

    @precondition(lambda self: self.lengths)
    @rule(request=st.sampled_from("abcd"))
    def end(self, request: str) -> None:
        self.scratch.release(request)
        self.lengths.pop(request, None)
        assert request not in self.scratch.lanes

    @invariant()
    def no_block_is_lost_or_held_twice(self) -> None:
        held = [b for lanes in self.scratch.lanes.values() for lane in lanes for b in lane.blocks]
        assert sorted([*held, *self.scratch.free]) == sorted(self.BLOCKS)
        assert all(self.scratch.lanes.values())


TestPool: Any = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30)


@given(st.data())
@settings(max_examples=60)
def test_a_lane_holds_what_the_request_holds_after_each_copy(data: st.DataObject) -> None:
    """And no slot is copied twice, as long as the request's block stays the same."""
    size = data.draw(st.sampled_from(SIZES))
    scratch, lane = Scratch([], size), Lane()
    table = {block: 1000 + block for block in range(12)}
    n, held = data.draw(st.integers(0, 2 * size)), set[tuple[int, int]]()
    copied = 0
    for _ in range(12):
        event = data.draw(st.sampled_from(["grow", "grow", "grow", "moved", "shorter"]))
        if event == "grow":
            n += data.draw(st.integers(0, 21))
        elif event == "moved":  # preempted and back in other blocks
            table = {block: own + 100 for block, own in table.items()}
        else:
            n = max(0, n - data.draw(st.integers(1, size)))
        own = table[n // size]
        before = (lane.first, lane.own, lane.synced)
        begin, end = scratch.to_sync(lane, own, n)
        if before[:2] != (n // size, own) or n < before[2]:
            held = set()
        else:
            assert begin + n // size * size == before[2]  # exactly what is missing
        held |= {(own, slot) for slot in range(begin, end)}
        copied += end - begin
        assert 0 <= begin <= end < size
        assert held == {(own, slot) for slot in range(n % size)}
    assert copied <= np.sum([size] * 12)


def test_lanes_that_are_not_needed_go_back() -> None:
    scratch = Scratch(range(6), 16)
    assert scratch.reserve("a", [20, 20, 20], 14) == 3
    assert not scratch.free
    assert scratch.reserve("a", [20], 14) == 1
    assert len(scratch.free) == 4
    assert scratch.reserve("a", [33], 32) == 1  # behind the border: one block is enough
    assert len(scratch.free) == 5
    scratch.release("a")
    scratch.release("nobody")
    assert sorted(scratch.free) == list(range(6))
    assert not scratch.lanes


def test_an_earlier_path_takes_the_blocks_of_a_later_one() -> None:
    scratch = Scratch(range(4), 16)
    assert scratch.reserve("a", [14, 14, 14, 14], 13) == 4
    assert scratch.reserve("a", [33, 15, 15, 15], 15) == 2
    assert [len(lane.blocks) for lane in scratch.lanes["a"]] == [3, 1]


def test_a_request_that_cannot_have_a_lane_holds_nothing() -> None:
    scratch = Scratch([1], 16)
    assert scratch.reserve("a", [20], 14) == 0
    assert scratch.lanes == {}
    assert scratch.free == [1]
