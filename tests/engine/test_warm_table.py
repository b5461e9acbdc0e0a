"""The STAND table outlives its engine: a server ends, another engine starts warm from its file."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from proposers.table_file import TableReader
from tests.engine import tiny
from tests.engine.engines import STAND, counters, engine
from vllm_plugin.server import ServerOptions, ServerProcess, plugin_speculation, vllm_server

pytestmark = [pytest.mark.engine, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
# Prompts stay out of the table, so that whatever the first drafts are made of came from the file.
OPTIONS = {
    "table_mib": 4,
    "prompt_visits": False,
    "min_survival": 0.0,
    "order": 4,
    "length": "fixed",
}
PROMPT = [5, 9, 13, 22, 8, 31]
TOKENS = 48


def answer(server: ServerProcess) -> list[int]:
    body = {
        "model": "model",
        "prompt": PROMPT,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    reply = httpx.post(server.url + "/v1/completions", json=body, timeout=120, trust_env=False)
    assert reply.status_code == httpx.codes.OK, reply.text
    return list(reply.json()["choices"][0]["token_ids"])


def value(server: ServerProcess, name: str) -> float:
    page = httpx.get(server.url + "/metrics", timeout=10, trust_env=False).text
    found = [
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    ]
    return sum(found)


def contexts(path: Path, *, at_the_end: bool) -> int:
    """How many contexts a file has, read to its end and checked, and when it was saved."""
    with TableReader(path) as reader:
        assert reader.identity.tokenizer  # the engine knew its tokenizer
        assert reader.about["at_the_end"] is at_the_end
        return sum(block.keys.shape[0] for block in reader.blocks())


def api_server(server: ServerProcess) -> psutil.Process:
    """The process that `vllm serve` is, below the reaper that tests put around it."""
    assert server._process is not None
    return psutil.Process(server._process.pid).children()[0]


def test_a_server_saves_its_table_and_the_next_engine_drafts_from_its_first_step(
    tmp_path: Path,
) -> None:
    model = tiny.build(tmp_path / "model", tokenizer=True)
    path = tmp_path / "stand.table"
    options = OPTIONS | {"table_path": str(path), "table_save_minutes": 20 / 60}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("VLLM_LOGGING_LEVEL", "INFO")
        served = ServerOptions(
            model=str(model),
            speculative_config=plugin_speculation(4),
            additional_config={"specproof": options},
            max_model_len=128,
            dtype="float32",
        )
        with vllm_server(served) as server:
            assert "cold start" in server.log_tail(1000)
            cold = answer(server)
            until = time.monotonic() + 120
            while not path.exists():  # while it serves, by the clock
                assert time.monotonic() < until
                time.sleep(0.1)
            assert contexts(path, at_the_end=False) > 0
            while value(server, "specproof:table_saves_total") < 1:  # counted when it is there
                assert time.monotonic() < until
                time.sleep(0.1)
            assert value(server, "specproof:table_saves_total") == 1
            cold_steps = value(server, "vllm:spec_decode_num_drafts_total")
            cold_accepted = value(server, "vllm:spec_decode_num_accepted_tokens_total")
            assert answer(server) == cold  # the clock will not save this before the server ends
            parent = api_server(server)
            os.kill(parent.pid, signal.SIGTERM)  # what `docker stop` and systemd send
            psutil.wait_procs([parent], timeout=120)
            assert path.exists(), server.log_tail(100)
    known = contexts(path, at_the_end=True)
    assert sorted(p.name for p in tmp_path.glob(".stand.table.*")) == []

    path.touch()
    before = path.stat().st_mtime_ns
    warm = OPTIONS | {"table_path": str(path), "table_save_minutes": 0}
    settings: dict[str, Any] = {"options": warm, "max_model_len": 128, "await_end": True}
    with engine(model, proposer=STAND, **settings) as llm:
        answers = generate(llm)
        measured = counters(llm)
    assert answers == cold
    # A first request that met an empty table could not draft at its first step and seldom later.
    assert measured["num_accepted_tokens"] >= 0.7 * TOKENS > cold_accepted
    assert measured["num_drafts"] < cold_steps + cold_accepted
    assert measured["num_drafts"] + measured["num_accepted_tokens"] >= TOKENS - 1
    assert path.stat().st_mtime_ns > before  # an LLM object saves too
    assert contexts(path, at_the_end=True) >= known


def generate(llm: Any) -> list[int]:
    from vllm import SamplingParams

    parameters = SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0)
    [output] = llm.generate([{"prompt_token_ids": PROMPT}], parameters, use_tqdm=False)
    return list(output.outputs[0].token_ids)
