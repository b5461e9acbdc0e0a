"""A real server is recorded from: laws equal the model's own, and a killed engine costs little."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests.engine import tiny
from tests.engine.exact import ExactModel, Sampling, shape
from theory.trace_file import read
from theory.traces import Trace
from vllm_plugin.record_journal import counters_of
from vllm_plugin.row_log import ENVIRONMENT, RowReader
from vllm_plugin.server import ServerOptions, ServerProcess, plugin_speculation, vllm_server

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 300  # more than the 256 log probabilities that are asked for
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
QUESTIONS = (
    *("abc abc abc", "the the", "xyz", "0 1 2 0 1 2", "aa bb aa bb", "q"),
    *("a a a a", "no no no", "12 12", "x y x y x y"),
)
SAMPLES, TOKENS = 2, 80
# All drafts are verified, whatever the machine makes of their cost.
FIXED = {"specproof": {"length": "fixed"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.build(
        tmp_path_factory.mktemp("tiny"), vocabulary=VOCABULARY, sharpness=4.0, tokenizer=True
    )
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def exact(model: Path) -> ExactModel:
    return ExactModel(model)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [
        {"question_id": i, "category": "qa", "turns": [text]} for i, text in enumerate(QUESTIONS)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def start(dataset: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-c", "from vllm_plugin.cli import main; main()", "record"),
            *("--dataset", str(dataset), "--out", str(out), "--json", *words),
            *("--samples", str(SAMPLES), "--max-tokens", str(TOKENS)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def kill_engine(command: subprocess.Popen[str]) -> None:
    """SIGKILL to the engine core behind the server that a command started."""
    cores = [
        child
        for child in psutil.Process(command.pid).children(recursive=True)
        if "EngineCore" in child.name() + " ".join(child.cmdline())
    ]
    assert cores, "no process looks like an engine core"
    for core in cores:
        core.kill()


@torch.inference_mode()
def assert_exact(trace: Trace, exact: ExactModel) -> None:
    """Heads, emitted tokens and processed laws are those of the model's logits by transformers."""
    for answer in range(trace.answers):
        prompt = trace.prompt(int(trace.answer_prompts[answer]))
        rows = trace.answer(answer)
        text = torch.from_numpy(np.concatenate([prompt, trace.tokens[rows]]).astype(np.int64))
        logits = exact.model(text[None]).logits[0, len(prompt) - 1 : -1].numpy()
        laws = np.log(shape(logits, Sampling(1.0)))
        best = -np.sort(-laws, axis=1)[:, : trace.ids.shape[1]]
        np.testing.assert_allclose(trace.log_masses[rows], best, atol=1e-3)
        np.testing.assert_allclose(np.take_along_axis(laws, trace.ids[rows], 1), best, atol=1e-3)
        places = (np.arange(len(laws)), trace.tokens[rows])
        np.testing.assert_allclose(trace.emitted_log_masses[rows], laws[places], atol=1e-3)
        p = shape(logits, Sampling(trace.sampling.temperature))[places]
        off = np.abs(trace.processed.emitted[rows] / p - 1)
        assert np.all(off <= trace.processed.slack[rows] + 3e-3)
    assert trace.processed.slack.mean() < 1e-3


@torch.inference_mode()
def exact_refused_rows(trace: Trace, file: Path, exact: ExactModel) -> int:
    """How many rows the engine logged of refused branches; each is the model's law there."""
    reader, rows = RowReader(file), 0
    for prompt in range(trace.prompts):
        answers = np.flatnonzero(trace.answer_prompts == prompt)
        texts = [trace.tokens[trace.answer(int(a))] for a in answers]
        refused = reader.take(trace.prompt(prompt), texts)
        if refused is None:  # an answer of the first sitting, whose engine drafted nothing
            continue
        text = np.concatenate(texts)
        begins = np.cumsum([0, *map(len, texts)])
        for row in range(len(refused)):
            start = int(refused.starts[row])
            first = begins[np.searchsorted(begins, start, "right") - 1]
            context = [*trace.prompt(prompt), *text[first:start], *refused.path(row)]
            ids = torch.tensor([context], dtype=torch.int64)
            law = shape(exact.model(ids).logits[0, -1:].numpy(), Sampling(1.0))[0]
            held = refused.ids[row] >= 0
            got = np.exp(refused.log_masses[row][held])
            np.testing.assert_allclose(got, law[refused.ids[row][held]], rtol=2e-3, atol=1e-6)
            rows += 1
    return rows


def drafting_server(model: Path) -> ServerProcess:
    """A running server, as a user's would be, that drafts with STAND."""
    return vllm_server(
        ServerOptions(
            model=str(model),
            speculative_config=plugin_speculation(4),
            additional_config=FIXED,
            max_model_len=256,
            dtype="float32",
            extra=("--max-logprobs", "256"),
        )
    )


def test_an_engine_is_killed_another_goes_on_and_all_laws_are_exact(
    model: Path, exact: ExactModel, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First without drafts, in an engine that is killed; then in a server that drafts."""
    out, journal = tmp_path / "trace.npz", tmp_path / "trace.npz.partial"
    served = ("--model", str(model), "--dtype", "float32", "--max-model-len", "256")
    with start(dataset, out, *served) as command:
        limit = time.monotonic() + 400
        while len(list(journal.glob("question-*.npz"))) < 2:
            assert command.poll() is None and time.monotonic() < limit
            time.sleep(0.01)
        kill_engine(command)
        _, errors = command.communicate(timeout=300)
    assert command.returncode == 1
    sentence = next(line for line in errors.splitlines() if line.startswith("specproof record: "))
    assert "its log is " in sentence and "go on with: specproof record " in sentence
    assert "Traceback" not in errors
    kept = read(out)
    assert 2 <= kept.prompts < len(QUESTIONS)
    assert kept.vocabulary == VOCABULARY and kept.ids.shape[1] == 64
    assert_exact(kept, exact)
    counted = counters_of(kept.provenance)
    assert counted is not None and counted.block_efficiency == 1 and counted.draft_tokens == 0

    log = tmp_path / "rows"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(ENVIRONMENT, str(log))
    with drafting_server(model) as server, start(dataset, out, "--url", server.url) as command:
        shown, errors = command.communicate(timeout=400)
    assert command.returncode == 0, errors
    whole = read(out)
    assert whole.prompts == len(QUESTIONS) and whole.answers == SAMPLES * len(QUESTIONS)
    np.testing.assert_array_equal(whole.tokens[: len(kept)], kept.tokens)
    assert_exact(whole, exact)
    first, second = whole.provenance["sittings"]
    assert first["questions"] == kept.prompts
    assert second["questions"] == len(QUESTIONS) - kept.prompts
    assert first["counters"] == kept.provenance["counters"]
    assert second["counters"]["block_efficiency"] > 1
    counted = counters_of(whole.provenance)
    assert counted is not None and counted.generation_tokens == len(whole)
    assert counted.first_tokens == whole.answers
    more = counted.generation_tokens - counted.first_tokens - counted.decode_steps
    assert 0 < more <= counted.accepted_tokens  # an answer can end before the last that it accepted
    assert json.loads(shown)["counters"]["drafts"] == counted.drafts > 0
    assert not journal.exists()
    refused = counted.draft_tokens - counted.accepted_tokens
    assert exact_refused_rows(whole, log, exact) == refused > 0
