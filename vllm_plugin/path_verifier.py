"""The verifier of several paths: from logits to emitted tokens, one depth of the paths at a time.

The walk of :mod:`vllm_plugin.paths` with all that an engine adds. Only the rows that it reaches are
shaped into laws, a few of the many that were evaluated: at each depth the row behind what was
emitted so far, for every request that is still going.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from vllm_plugin.backends import backend
from vllm_plugin.keyed_sampler import keyed_choice
from vllm_plugin.nodes import DISTINCT, Nodes
from vllm_plugin.path_drafts import Doubles, Ints, Longs, PendingPaths
from vllm_plugin.row_laws import row_laws
from vllm_plugin.row_requests import Row, rows_as_requests
from vllm_plugin.verifier import Verifier, greedy_requests

_NO_CANDIDATE = -1


@dataclass(slots=True)
class PathRequest:
    """One request's part of a step, and how far its walk has come.

    tokens (P, L), lengths (P,), law_ids and laws (P, L, E): its paths, one without tokens if it has
    none. rows (P, L + 1): the row of the logits behind each prefix of each path, -1 where none was
    evaluated; paths that share a prefix share its row. ``key`` is 0 without a seed; ``discarded``
    marks an unfinished prompt, whose token vLLM drops.
    """

    index: int
    text_length: int
    first_row: int
    key: int
    discarded: bool
    tokens: Ints
    lengths: Longs
    law_ids: Ints
    laws: Doubles
    rows: Longs
    pending: PendingPaths | None = None  # what the paths were made of
    inputs: int = 1  # the request's tokens in the step that are laid out as these paths
    emitted: list[int] = field(default_factory=list)
    alive: Any = None  # (P,) bool: the paths that begin with what was emitted
    going: bool = True
    accepted: bool = False  # whether the last token emitted was, as a candidate

    def __post_init__(self) -> None:
        self.alive = np.ones(self.tokens.shape[0], np.bool_)

    def row(self) -> int:
        """The row behind what was emitted; -1 when it was not evaluated."""
        return int(self.rows[self.alive, len(self.emitted)].max(initial=-1))

    def candidates(self) -> Longs:
        """The paths that have a draft here, in their order."""
        return np.flatnonzero(self.alive & (self.lengths > len(self.emitted)))

    def take(self, token: int, accepted: bool) -> None:
        """Emit a token and go on along the paths that hold it, if it was accepted."""
        depth = len(self.emitted)
        self.emitted.append(token)
        self.accepted = accepted
        self.going = accepted and depth + 1 < self.rows.shape[1]
        if self.going:
            self.alive &= (self.lengths > depth) & (self.tokens[:, depth] == token)
            self.going = self.row() >= 0


class PathVerifier(Verifier):
    """Takes the place of vLLM's rejection sampler where several paths are drafted."""

    def __init__(self, runner: Any, rule: str) -> None:
        super().__init__(runner, "token")  # its chain rule has nothing to do here
        self.node_rule = rule
        self.decide = backend(runner.device).decide

    def verify_paths(self, requests: list[PathRequest], logits: Tensor) -> SamplerOutput:
        """Emitted tokens of every request, (B, longest + 1) int32 padded with -1.

        Every request is in the list, in the order of the batch.
        """
        sampling = self.runner.input_batch.sampling_metadata
        greedy = greedy_requests(sampling, len(requests))
        wants_logprobs = sampling.max_num_logprobs is not None or sampling.logprob_token_ids
        visited: list[tuple[list[PathRequest], Tensor]] = []
        going = requests
        while going:
            rows = torch.tensor([r.row() for r in going], device=logits.device)
            values = logits[rows]
            raw = values.clone() if wants_logprobs else values
            of_rows = self._of_rows(going, sampling, first=not visited)
            values = self.sampler.apply_logits_processors(values, of_rows, False)
            chosen = [r for r in going if greedy[r.index] or r.key]
            best = None
            if any(greedy[r.index] for r in chosen):
                best = self.sampler.greedy_sample(values).cpu()
            values = self.tempered(values, of_rows)
            if wants_logprobs:
                visited.append((going, values if self.is_processed_logprobs_mode else raw))
            else:
                visited.append((going, values[:0]))
            p = None if of_rows.all_greedy else row_laws(values)
            self._choose(going, greedy, best, p)
            self._draw([r for r in going if not (greedy[r.index] or r.key)], going, p)
            going = [r for r in going if r.going]
        width = max(len(r.emitted) for r in requests)
        emitted = np.full((len(requests), width), -1, np.int32)
        for r in requests:
            emitted[r.index, : len(r.emitted)] = r.emitted
        tokens = torch.from_numpy(emitted).to(logits.device)
        logprobs = self._path_logprobs(visited, tokens, sampling) if wants_logprobs else None
        return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=logprobs)

    def _of_rows(self, going: list[PathRequest], sampling: Any, *, first: bool) -> Any:
        rows = [Row(r.index, r.emitted, len(r.emitted)) for r in going]
        heads = torch.arange(len(going), device=self.runner.device) if first else None
        return rows_as_requests(self.runner, rows, heads, sampling)

    def _choose(
        self, going: list[PathRequest], greedy: Any, best: Tensor | None, p: Tensor | None
    ) -> None:
        """Greedy requests and those with a seed emit the target's own choice (the match rule)."""
        for place, r in enumerate(going):
            if greedy[r.index]:
                assert best is not None
                token = int(best[place])
            elif r.key:
                assert p is not None
                token = keyed_choice(p[place], r.key, r.text_length + len(r.emitted))
            else:
                continue
            depth = len(r.emitted)
            r.take(token, bool((r.tokens[r.candidates(), depth : depth + 1] == token).any()))

    def _draw(
        self, drawn: Sequence[PathRequest], going: list[PathRequest], p: Tensor | None
    ) -> None:
        """The others' tokens, by the rule at each node."""
        if not drawn:
            return
        assert p is not None
        place = {r.index: place for place, r in enumerate(going)}
        nodes = self._nodes(drawn, [place[r.index] for r in drawn])
        shape = (len(drawn), nodes.candidates.shape[1] + 1)
        u = torch.rand(shape, dtype=torch.float64, device=p.device)
        tokens, accepted = self.decide(self.node_rule, p, nodes, u[:, 1:], u[:, 0])
        for r, token, candidate in zip(drawn, tokens.tolist(), accepted.tolist(), strict=True):
            if token < 0:  # no law: nothing to emit
                r.going = False
            else:
                r.take(token, candidate >= 0)

    def _nodes(self, drawn: Sequence[PathRequest], rows: list[int]) -> Nodes:
        """The candidates of every request at its depth, in draw order, and the law behind them."""
        count = max(r.tokens.shape[0] for r in drawn)
        entries = max(r.laws.shape[2] for r in drawn)
        candidates = np.full((len(drawn), count), _NO_CANDIDATE, np.int64)
        law_ids = np.zeros((len(drawn), entries), np.int64)
        law = np.zeros((len(drawn), entries))
        distinct = self.node_rule in DISTINCT
        for b, r in enumerate(drawn):
            depth, paths = len(r.emitted), r.candidates()
            if not paths.shape[0]:
                continue
            tokens = r.tokens[paths, depth].tolist()
            if distinct:
                tokens = list(dict.fromkeys(tokens))
            candidates[b, : len(tokens)] = tokens
            width = r.laws.shape[2]
            law_ids[b, :width] = np.maximum(r.law_ids[paths[0], depth], 0)
            law[b, :width] = r.laws[paths[0], depth]
        arrays = (np.array(rows), candidates, law_ids, law)
        return Nodes(*(torch.from_numpy(a).to(self.runner.device) for a in arrays))

    def _path_logprobs(
        self, visited: list[tuple[list[PathRequest], Tensor]], emitted: Tensor, sampling: Any
    ) -> LogprobsTensors:
        """As :meth:`Verifier._logprobs`, from the rows that the walk went through."""
        rows = visited[0][1].new_zeros(
            (emitted.shape[0] * emitted.shape[1], visited[0][1].shape[1])
        )
        for depth, (going, values) in enumerate(visited[: emitted.shape[1]]):
            places = [r.index * emitted.shape[1] + depth for r in going]
            rows[torch.tensor(places, device=rows.device)] = values
        return self.gathered_logprobs(rows, emitted, sampling)
