"""What a first request would have to wait for is compiled before the server says it is ready."""

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numba.core.dispatcher import Dispatcher

import proposers
import vllm_plugin
from proposers import DraftRequests, VerifiedRows
from proposers.path_stand import StandPathDrafter
from tests.proposers.batches import requests
from vllm_plugin import nodes_cpu, path_drafts
from vllm_plugin.config import Options
from vllm_plugin.length_control import Batch, LengthControl
from vllm_plugin.length_settings import make_control
from vllm_plugin.nodes import RULES, Nodes
from vllm_plugin.step_clock import Held
from vllm_plugin.warm_up import warm_up, warm_up_lengths

K = 4
ROOT = Path(__file__).parents[2]


def signatures() -> dict[str, int]:
    """How many signatures each kernel of ``proposers`` was compiled for."""
    found = {}
    for module in pkgutil.walk_packages(proposers.__path__, "proposers."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, Dispatcher):
                found[f"{module.name}.{name}"] = len(value.signatures)
    return found


def drafter(name: str, **options: Any) -> Any:
    kind = getattr(vllm_plugin, name)
    return kind.make_drafter(SimpleNamespace(), Options(table_mib=1, **options), K, 0)


def decode(drafter: Any, temperature: float) -> None:
    """Two requests through twelve steps, with the arrays that the V1 adapter hands over."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 5, (2, 80)).astype(np.int32)
    lengths = np.array([6, 9])
    for handle in (10, 11):
        drafter.start(handle, tokens[handle - 10, : lengths[handle - 10]])
    for _ in range(12):
        grown = rng.integers(1, K + 2, 2)
        ends = np.concatenate(
            [lengths[0] + np.arange(grown[0]), 80 + lengths[1] + np.arange(grown[1])]
        )
        ids = rng.permuted(np.tile(np.arange(10, dtype=np.int32), (ends.size, 1)), axis=1)
        law = -np.sort(-rng.dirichlet(np.ones(10), ends.size).astype(np.float32), axis=1)
        text = tokens.ravel().copy()
        begins = np.repeat([0, 80], grown)
        temperatures = np.full(ends.size, temperature)
        drafter.observe(VerifiedRows(text, begins, ends, ids, law, text[ends], temperatures))
        lengths = lengths + grown
        if lengths.max() > 75:
            break
        drafter.draft(
            DraftRequests(
                tokens=tokens,
                rows=np.arange(2),
                lengths=lengths.astype(np.int64),
                budgets=np.array([K, 2]),
                temperatures=np.full(2, temperature),
                top_k=np.zeros(2, np.int64),
                top_p=np.ones(2),
                noise_keys=np.zeros(2, np.uint64),
                handles=np.array([10, 11]),
            )
        )
    for handle in (10, 11):
        drafter.finish(handle)


def compiled_late(name: str, *, warmed: bool = True) -> list[str]:
    """The kernels that a first request would compile. Only true in a process of its own."""
    options: dict[str, Any] = {}
    if name == "Chooser":
        options["members"] = ["stand", "prompt_lookup", "token_recycling", "aded"]
    if warmed:
        warm_up(drafter(name, **options))
    before = signatures()
    for temperature in (0.0, 0.7, 1.0):
        decode(drafter(name, **options), temperature)
    return [kernel for kernel, count in signatures().items() if count != before.get(kernel, 0)]


def lengths_compiled_late() -> list[str]:
    """The kernels that a length policy's first steps would compile. In a process of its own."""

    def control() -> LengthControl:
        return make_control(Options(), K, trees=False, hardware="")

    warm_up_lengths(control(), drafter("Stand"))
    before = signatures()
    used, stand = control(), drafter("Stand")
    rng = np.random.default_rng(0)
    handles, one = np.arange(3), np.ones(3, np.int64)
    batch = Batch(handles, np.array([K, 0, 2]), others=1, room=7)
    texts = requests([[1, 2, 3, 1, 2, 3], [2, 3, 1, 2, 3]], [K, 2], temperature=0.7)
    rows = VerifiedRows(
        np.array([1, 2, 3, 1, 2], np.int32), np.zeros(2, np.int64), np.array([4, 5]),
        np.tile(np.arange(10, dtype=np.int32), (2, 1)), np.full((2, 10), 0.1, np.float32),
        np.array([2, 3], np.int32), np.array([0.7, 0.7]),
    )  # fmt: skip
    stand.start(0, texts.tokens[texts.rows[0], :6])
    for step in range(40):
        used.verified(handles, one, one * 0)
        used.begin(Held(int(rng.integers(1, 12)), 3, decoding=step % 5 > 0))
        if used.ahead(batch):
            places = np.array([0, 2])
            used.cut(batch, places, stand.draft(texts), texts.temperatures, places > 1)
        used.shadow(stand, rows)
        used.end()
    used.report.send()
    return [kernel for kernel, count in signatures().items() if count != before[kernel]]


IN_A_PROCESS = """
import json
from tests.vllm_plugin.test_warm_up import compiled_late, lengths_compiled_late
cold = compiled_late("PromptLookup", warmed=False)
late = {name: compiled_late(name) for name in NAMES}
print(json.dumps({"cold": cold, "lengths": lengths_compiled_late()} | late))
"""


def paths_compiled_late(*, warmed: bool) -> list[str]:
    """The kernels that a first step of several paths would compile. In a process of its own."""

    def signatures() -> dict[str, int]:
        return {
            f"{module.__name__}.{name}": len(value.signatures)
            for module in (path_drafts, nodes_cpu)
            for name, value in vars(module).items()
            if isinstance(value, Dispatcher)
        }

    if warmed:
        warm_up(
            StandPathDrafter(drafter("Stand").table, draft_length=K, candidates=2, drafting="iid")
        )
    before = signatures()
    tokens, lengths = np.array([[1, 2], [1, 3]], np.int32), np.array([2, 2])
    shape = (2, 2, 1)
    ids, laws = np.ones(shape, np.int32), np.ones(shape)
    pending = path_drafts.PendingPaths.of(5, tokens, lengths, ids, laws, most=2)
    for waiting in (pending, pending.limited(1), pending.left_over(np.array([1], np.int32), 1)):
        assert waiting is not None
        waiting.flat(9)
        waiting.rows(4)
    row = torch.zeros(3, dtype=torch.int64)
    one = torch.ones((3, 1), dtype=torch.int64)
    u = torch.rand((3, 2), dtype=torch.float64)
    node = Nodes(row, one, one, one.double())
    for rule in RULES:
        nodes_cpu.decide(rule, torch.full((4, 50), 1 / 50), node, u[:, 1:], u[:, 0])
    return [kernel for kernel, count in signatures().items() if count != before[kernel]]


@pytest.mark.slow
@pytest.mark.parametrize("warmed", [True, False])
def test_nothing_of_several_paths_is_left_to_compile(warmed: bool) -> None:
    script = f"""
from tests.vllm_plugin.test_warm_up import paths_compiled_late
print(paths_compiled_late(warmed={warmed}))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (run.stdout.splitlines()[-1] == "[]") is warmed


@pytest.mark.slow
def test_nothing_is_is_left_to_compile() -> None:
    names = [name for name in vllm_plugin.PROPOSERS if name not in ("Suffix", "PromptLookup")]
    names.insert(0, "Chooser")  # before its members are warmed up on their own
    run = subprocess.run(
        [sys.executable, "-c", f"NAMES = {names!r}{IN_A_PROCESS}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    late = json.loads(run.stdout.splitlines()[-1])
    assert late.pop("cold") == ["proposers.prompt_lookup._draft"]  # what the test would see
    assert late == {name: [] for name in [*names, "lengths"]}
