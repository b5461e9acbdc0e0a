"""What is kept for each request while it is served, and how its state is put to a drafter."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proposers import DraftRequests
from proposers.batch import Ints, Longs
from proposers.groups import LEAST_SECRET, group_of
from proposers.noise import request_key
from vllm_plugin import request_options
from vllm_plugin.config import ConfigurationError
from vllm_plugin.request_options import RequestOptions


@dataclass(slots=True)
class Served:
    """``noise_key`` is 0 without a seed, ``limit`` the most drafts, ``group`` 0 for the common one.

    ``started``: its prompt was shown to the drafter. ``taught``: its text may be. ``state`` is
    vLLM's, to know a request by when another one is given its id.
    """

    handle: int
    noise_key: int
    limit: int
    group: int
    state: Any
    taught: bool = True
    started: bool = False


class ServedRequests:
    """The requests of one runner by id; handles are never used twice.

    ``has_groups``: the drafter keeps groups apart. If not, a request that names one is served
    without drafts and teaches nothing; front ends refuse it before.
    """

    def __init__(self, has_groups: bool = True) -> None:
        self.has_groups = has_groups
        self._held: dict[str, Served] = {}
        self._handles = itertools.count()
        self._secret = secrets.token_bytes(LEAST_SECRET)

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    def __getitem__(self, request_id: str) -> Served:
        return self._held[request_id]

    def admit(self, request_id: str, state: Any) -> None:
        """Begin with a request; ``state`` is vLLM's, with its SamplingParams or None."""
        parameters = state.sampling_params
        seed = None if parameters is None else parameters.seed
        taught = True
        try:
            asked = request_options.read(None if parameters is None else parameters.extra_args)
        except ConfigurationError:  # it came past the front ends' door
            asked, taught = RequestOptions(max_draft=0), False
        if asked.group is not None and not self.has_groups:
            asked, taught = RequestOptions(max_draft=0), False
        self._held[request_id] = Served(
            handle=next(self._handles),
            noise_key=0 if seed is None else request_key(seed),
            limit=asked.max_draft,
            group=0 if asked.group is None else group_of(asked.group, self._secret),
            state=state,
            taught=taught,
        )

    def forget(self, request_id: str) -> Served:
        """End with a request."""
        return self._held.pop(request_id)

    def ended(self, live: Mapping[str, Any]) -> list[str]:
        """Those that are not among vLLM's live ones any more."""
        return [
            request_id
            for request_id, held in self._held.items()
            if live.get(request_id) is not held.state
        ]

    def handles(self, request_ids: Sequence[str]) -> Longs:
        """Their handles, (B,)."""
        return np.array([self._held[request_id].handle for request_id in request_ids], np.int64)

    def groups(self, request_ids: Sequence[str]) -> NDArray[np.uint64]:
        """Their groups, (B,); (0,) where all are in the common one."""
        found = [self._held[request_id].group for request_id in request_ids]
        return np.array(found if any(found) else [], np.uint64)

    def draft_requests(
        self, batch: Any, tokens: Ints, rows: Longs, lengths: Longs, budgets: Longs
    ) -> DraftRequests:
        """What a drafter is told of the requests at these places of vLLM's input batch, all (B,).

        ``tokens`` (any, L) are all texts by place, of which the first ``lengths`` tokens count.
        """
        ids = [batch.req_ids[i] for i in rows.tolist()]
        held = [self._held[request_id] for request_id in ids]
        top_k = batch.top_k_cpu[rows].astype(np.int64)
        return DraftRequests(
            tokens=tokens,
            rows=rows,
            lengths=lengths,
            budgets=budgets,
            temperatures=batch.temperature_cpu[rows].astype(np.float64),
            top_k=np.where(top_k < batch.vocab_size, top_k, 0),
            top_p=batch.top_p_cpu[rows].astype(np.float64),
            noise_keys=np.array([s.noise_key for s in held], np.uint64),
            handles=np.array([s.handle for s in held], np.int64),
            groups=self.groups(ids),
        )
