"""Scratch blocks of the KV cache: how many are hidden from the scheduler, and who holds them.

Each path but a request's first needs a place of its own for the keys and values of its drafts: a
*lane*, a copy of the request's partly filled block with room behind it. A lane stays with its
request, so that from step to step only the tokens that were accepted have to be copied in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_OF_THE_CACHE = 8
"""At most one block in so many is hidden from the scheduler."""


def blocks_of_lane(depth: int, block_size: int) -> int:
    """Blocks that positions n .. n + depth can touch, whatever n is."""
    return (block_size - 1 + depth) // block_size + 1


def scratch_blocks(
    *,
    paths: int,
    depth: int,
    block_size: int,
    num_blocks: int,
    max_num_seqs: int,
    max_model_len: int,
) -> int:
    """Blocks to hide: enough for all requests, within an eighth of the cache.

    One request of ``max_model_len`` tokens always fits in what is left (and block 0, which vLLM
    keeps for itself).
    """
    wanted = max_num_seqs * (paths - 1) * blocks_of_lane(depth, block_size)
    one_request = -(-max_model_len // block_size) + 1
    return max(0, min(wanted, num_blocks // MOST_OF_THE_CACHE, num_blocks - one_request))


@dataclass(slots=True)
class Lane:
    """Scratch blocks for one path: ``blocks[x]`` stands for the request's block ``first + x``.

    Positions from the beginning of block ``first`` up to ``synced`` hold what the request's own
    block ``own`` holds: keys and values of the same tokens behind the same text.
    """

    blocks: list[int] = field(default_factory=list)
    first: int = -1
    own: int = -1
    synced: int = 0


class Scratch:
    """The hidden blocks of one engine and the lanes made of them, by request id."""

    def __init__(self, blocks: Iterable[int], block_size: int) -> None:
        self.free = list(blocks)
        self.block_size = block_size
        self.lanes: dict[str, list[Lane]] = {}

    def reserve(self, request_id: str, ends: list[int], begin: int) -> int:
        """Lanes for paths over positions ``begin .. ends[w]``; returns for how many of them.

        The first ones are served as far as the pool goes; what is not needed goes back to it.
        """
        lanes = self.lanes.setdefault(request_id, [])
        while len(lanes) > len(ends):
            self.free += lanes.pop().blocks
        for number, end in enumerate(ends):
            if number == len(lanes):
                lanes.append(Lane())
            lane = lanes[number]
            needed = end // self.block_size - begin // self.block_size + 1
            while len(lane.blocks) > needed:
                self.free.append(lane.blocks.pop())
            while len(lane.blocks) < needed and (self.free or len(lanes) > number + 1):
                if self.free:
                    lane.blocks.append(self.free.pop())
                else:  # a later path's
                    self.free += lanes.pop().blocks
            if len(lane.blocks) < needed:
                while len(lanes) > number:
                    self.free += lanes.pop().blocks
                break
        served = len(lanes)
        if not lanes:
            del self.lanes[request_id]
        return served

    def release(self, request_id: str) -> None:
        """Take back all lanes of a request."""
        for lane in self.lanes.pop(request_id, ()):
            self.free += lane.blocks

    def to_sync(self, lane: Lane, own: int, n: int) -> tuple[int, int]:
        """The slots of the request's block ``own`` to copy to ``lane.blocks[0]``: [begin, end).

        ``n`` is the number of tokens whose keys and values the request holds. From here on the
        lane counts as holding them.
        """
        first = n // self.block_size
        if lane.first != first or lane.own != own or n < lane.synced:
            lane.first, lane.own, lane.synced = first, own, first * self.block_size
        begin, lane.synced = lane.synced, n
        return begin - first * self.block_size, n - first * self.block_size
