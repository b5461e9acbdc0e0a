"""`specproof record` over a server's API: the laws, the order, the journal, one sentence each."""

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_vllm import FakeVllm, served
from typer.testing import CliRunner

from tests.theory.markov_engine import target
from theory.trace_file import read
from theory.traces import Trace
from vllm_plugin.cli import app
from vllm_plugin.fingerprint import PROBES, fingerprint
from vllm_plugin.record_journal import counters_of
from vllm_plugin.record_server import _sorted

P = target()
TURNS = ("abc", "what?", "why", "when", "who is it")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [
        {"question_id": i, "category": "qa", "turns": [turn, "and then?"]}
        for i, turn in enumerate(TURNS)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def command(tmp_path: Path, dataset: Path) -> Callable[..., Any]:
    """Run `specproof record` on the questions into trace.npz."""

    def run(*words: str, out: str = "trace.npz", tokens: int = 7, samples: int = 3) -> Any:
        return CliRunner().invoke(
            app,
            [
                "record", "--dataset", str(dataset), "--out", str(tmp_path / out),
                "--samples", str(samples), "--max-tokens", str(tokens), *words,
            ],
        )  # fmt: skip

    return run


def said(run: Any) -> str:
    """The one sentence of a command that failed, without the progress bar."""
    assert "Traceback" not in run.output
    lines = [line for line in run.stderr.splitlines() if line.startswith("specproof record: ")]
    assert len(lines) == 1, run.stderr
    return str(lines[0].removeprefix("specproof record: "))


def assert_right(trace: Trace, p: np.ndarray, chat: Callable[[str], list[int]]) -> None:
    """Prompts are the server's, laws are p's rows, and every emitted token has its own."""
    turns = dict(enumerate(TURNS))
    for number in range(trace.prompts):
        words = turns[int(trace.questions[number])]
        np.testing.assert_array_equal(trace.prompt(number), chat(words))
    for answer in range(trace.answers):
        rows = trace.answer(answer)
        before = [int(trace.prompt(int(trace.answer_prompts[answer]))[-1])]
        before += trace.tokens[rows].tolist()
        laws = p[before[:-1]]
        np.testing.assert_allclose(
            trace.emitted_log_masses[rows],
            np.log(laws[np.arange(len(laws)), trace.tokens[rows]]),
            rtol=1e-5,
        )
        entries = trace.ids.shape[1]
        best = -np.sort(-laws, axis=1)[:, :entries]
        np.testing.assert_allclose(np.exp(trace.log_masses[rows]), best, rtol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(laws, trace.ids[rows], 1), best, rtol=1e-5)


def chat_of(fake: FakeVllm) -> Callable[[str], list[int]]:
    return lambda words: [0, *fake.read(words), 0]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_recording_holds_the_laws_of_the_server(
    command: Callable[..., Any], tmp_path: Path, concurrency: int
) -> None:
    fake = FakeVllm(P, P)
    with served(fake) as url:
        run = command("--url", url, "--json", "--concurrency", str(concurrency))
    assert run.exit_code == 0, run.output
    shown, trace = json.loads(run.stdout), read(tmp_path / "trace.npz")
    assert shown["answers"] == trace.answers == 15 and shown["tokens"] == len(trace) == 15 * 7
    assert trace.vocabulary == 6 and trace.max_tokens == 7
    assert trace.sampling.temperature == 0.7
    assert sorted(trace.questions) == list("01234")
    np.testing.assert_array_equal(trace.answer_prompts, np.repeat(np.arange(5), 3))
    assert_right(trace, P, chat_of(fake))
    assert trace.tokenizer == fingerprint([fake.read(text) for text in PROBES])
    assert not (tmp_path / "trace.npz.partial").exists()

    # what a model's generation_config.json would change is fixed in every request
    asked = [body for body in fake.bodies if body["max_tokens"] == 7]
    assert all((body["top_p"], body["top_k"], body["min_p"]) == (1.0, 0, 0.0) for body in asked)
    assert "seed" not in asked[0]

    origin = trace.provenance
    assert origin["complete"] and origin["asked_questions"] == 5
    (sitting,) = origin["sittings"]
    assert sitting["server"]["vllm"] == "0.0.fake" and sitting["concurrency"] == concurrency
    counters = counters_of(origin)
    assert counters is not None and counters.generation_tokens == len(trace)
    assert counters.first_tokens == 15 and counters.block_efficiency == pytest.approx(2.0)
    assert origin["counters"]["block_efficiency"] == pytest.approx(2.0)
    assert shown["counters"]["draft_tokens"] == counters.draft_tokens > 0


def test_of_equal_tokens_the_lowest_comes_first() -> None:
    """As argmax takes it; vLLM's own order of a row begins with the emitted token."""
    row = {"token_id:7": -1.5, "token_id:5": -0.5, "token_id:11": -1.5, "token_id:3": -1.5}
    assert _sorted(row) == [(-0.5, 5), (-1.5, 3), (-1.5, 7), (-1.5, 11)]


def test_samples_of_a_question_follow_each_other(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    fake = FakeVllm(P, P)
    with served(fake) as url:
        assert command("--url", url, "--limit", "2", "--seed", "4").exit_code == 0
    asked = [body["prompt"] for body in fake.bodies if body["max_tokens"] == 7]
    assert asked == [asked[0]] * 3 + [asked[3]] * 3 and asked[0] != asked[3]
    trace = read(tmp_path / "trace.npz")
    np.testing.assert_array_equal(trace.prompt(0), asked[0])


def test_heads_are_cut_to_64_and_the_rest_tells_of_the_tail(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(300, 0.3), 300) * 0.99 + 0.01 / 300
    fake = FakeVllm(p, p, most_logprobs=1000)
    with served(fake) as url:
        run = command("--url", url)
        assert run.exit_code == 0 and "grants" not in run.stderr
        few = FakeVllm(p, p, most_logprobs=40)
    with served(few) as url:
        poor = command("--url", url, out="poor.npz")
    trace = read(tmp_path / "trace.npz")
    assert trace.ids.shape[1] == 64 and trace.vocabulary == 300
    assert_right(trace, p, chat_of(fake))
    tempered = p ** (1 / 0.7) / (p ** (1 / 0.7)).sum(axis=1, keepdims=True)
    before = np.concatenate([[trace.prompt(0)[-1]], trace.tokens[:6]])
    off = trace.processed.emitted[:7] / tempered[before, trace.tokens[:7]] - 1
    assert np.all(np.abs(off) <= trace.processed.slack[:7] + 1e-5)
    assert trace.processed.slack.max() < 0.01

    trace = read(tmp_path / "poor.npz")
    assert trace.ids.shape[1] == 32 and trace.tail_log_weights is None
    assert "grants 32 log probabilities a token" in " ".join(poor.stderr.split())
    assert trace.processed.slack.max() > 0.01


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_dying_server_leaves_what_was_finished_and_the_next_call_goes_on(
    command: Callable[..., Any], tmp_path: Path, concurrency: int
) -> None:
    out = tmp_path / "trace.npz"
    fake = FakeVllm(P, P)
    dead = False

    def die(number: int) -> None:
        nonlocal dead
        dead = dead or number == 8
        if dead:
            raise ConnectionAbortedError

    fake.at_answer = die
    words = ("--concurrency", str(concurrency))
    with served(fake) as url:
        run = command("--url", url, *words)
    assert run.exit_code == 1
    sentence = said(run)
    assert "the connection to" in sentence and "go on with: specproof" in sentence
    first = read(out)
    assert first.prompts == 2 and f"2 of 5 questions are finished and in {out}" in sentence
    assert not first.provenance["complete"]
    assert_right(first, P, chat_of(fake))

    again = FakeVllm(P, P)
    with served(again) as url:
        run = command("--url", url, *words)
    assert run.exit_code == 0, run.output
    whole = read(out)
    assert sum(body["max_tokens"] == 7 for body in again.bodies) == 9
    assert whole.prompts == 5 and whole.provenance["complete"]
    assert [s["questions"] for s in whole.provenance["sittings"]] == [2, 3]
    kept = {str(q): i for i, q in enumerate(whole.questions)}
    for number, question in enumerate(first.questions):
        np.testing.assert_array_equal(
            whole.tokens[whole.answer(3 * kept[str(question)])],
            first.tokens[first.answer(3 * number)],
        )
    assert_right(whole, P, chat_of(fake))
    assert not (tmp_path / "trace.npz.partial").exists()


def test_a_dead_engine_behind_a_living_server_is_told(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    with served(FakeVllm(P, P, "engine")) as url:
        run = command("--url", url)
    assert run.exit_code == 1
    assert "failed: EngineCore encountered an issue.; 0 of 5 questions are finished" in said(run)
    assert not list(tmp_path.glob("trace*"))  # nothing finished, nothing left behind


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler: a suite that was started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_what_is_finished(command: Callable[..., Any], tmp_path: Path) -> None:
    fake = FakeVllm(P, P)

    def interrupt(number: int) -> None:
        if number == 7:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # before this answer comes, it is no longer waited for

    fake.at_answer = interrupt
    with served(fake) as url:
        run = command("--url", url)
        assert run.exit_code == 130
        assert said(run).startswith("interrupted; 2 of 5 questions are finished and in ")
        assert read(tmp_path / "trace.npz").prompts == 2
        fake.at_answer = lambda number: None
        assert command("--url", url).exit_code == 0
    assert read(tmp_path / "trace.npz").prompts == 5


def test_other_settings_do_not_resume(command: Callable[..., Any], tmp_path: Path) -> None:
    fake = FakeVllm(P, P)

    def die(number: int) -> None:
        if number >= 4:
            raise ConnectionAbortedError

    fake.at_answer = die
    with served(fake) as url:
        assert command("--url", url).exit_code == 1
        fake.at_answer = lambda number: None
        run = command("--url", url, "--temperature", "0.9", "--limit", "4")
        assert run.exit_code == 2
        sentence = said(run)
        assert "was begun with other settings" in sentence
        assert "temperature was 0.7 and is now 0.9" in sentence and "questions was" in sentence
        with (tmp_path / "trace.npz.partial" / "lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert "another specproof record is writing" in said(command("--url", url))
        assert command("--url", url).exit_code == 0
        run = command("--url", url)
    assert run.exit_code == 2 and "exists and is complete" in said(run)


def test_a_damaged_question_is_asked_again(command: Callable[..., Any], tmp_path: Path) -> None:
    fake = FakeVllm(P, P)
    folder = tmp_path / "trace.npz.partial"

    def spoil(number: int) -> None:
        if number == 14:
            path = folder / "question-000001.npz"
            path.write_bytes(path.read_bytes()[:-40])

    fake.at_answer = spoil
    with served(fake) as url:
        run = command("--url", url)
        assert run.exit_code == 1
        assert said(run).startswith("some of the finished questions were damaged; 4 of 5")
        assert read(tmp_path / "trace.npz").prompts == 4
        assert command("--url", url).exit_code == 0
    assert read(tmp_path / "trace.npz").prompts == 5


def test_a_full_disk_is_told_and_costs_nothing_that_is_finished(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    savez, calls = np.savez_compressed, 0

    def full(*words: Any, **named: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(28, "No space left on device")
        savez(*words, **named)

    with served(FakeVllm(P, P)) as url:
        with monkeypatch.context() as patch:
            patch.setattr(np, "savez_compressed", full)
            run = command("--url", url)
        assert run.exit_code == 1 and "No space left on device" in said(run)
        assert not (tmp_path / "trace.npz").exists()
        run = command("--url", url)
    assert run.exit_code == 0, run.output
    assert [s["questions"] for s in read(tmp_path / "trace.npz").provenance["sittings"]] == [3, 2]


def test_others_who_use_the_server_are_told(command: Callable[..., Any]) -> None:
    class Busy(FakeVllm):
        def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            self.tokens += 2
            return super().complete(body)

    for kind, told in ((FakeVllm, False), (Busy, True)):
        with served(kind(P, P, most_logprobs=256)) as url:
            run = command("--url", url, out=f"{kind.__name__}.npz")
        assert run.exit_code == 0, run.stderr
        assert ("others used it" in run.stdout) == told


def test_a_server_without_counters(command: Callable[..., Any], tmp_path: Path) -> None:
    with served(FakeVllm(P, P, "metrics")) as url:
        run = command("--url", url)
    assert run.exit_code == 0
    assert "shows no counters" in run.stdout
    assert read(tmp_path / "trace.npz").provenance["counters"] is None


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("processed", "gives log probabilities after temperature"),
        ("logits", "gives logits instead of log probabilities"),
        ("tokenize", "does not tokenize a chat (no such path)"),
        ("token_ids", "returns no token ids, or no log probabilities by token id"),
        ("logprobs", "returns no token ids, or no log probabilities by token id"),
        ("completions", "answered something else than a completion"),
        ("vocabulary", "does not check allowed_token_ids"),
    ],
)
def test_a_server_that_cannot_be_recorded_from(
    command: Callable[..., Any], tmp_path: Path, broken: str, words: str
) -> None:
    with served(FakeVllm(P, P, broken)) as url:
        run = command("--url", url)
    assert run.exit_code == 2
    assert words in said(run)
    assert not list(tmp_path.glob("trace*"))


def test_too_few_log_probabilities(command: Callable[..., Any]) -> None:
    p = np.full((64, 64), 1 / 64)
    with served(FakeVllm(p, p, most_logprobs=5)) as url:
        run = command("--url", url)
    assert run.exit_code == 2
    assert "does not give 20 log probabilities a token" in said(run)
    assert "start it with --max-logprobs 256" in said(run)


def test_a_prompt_without_room_for_its_answer(command: Callable[..., Any]) -> None:
    with served(FakeVllm(P, P)) as url:
        run = command("--url", url, tokens=195)
    assert run.exit_code == 2
    assert "leaves no room for --max-tokens 195" in said(run)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ([], 2, "give --model to serve one, or --url for a running server"),
        (["--model", "x", "--url", "y"], 2, "give --model to serve one, or --url"),
        (["--url", "http://127.0.0.1:9"], 1, "no OpenAI-compatible server at"),
        (["--url", "nonsense"], 1, "no OpenAI-compatible server at nonsense"),
        (["--url", "x", "--speculative-config", "{}"], 2, "with --url they belong to the command"),
        (["--model", "x", "--speculative-config", "{"], 2, "--speculative-config is no JSON"),
        (["--model", "x", "--additional-config", "[]"], 2, "must be a JSON object"),
        (["--model", "no-such-model"], 2, "no-such-model"),
        (["--url", "x", "--limit", "9"], 2, "holds 5 questions"),
        (["--url", "x", "--top-p", "0"], 2, "--top-p is 0; it must lie above 0"),
    ],
)
def test_wrong_calls_end_in_one_sentence(
    command: Callable[..., Any], words: list[str], code: int, sentence: str
) -> None:
    run = command(*words)
    assert run.exit_code == code, run.output
    assert sentence in said(run)
    assert run.stdout == ""


def test_outputs_that_cannot_be_written(command: Callable[..., Any]) -> None:
    assert "must end in .npz" in said(command("--url", "x", out="trace.json"))
    assert "is no folder to write into" in said(command("--url", "x", out="none/trace.npz"))
