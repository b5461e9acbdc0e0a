"""Paths that a test writes, and switches that break a part: installed in the engine's process.

The script knows the plain continuation of every text. It hides it in a random one of the paths,
often with a token changed, and fills the others with garbage, with beginnings of it, or with copies
of one another, so that any path wins, and any number of tokens of it, wherever the text stands.
Everything here goes through ``llm.collective_rpc``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from proposers import DraftRequests
from proposers.path_batch import PathDrafts
from vllm_plugin.local_engine import runner_of

SWITCHES = ("copy-in", "copy-back", "row expansion", "re-sync", "sync")


def adapter_of(worker: Any) -> Any:
    return runner_of(worker).drafter.adapter


class Script:
    """Drafts for texts that begin as one of ``texts``; others get garbage."""

    def __init__(
        self, texts: list[list[int]], paths: list[int], depths: list[int], vocabulary: int
    ) -> None:
        self.texts = [np.array(text, np.int32) for text in texts]
        self.paths, self.depths, self.vocabulary = paths, depths, vocabulary
        self.rng = np.random.default_rng(5)
        self.seen: Counter[Any] = Counter()

    def draft_paths(self, requests: DraftRequests, min_survival: float = 0.0) -> PathDrafts:
        batch, most, deepest = len(requests), max(self.paths), max(self.depths)
        tokens = np.full((batch, most, deepest), -1, np.int32)
        lengths = np.zeros((batch, most), np.int64)
        for b in range(batch):
            text = requests.tokens[requests.rows[b], : requests.lengths[b]]
            depth = min(int(self.rng.choice(self.depths)), int(requests.budgets[b]))
            if depth > 0:
                self._fill(tokens[b], lengths[b], self._continuation(text, depth), depth)
                self.seen["drafts"] += len(
                    {
                        tuple(path[: i + 1])
                        for path, length in zip(tokens[b], lengths[b], strict=True)
                        for i in range(length)
                    }
                )
        law_ids = tokens[..., None].copy()
        return PathDrafts(tokens, lengths, law_ids, (law_ids >= 0).astype(np.float64))

    def _continuation(self, text: Any, depth: int) -> Any:
        for known in self.texts:
            if known.shape[0] > text.shape[0] and np.array_equal(known[: text.shape[0]], text):
                return known[text.shape[0] : text.shape[0] + depth]
        return np.zeros(0, np.int32)

    def _fill(self, tokens: Any, lengths: Any, right: Any, depth: int) -> None:
        rng, count = self.rng, int(self.rng.choice(self.paths))
        hidden = count - 1 if rng.random() < 0.3 else int(rng.integers(count))
        for j in range(count):
            length = depth if rng.random() < 0.7 else int(rng.integers(1, depth + 1))
            path = rng.integers(3, self.vocabulary, depth).astype(np.int32)
            if j == hidden:
                length = depth
                path[: right.shape[0]] = right
                if rng.random() < 0.4:
                    path[rng.integers(depth)] = rng.integers(3, self.vocabulary)
            elif j and rng.random() < 0.3:  # a copy or a beginning of one before
                path = tokens[rng.integers(j)].copy()
                length = min(length, int((path >= 0).sum()))
            elif rng.random() < 0.4:  # shares a beginning with what is right
                shared = int(rng.integers(1, depth + 1))
                path[: min(shared, right.shape[0])] = right[:shared]
            tokens[j, :length] = path[:length]
            lengths[j] = length


def follow_script(
    worker: Any, texts: list[list[int]], paths: list[int], depths: list[int], vocabulary: int
) -> None:
    """Draft by a :class:`Script` from now on, and count (:func:`seen`) from 0."""
    adapter = adapter_of(worker)
    adapter.serve(runner_of(worker))  # which it does by itself in its first step
    rows = adapter.rows
    script = Script(texts, paths, depths, vocabulary)
    adapter.drafter.draft_paths = script.draft_paths
    if not hasattr(rows, "right"):
        rows.right = rows._winner, rows._copied, adapter.settle

        def winner(request_id: str, laid: Any, kept: Any) -> Any:
            paths = laid.paths
            whole = 2 + paths.separators[-1] + paths.lengths[paths.sent[-1]]
            rows.seen["cut"] += int(laid.inputs < whole)
            return rows.right[0](request_id, laid, kept)

        def copied(request_id: str, laid: Any, number: int, m: int) -> Any:
            moves = rows.right[1](request_id, laid, number, m)
            rows.seen[number] += m
            rows.seen["two blocks"] += int(len(moves) > 1)
            return moves

        def settle(requests: list[Any], emitted: list[Any]) -> None:
            rows.seen["steps"] += sum(not r.discarded for r in requests)
            rows.right[2](requests, emitted)

        rows._winner, rows._copied, adapter.settle = winner, copied, settle
    rows.seen = script.seen


def end_script(worker: Any) -> None:
    """Draft from the table again."""
    del adapter_of(worker).drafter.draft_paths


def seen(worker: Any) -> dict[Any, int]:
    """Counts since the script began.

    1, 2, ..: tokens copied back from the second, third.. path sent; "two blocks": copies that
    crossed into another; "cut": lists that were cut, with an accepted draft; "steps": steps of all
    requests together; "drafts": different drafts.
    """
    return dict(adapter_of(worker).rows.seen)


def draft_nothing(worker: Any) -> None:
    """No drafts from now on."""
    follow_script(worker, [], [1], [0], 4)


def break_part(worker: Any, part: str) -> None:
    """Leave out a part of the machinery."""
    rows = adapter_of(worker).rows
    kind, scratch = type(rows), type(rows.scratch)
    if part == "copy-in":

        def prepare(*args: Any) -> None:
            rows.copies.copy = lambda moves: None
            try:
                kind.prepare(rows, *args)
            finally:
                del rows.copies.copy

        rows.prepare = prepare
    elif part == "copy-back":
        rows.commit = lambda emitted: None
    elif part == "row expansion":
        rows.expanded = lambda metadata: metadata
    elif part == "sync":
        scratch.right, scratch.to_sync = scratch.to_sync, lambda self, lane, own, n: (0, 0)
    elif part == "re-sync":
        right = scratch.right = scratch.to_sync

        def once(self: Any, lane: Any, own: int, n: int) -> tuple[int, int]:
            new = lane.own != own
            begin, end = right(self, lane, own, n)
            return (begin, end) if new else (end, end)

        scratch.to_sync = once
    else:
        raise ValueError(part)


def repair(worker: Any) -> None:
    """Undo :func:`break_part`."""
    rows = adapter_of(worker).rows
    for name in ("prepare", "commit", "expanded"):
        rows.__dict__.pop(name, None)
    scratch = type(rows.scratch)
    if hasattr(scratch, "right"):
        scratch.to_sync = scratch.right
        del scratch.right


def sizes(worker: Any) -> dict[str, Any]:
    """What the adapter holds: request ids of its maps, and scratch blocks in use."""
    runner, adapter = runner_of(worker), adapter_of(worker)
    scratch = adapter.rows.scratch
    return {
        "live": sorted(runner.requests),
        "held": {
            "lanes": sorted(scratch.lanes),
            **{
                name: sorted(getattr(adapter, name))
                for name in ("pending", "left_over", "served", "one_path")
            },
        },
        "hidden": adapter.settings.hidden_blocks_of(runner),
        "free": len(set(scratch.free)),
        "in lanes": sum(len(lane.blocks) for lanes in scratch.lanes.values() for lane in lanes),
    }
