"""`specproof profile` over a server that takes exactly known times, and one sentence each."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from proposers.length.step_times import StepTimes
from vllm_plugin import profile
from vllm_plugin.cli import app
from vllm_plugin.profile import DRAFTER, Plan, ProfileError, Step, fitted, points, read

FAKE = """
import http.server, json, os, sys
port, broken, lengths = int(sys.argv[1]), sys.argv[2], json.loads(os.environ["LENGTHS"])
calls = 0
class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200)
    def do_POST(self):
        global calls
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if broken == "dies":
            os._exit(1)
        if broken == "refuses":
            return self.answer(400)
        with open(os.environ["FILE"], "a") as file:
            if not calls:
                print("an abacus, 2 cores", file=file)
            slow = 50 if calls % 2 == 0 else 1  # a warm-up comes before each measurement
            r = len(body["prompt"])
            print(f"{sum(map(len, body['prompt']))},{r},0,9.0", file=file)
            for step in range(body["max_tokens"] if broken != "mute" else 0):
                n = r * (1 + lengths[step % len(lengths)])
                print(f"{n},{r},1,{slow * (0.010 + 0.001 * n):.9f}", file=file)
        calls += 1
        self.answer(200)
    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *words): pass
http.server.HTTPServer(("127.0.0.1", port), Server).serve_forever()
"""
FAKE = FAKE.replace('"LENGTHS"', repr(profile.LENGTHS)).replace('"FILE"', repr(profile.FILE))
Command = Callable[..., Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    return folder


@pytest.fixture
def command(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `specproof profile`; its server is the fake above."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    broken = ["no"]
    arguments: list[list[str]] = []

    def server_arguments(options: Any, port: int) -> list[str]:
        given = options.speculative_config
        arguments.append([given["model"], str(given["num_speculative_tokens"])])
        return [str(port), broken[0]]

    monkeypatch.setattr(profile, "serve_command", lambda model: [sys.executable, str(script)])
    monkeypatch.setattr(profile.ServerOptions, "arguments", server_arguments)

    def run(*words: str, how: str = "no") -> Any:
        broken[0] = how
        given = list(words) if "--model" in words else ["--model", str(model), *words]
        result = CliRunner().invoke(app, ["profile", *given])
        result.arguments = arguments
        return result

    return run


def said(run: Any) -> str:
    """The one sentence of a command that failed."""
    assert "Traceback" not in run.output and run.stdout == ""
    lines = [line for line in run.stderr.splitlines() if line.startswith("specproof profile: ")]
    assert len(lines) == 1, run.stderr
    return str(lines[0].removeprefix("specproof profile: "))


def test_a_profile_finds_the_times_of_its_server(command: Command, tmp_path: Path) -> None:
    out, plot = tmp_path / "curve.json", tmp_path / "curve.png"
    words = ("--requests", "1,4", "--draft-length", "7", "--rounds", "12")
    run = command(*words, "--out", str(out), "--plot", str(plot), "--json")
    assert run.exit_code == 0, run.output
    assert run.arguments == [[DRAFTER, "7"]]
    found = json.loads(run.stdout)
    assert found["hardware"] == "an abacus, 2 cores"
    assert found["steps"] == 2 * 12 * 6  # without the warm-ups, which take fifty times as long
    kinds = {(point["requests"], point["tokens"]) for point in found["points"]}
    assert kinds == {(r, r * n) for r in (1, 4) for n in (1, 2, 3, 4, 6, 8)}
    for point in found["points"]:
        assert point["steps"] == 12
        assert point["median_ms"] == pytest.approx(10 + point["tokens"])
        assert point["fitted_ms"] == pytest.approx(10 + point["tokens"], rel=0.01)
        if point["tokens"] < 32:  # beyond, nothing was measured
            assert point["marginal_ms"] == pytest.approx(1.0, abs=0.1)
    times = StepTimes.load(out, hardware="an abacus, 2 cores")
    n = np.arange(1, 33)
    np.testing.assert_allclose(times.seconds(n), 0.010 + 0.001 * n, rtol=0.01)
    assert times.about["model"] == found["model"] and times.about["provenance"]["versions"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_table_names_every_point(command: Command, tmp_path: Path) -> None:
    run = command("--requests", "2", "--draft-length", "2", "--rounds", "8")
    assert run.exit_code == 0, run.output
    rows = [line.split() for line in run.stdout.splitlines()]
    assert [row[:4] for row in rows if row[:1] == ["2"]] == [
        ["2", "2", "8", "12.0"],
        ["2", "4", "8", "14.0"],
        ["2", "6", "8", "16.0"],
    ]
    assert "24 decode steps on an abacus, 2 cores" in run.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--requests", "1,x"), "--requests must be numbers such as 1,4; got '1,x'"),
        (("--requests", ""), "--requests must be numbers such as 1,4; got ''"),
        (("--requests", "0,1"), "--requests must be numbers from 1 to 256, such as 1,4; got 0"),
        (("--requests", "257"), "--requests must be numbers from 1 to 256, such as 1,4; got 257"),
        (("--draft-length", "0"), "--draft-length is 0; it must lie in 1..128"),
        (("--draft-length", "129"), "--draft-length is 129; it must lie in 1..128"),
        (("--out", "/no/such/folder/a.json"), "--out must be a .json file in a folder that exists"),
        (("--out", "curve.txt"), "--out must be a .json file in a folder that exists"),
        (("--plot", "curve.jpg"), "--plot must end in .png, .pdf, .svg"),
        (("--plot", "/no/such/folder/a.png"), "--plot must be a file in a folder that exists"),
        (("--context", "400"), "would grow to 612 tokens, but the model ends at 512"),
        (("--model", "gpt-5"), "gpt-5"),
    ],
)
def test_wrong_input_is_one_sentence_before_any_server(
    command: Command, words: tuple[str, ...], sentence: str
) -> None:
    run = command(*words)
    assert run.exit_code == 2
    assert sentence in said(run)
    assert run.arguments == []


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("dies", "the server broke off at 1 requests"),
        ("refuses", "the server answered 1 requests with 400: {}"),
        ("mute", "the server timed no decode step; give more --rounds"),
    ],
)
def test_a_server_that_fails_is_one_sentence(command: Command, how: str, sentence: str) -> None:
    run = command("--requests", "1", how=how)
    assert run.exit_code == 1
    assert sentence in said(run)


def test_lengths_make_tokens_at_knots_and_end_with_the_most() -> None:
    def lengths(most: int) -> tuple[int, ...]:
        return Plan((1,), most, 1, 8, 0.7).lengths

    assert lengths(35) == (0, 1, 2, 3, 5, 7, 11, 15, 23, 31, 35)
    assert lengths(1) == (0, 1)
    assert lengths(7) == (0, 1, 2, 3, 5, 7)
    with pytest.raises(ProfileError, match="got none"):
        Plan((), 1, 1, 8, 0.7)


def test_half_a_line_is_left_and_prompts_are_no_decode_steps(tmp_path: Path) -> None:
    file = tmp_path / "steps.csv"
    file.write_text("a machine\n300,2,0,0.5\n2,2,1,0.01\n6,2,1,0.02\n2,2,1,0.0")
    assert read(file) == ("a machine", [Step(2, 2, 0.01), Step(6, 2, 0.02)])
    file.write_text("")
    assert read(file) == ("", [])


def test_what_happens_now_and_then_is_fitted_but_not_shown() -> None:
    plan = Plan((2,), 1, 8, 8, 0.7)
    steps = [Step(2, 2, 0.01)] * 8 + [Step(3, 2, 0.015)] * 3 + [Step(1, 1, 0.01)] * 8
    (shown,) = points(steps, plan)
    assert (shown.requests, shown.tokens, shown.steps, shown.seconds) == (2, 2, 8, 0.01)
    without = [step for step in steps if step.tokens != 3]
    assert fitted(steps).seconds(3) > fitted(without).seconds(3) + 0.003
