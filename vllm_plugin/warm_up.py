"""Compile every kernel before the server says that it is ready, not within a first request."""

import numpy as np
import torch

from proposers import Drafter, DraftRequests, StandDrafter, VerifiedRows
from proposers.batch import Ints
from proposers.noise import request_key
from proposers.path_batch import PathDrafts
from proposers.path_stand import StandPathDrafter
from vllm_plugin.backends import backend
from vllm_plugin.keyed_sampler import keyed_choice
from vllm_plugin.length_control import Batch, LengthControl
from vllm_plugin.nodes import Nodes
from vllm_plugin.path_drafts import PendingPaths
from vllm_plugin.rules import Chains
from vllm_plugin.rules_cpu import verify_token
from vllm_plugin.step_clock import Held
from vllm_plugin.top_entries import top_entries

_STEPS_OF_A_CURVE = 12  # after which the first guess of step times is one that is corrected


def warm_up(drafter: Drafter) -> None:
    """Run a throwaway drafter and the kernels beside it once, with the argument types of a step."""
    text = np.array([[1, 2, 3, 1, 2, 3, 1, 2, 3]], np.int32)
    drafter.start(0, text[0, :8])
    ids, probabilities = top_entries(torch.zeros((2, 128)), np.arange(2))
    ends = np.array([3, 4], np.int64)
    begins, emitted = np.zeros(2, np.int64), np.array([1, -1], np.int32)
    rows = VerifiedRows(text[0], begins, ends, ids, probabilities, emitted, np.zeros(2))
    for length, key in ((8, 0), (9, request_key(0))):  # a text that grows, as a request's does
        drafter.observe(rows)
        requests = _asked(text, length, key)
        if isinstance(drafter, StandPathDrafter):
            _lay_out_and_judge(drafter.draft_paths(requests))
        else:
            drafter.draft(requests)
    drafter.finish(0)
    one = torch.ones(1, dtype=torch.int64)
    chains = Chains(
        one * 0, one, one > 0, one[:, None], one[:, None, None], one.double()[:, None, None]
    )
    u = torch.zeros((1, 2), dtype=torch.float64)
    verify_token(torch.full((2, 128), 1 / 128), chains, u[:, :1], u[:, 1])
    keyed_choice(torch.full((128,), 1 / 128), request_key(0), 0)


def _asked(text: Ints, length: int, key: int) -> DraftRequests:
    return DraftRequests(
        tokens=text,
        rows=np.zeros(1, np.int64),
        lengths=np.full(1, length, np.int64),
        budgets=np.ones(1, np.int64),
        temperatures=np.ones(1),
        top_k=np.zeros(1, np.int64),
        top_p=np.ones(1),
        noise_keys=np.full(1, key, np.uint64),
        handles=np.zeros(1, np.int64),
    )


def warm_up_lengths(control: LengthControl, drafter: Drafter) -> None:
    """Run a throwaway control once through everything that a step does with it."""
    text = np.array([[1, 2, 3, 1, 2, 3, 1, 2, 3]], np.int32)
    one = np.ones(1, np.int64)
    asked = _asked(text, 8, 0)
    batch = Batch(one, one)
    laws = top_entries(torch.zeros((1, 128)), np.arange(1))
    emitted = np.full((1, control.longest), -1, np.int32)
    emitted[0, 0] = 3
    rows = VerifiedRows(text[0], one * 0, one * 8, *laws, emitted[0, :1], np.ones(1))
    for step in range(_STEPS_OF_A_CURVE):
        control.verified(one, one, one * 0)
        control.begin(Held(2, 1, decoding=True))
        control.ahead(batch)
        if not isinstance(drafter, StandPathDrafter):
            apart = one == step % 2
            control.cut(batch, one * 0, drafter.draft(asked), asked.temperatures, apart)
            if isinstance(drafter, StandDrafter):
                control.shadow(drafter, rows)
            else:
                control.follow(drafter, asked, emitted, np.zeros(emitted.shape, np.int64), laws)
        else:
            control.floor(batch)
        control.end()


def _lay_out_and_judge(drafts: PathDrafts) -> None:
    """What a step does with one request's paths, as far as it is compiled."""
    paths = PendingPaths.of(
        8, drafts.tokens[0], drafts.lengths[0], drafts.law_ids[0], drafts.laws[0], most=1
    )
    paths.flat(1)
    paths.rows(1)
    one = torch.ones((1, 1), dtype=torch.int64)
    u = torch.zeros((1, 2), dtype=torch.float64)
    node = Nodes(one[0] * 0, one, one, one.double())
    backend("cpu").decide("kseq", torch.full((2, 128), 1 / 128), node, u[:, 1:], u[:, 0])
