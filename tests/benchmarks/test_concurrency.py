"""The concurrency benchmark's door, its window, its turns and its halting; no engine."""

import argparse
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import concurrency
import methods
from frozen_servers import FrozenServers
from slices import Slice, adversarial, requests_of, window, words_of

from vllm_plugin.load import Answer, Workload
from vllm_plugin.measurement import Measurement, MeasurementError
from vllm_plugin.scrape import Counters
from vllm_plugin.server import ServerError, ServerProcess

FAKE = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *words): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder whose vocabulary has 120 words of one token behind a blank, and other."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    letters = "abcdefghijkl"
    words = [f"\u0120{a}{b}" for a, b in itertools.product(letters, letters[:10])]
    known = ["<pad>", "plain", "\u0120", "\u01201", "\u0120" + "x" * 20, *words]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(known)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


Call = Callable[..., int]


@pytest.fixture
def bench(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command on adversarial traffic; a server that would start is an error of the test."""

    def no_server(*given: Any, **named: Any) -> None:
        raise AssertionError("a server was about to start")

    monkeypatch.setattr(concurrency, "vllm_server", no_server)

    def call(*words: str) -> int:
        defaults = ["--json", str(tmp_path / "out.json"), "--model", str(folder)]
        try:
            return concurrency.main([*defaults, *words])
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code

    return call


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "one of the arguments --dataset --adversarial is required"),
        (["--adversarial", "--dataset", "x"], "not allowed with argument --adversarial"),
        (["--dataset", "/nowhere.jsonl"], "/nowhere.jsonl cannot be read: No such file"),
        (["--adversarial", "--methods", "none,magic"], "magic is not a method"),
        (["--adversarial", "--categories", "qa"], "--categories chooses among the questions"),
        (["--adversarial", "--concurrency", "1,0"], "'0' is not a whole number from 1 up"),
        (["--adversarial", "--temperature", "0,hot"], "'hot' is not a number from 0 to 2"),
        (["--adversarial", "--waves", "1"], "'1' is not a whole number from 2 up"),
        (["--adversarial", "--plot", "/tmp/x.gif"], "--plot must end in .png"),
        (["--adversarial", "--json", "/dev/null/out.json"], "cannot be written"),
        (["--adversarial", "--model", "/nowhere/model"], "/nowhere/model is no model folder"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    bench: Call, capsys: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    assert bench("--methods", "none,stand", *words) == 2
    printed = capsys.readouterr()
    assert part in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""


def test_a_model_without_words_is_refused(
    bench: Call, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tokenizer.json").unlink()
    assert bench("--adversarial", "--methods", "none") == 2
    assert "offers 0 of them; use --dataset." in capsys.readouterr().err


def test_the_fixed_method_differs_from_stand_in_its_length_alone() -> None:
    extra = {"specproof": {"order": 4}, "other": 1}
    fixed, stand = methods.plan(["fixed", "stand"], 6, additional=extra, ngram=None, suffix=None)
    assert fixed.speculative_config == stand.speculative_config
    assert stand.additional_config == extra
    assert fixed.additional_config == {
        "specproof": {"order": 4, "length": "fixed"}, "other": 1
    }  # fmt: skip


def answer(tokens: int, first: float, last: float) -> Answer:
    return Answer("q", "qa", 0, 0, "", tokens, first, last, "length")


def test_the_window_opens_with_all_in_flight_and_closes_when_a_worker_has_no_more() -> None:
    # Two workers: A and B from 0; A ends at 10 and C follows to 20; B ends at 12 and takes D,
    # the last, to 30. C's end leaves one in flight.
    finished = [
        (10.0, answer(11, 0.0, 10.0)),  # a token each second from 0 on
        (12.0, answer(11, 2.0, 12.0)),  # the window opens at 2
        (20.0, answer(10, 1.0, 10.0)),  # 11, 12, ... 20
        (30.0, answer(17, 2.0, 18.0)),  # 14, 15, ... 30: six more after 14 up to 20
    ]
    assert window(finished, 2) == (pytest.approx(8 + 11 - 1 + 10 + 7), pytest.approx(18.0))


def test_alone_the_window_is_all_but_the_first_prefill() -> None:
    finished = [(10.0, answer(5, 2.0, 10.0)), (14.0, answer(1, 4.0, 4.0))]
    assert window(finished, 1) == (pytest.approx(5.0), pytest.approx(12.0))


def test_answers_too_short_for_a_window_are_an_error() -> None:
    finished = [(9.0, answer(1, 9.0, 9.0)), (1.0, answer(1, 1.0, 1.0))]
    with pytest.raises(MeasurementError, match="before 2 were in flight; raise --waves"):
        window(finished, 2)


def test_a_slice_has_enough_tokens_and_waves() -> None:
    assert requests_of(1, 96, 240, 2) == 3
    assert requests_of(32, 96, 240, 2) == 64


def test_adversarial_prompts_are_new_and_turn_every_50_tokens(folder: Path) -> None:
    words = words_of(folder)
    assert len(words) == 120 and all(word.isalpha() for word in words)
    noise, turns, *more = itertools.islice(adversarial(words, 1), 20)
    assert len(noise.turns[0].split()) == 100
    text = turns.turns[0].split()
    for begin in (0, 100):
        assert text[begin + 5 : begin + 50] == text[begin : begin + 45]  # a period of five
    assert text[55:100] != text[50:95] and text[:5] != text[100:105]
    assert len(text) == 150
    assert len({one.turns for one in (noise, turns, *more)}) == 20
    assert [noise, turns] == list(itertools.islice(adversarial(words, 1), 2))


def test_the_methods_take_turns_on_the_same_questions(
    bench: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, Workload, bool]] = []

    def run_slice(url: str, served: str, workload: Workload, method: str, *, warm: bool) -> Slice:
        drift = 1.0 / (1 + len({one.questions for _, one, _ in calls}))  # slower, round by round
        speed = drift * (200.0 if method == "stand" else 100.0)
        calls.append((method, workload, warm))
        counters = Counters(generation_tokens=90, first_tokens=3, decode_steps=87)
        measured = Measurement(method, 90, 1.0, 0.1, counters, (0.01,), (0.1,))
        return Slice(measured, speed, 1.0)

    @contextlib.contextmanager
    def thawed(self: Any, name: str) -> Iterator[argparse.Namespace]:
        yield argparse.Namespace(url=name, log_path=None)

    monkeypatch.setattr(concurrency, "run_slice", run_slice)
    monkeypatch.setattr(concurrency, "start", lambda plan, servers: {})
    monkeypatch.setattr(FrozenServers, "thawed", thawed)
    monkeypatch.setattr(FrozenServers, "memory_gib", lambda self: {"none": 1.0})
    picture = tmp_path / "out.png"
    given = ["--adversarial", "--methods", "none,stand", "--temperature", "0,0.7", "--rounds", "2"]
    assert bench(*given, "--concurrency", "4,1", "--plot", str(picture)) == 0
    assert [name for name, _, _ in calls] == ["none", "stand", "stand", "none"] * 4
    assert [(one.temperature, one.concurrency) for _, one, _ in calls[::4]] == [
        (0.0, 1), (0.0, 4), (0.7, 1), (0.7, 4)
    ]  # fmt: skip
    assert [i for i, (_, _, warm) in enumerate(calls) if not warm] == [0, 1, 8, 9]
    slices = [(calls[i][1], calls[i + 1][1]) for i in range(0, 16, 2)]
    assert all(one.questions == other.questions for one, other in slices)
    assert len({one.questions for one, _ in slices}) == 8
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written["results"]) == 8
    ratios = [one["speed_ratio"] for one in written["results"] if one["method"] == "stand"]
    assert all(0 < one["lowest"] <= one["median"] <= one["highest"] for one in ratios)
    assert written["provenance"]["times_asked"]["most"] == 1
    printed = capsys.readouterr().out
    assert "T = 0:" in printed and "T = 0.7:" in printed
    assert picture.stat().st_size > 10_000


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[tuple[FrozenServers, ServerProcess, ServerProcess]]:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    one, two = (
        ServerProcess(
            lambda port: [sys.executable, str(script), str(port)],
            environment=os.environ, start_timeout=120.0, grace=60.0,
        )
        for _ in range(2)
    )  # fmt: skip
    with FrozenServers() as servers:
        servers.start("one", one)
        servers.start("two", two)
        yield servers, one, two


def halted(server: ServerProcess) -> bool:
    tree = server.tree()
    assert len(tree) == 2
    return all(process.status() == psutil.STATUS_STOPPED for process in tree)


def test_only_the_thawed_server_runs_and_all_end_soon(
    fakes: tuple[FrozenServers, ServerProcess, ServerProcess],
) -> None:
    servers, one, two = fakes
    assert halted(one) and halted(two)
    with servers.thawed("two") as running:
        assert running is two and halted(one)
        assert httpx.get(two.url, trust_env=False).status_code == 200
    assert halted(two)
    assert all(size > 0 for size in servers.memory_gib().values())
    processes, began = [*one.tree(), *two.tree()], time.monotonic()
    servers.__exit__(None, None, None)
    assert not any(process.is_running() for process in processes)
    assert time.monotonic() - began < 45.0  # the halted heard SIGTERM: the grace is 60 s


def test_a_server_that_died_meanwhile_is_reported(
    fakes: tuple[FrozenServers, ServerProcess, ServerProcess],
) -> None:
    servers, one, _ = fakes
    for process in one.tree():
        process.kill()
    with pytest.raises(ServerError, match="did not answer after a pause"), servers.thawed("one"):
        raise AssertionError("unreachable")
