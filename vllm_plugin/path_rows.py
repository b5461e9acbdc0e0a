"""Several paths of a request in one forward of stock paged attention: one row for each of them.

The runner lays a request's tokens out as one sequence. Before the forward, every path sent but the
first is given the positions behind the text, slots in scratch blocks, and a row of its own in the
attention metadata, whose block table is the request's with the partly filled block replaced by a
copy (:mod:`vllm_plugin.path_scratch`). After the verdict the keys and values of the winning path's
accepted tokens are copied into the request's own blocks. No mask, no change of any kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_plugin.path_cache import KeyValueCopies, Move
from vllm_plugin.path_drafts import Ints, PendingPaths
from vllm_plugin.path_scratch import Scratch


@dataclass(slots=True)
class Laid:
    """How one request's drafts stand in the step: its paths, and the tokens it has in the batch."""

    paths: PendingPaths
    inputs: int
    computed: int  # tokens whose keys and values the request holds: the row's first position


@dataclass(slots=True)
class Plan:
    """The attention rows of one step, in the order of the batch's tokens."""

    owners: NDArray[np.int64]  # (R,) the request's place in the batch
    lengths: NDArray[np.int32]  # (R,) tokens of the row
    ends: NDArray[np.int32]  # (R,) positions that the row attends to
    scratch: list[tuple[int, int, list[int]]]  # (row, first column of its table, block ids)


class PathRows:
    """Serves one runner: lays paths out before its forward and commits the winners after it."""

    def __init__(self, runner: Any, scratch: int) -> None:
        groups = runner.kv_cache_config.kv_cache_groups
        layers = runner.compilation_config.static_forward_context
        self.runner = runner
        self.table = runner.input_batch.block_table[0]
        blocks = runner.kv_cache_config.num_blocks
        self.copies = KeyValueCopies([layers[name] for name in groups[0].layer_names])
        self.scratch = Scratch(range(blocks - scratch, blocks), self.table.block_size)
        if scratch:
            self.copies.clear(self.scratch.free)
        self.laid: dict[str, Laid] = {}
        self.plan: Plan | None = None

    def most_paths(self, request_id: str, paths: PendingPaths) -> int:
        """How many of the paths can be sent in the next step, for lack of scratch or not.

        Reserves their lanes; the text they follow has ``paths.text_length`` tokens, so the last
        accepted one stands at that position less one.
        """
        begin = paths.text_length - 1
        ends = [begin + int(paths.lengths[path]) for path in paths.sent[1:]]
        return 1 + self.scratch.reserve(request_id, ends, begin)

    def prepare(
        self, scheduler_output: Any, scheduled: Ints, pending: dict[str, PendingPaths]
    ) -> None:
        """Give paths their positions, slots and lanes; called when the runner's inputs are set."""
        for request_id in scheduler_output.preempted_req_ids or ():
            self.scratch.release(request_id)
        self.laid, self.plan = {}, None
        batch = self.runner.input_batch
        owners, lengths, ends = [], [], []
        scratch: list[tuple[int, int, list[int]]] = []
        moves: list[Move] = []
        tokens, positions, slots = [], [], []
        first_token, size = 0, self.table.block_size
        for i, request_id in enumerate(batch.req_ids[: batch.num_reqs]):
            count, n = int(scheduled[i]), int(batch.num_computed_tokens_cpu[i])
            paths = pending.get(request_id)
            drafts = scheduler_output.scheduled_spec_decode_tokens.get(request_id, ())
            if paths is None or not self._holds(i, paths, drafts, count):
                owners.append(i)
                lengths.append(count)
                ends.append(n + count)
                first_token += count
                continue
            self.laid[request_id] = Laid(paths, count, n)
            lanes = self.scratch.lanes.get(request_id, [])
            for number, path in enumerate(paths.sent):
                begin = int(paths.separators[number]) + 1
                if begin >= count:
                    break
                length = min(1 + int(paths.lengths[path]), count - begin)
                if number:
                    lane = lanes[number - 1]
                    own = int(self.table.block_table.np[i, n // size])
                    moves.append((own, lane.blocks[0], *self.scratch.to_sync(lane, own, n)))
                    scratch.append((len(owners), n // size, lane.blocks))
                    place = np.arange(n, n + length)
                    block = np.array(lane.blocks)[place // size - n // size]
                    tokens.append(np.arange(first_token + begin, first_token + begin + length))
                    positions.append(place)
                    slots.append(block * size + place % size)
                owners.append(i)
                lengths.append(length)
                ends.append(n + length)
            first_token += count
        if not scratch:
            return
        self.copies.copy(moves)
        where = self._tensor(tokens)
        self.runner.positions[where] = self._tensor(positions).to(self.runner.positions.dtype)
        self.table.slot_mapping.gpu[where] = self._tensor(slots)
        self.plan = Plan(
            np.array(owners), np.array(lengths, np.int32), np.array(ends, np.int32), scratch
        )

    def _holds(self, i: int, paths: PendingPaths, drafts: Sequence[int], count: int) -> bool:
        """Whether the scheduled drafts of the request at this place are these paths' flat list."""
        batch = self.runner.input_batch
        if not drafts or count != len(drafts) + 1:
            return False
        needed = int((paths.separators < len(drafts)).sum()) - 1
        if needed > len(self.scratch.lanes.get(batch.req_ids[i], ())):
            return False  # its lanes were taken back, as of a preempted request
        length = int(batch.num_tokens_no_spec[i])
        last = int(batch.token_ids_cpu[i, length - 1])
        return paths.text_length == length and paths.agrees(np.array(drafts, np.int32), last)

    def _tensor(self, parts: list[NDArray[Any]]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(self.runner.device)

    def expanded(self, metadata: Any) -> Any:
        """The attention metadata of the step with a row for every path."""
        plan = self.plan
        if plan is None:
            return metadata
        device = metadata.seq_lens.device
        owners = torch.from_numpy(plan.owners).to(device)
        starts = torch.from_numpy(np.concatenate([[0], np.cumsum(plan.lengths)]).astype(np.int32))
        ends = torch.from_numpy(plan.ends)
        table = metadata.block_table_tensor[owners]  # a copy
        places = np.array(
            [
                (row, first + x, b)
                for row, first, blocks in plan.scratch
                for x, b in enumerate(blocks)
            ]
        )
        rows, columns, blocks = torch.from_numpy(places.T).to(device)
        table[rows, columns] = blocks.to(table.dtype)
        of_rows = {
            name: value[owners.to(value.device)]
            for name in ("is_prefilling", "rswa_prefix_lens")
            if (value := getattr(metadata, name)) is not None
        }
        return metadata.replace(
            query_start_loc=starts.to(device),
            query_start_loc_cpu=starts,
            seq_lens=ends.to(device),
            seq_lens_cpu_upper_bound=ends,
            num_reqs=len(plan.owners),
            max_query_len=int(plan.lengths.max()),
            max_seq_len=int(plan.ends.max()),
            block_table_tensor=table,
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
            **of_rows,
        )

    def commit(self, emitted: dict[str, Ints]) -> None:
        """Bring the accepted tokens of each request's winner into the request's own blocks."""
        self.plan = None  # it was of this step
        moves: list[Move] = []
        for request_id, laid in self.laid.items():
            tokens = emitted.get(request_id)
            if tokens is not None and tokens.shape[0]:
                moves += self._winner(request_id, laid, tokens[:-1])
        self.copies.copy(moves)

    def _winner(self, request_id: str, laid: Laid, kept: Ints) -> list[Move]:
        """What to copy for drafts that were kept: all emitted tokens but the last, in one path.

        The last one emitted has no keys and values yet: it is the next step's first input. Every
        lane now holds the token that its row began with, and of its path as much as was kept.
        """
        paths, m = laid.paths, kept.shape[0]
        moves: list[Move] | None = None if m else []
        for number, path in enumerate(paths.sent):
            evaluated = min(
                int(paths.lengths[path]), laid.inputs - int(paths.separators[number]) - 2
            )
            if evaluated < 0:
                break
            n = min(evaluated, m)
            shared = int(np.logical_and.accumulate(paths.tokens[path, :n] == kept[:n]).sum())
            if moves is None and shared == m:
                moves = self._copied(request_id, laid, number, m) if number else []
            if number:
                lane = self.scratch.lanes[request_id][number - 1]
                lane.synced = laid.computed + 1 + shared
        if moves is None:
            raise AssertionError(f"no evaluated path of {request_id} holds its accepted tokens")
        return moves

    def _copied(self, request_id: str, laid: Laid, number: int, m: int) -> list[Move]:
        size, lane = self.table.block_size, self.scratch.lanes[request_id][number - 1]
        row = self.runner.input_batch.req_id_to_index[request_id]
        begin, end = laid.computed + 1, laid.computed + 1 + m
        first = laid.computed // size
        return [
            (
                lane.blocks[block - first],
                int(self.table.block_table.np[row, block]),
                max(begin - block * size, 0),
                min(end - block * size, size),
            )
            for block in range(begin // size, (end - 1) // size + 1)
        ]

    def forget(self, request_ids: list[str]) -> None:
        """Take back the lanes of requests that have ended."""
        for request_id in request_ids:
            self.scratch.release(request_id)
