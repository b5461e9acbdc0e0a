"""`specproof tune` as a user runs it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from tuned_traces import recorded, three_tokens
from typer.testing import CliRunner

from proposers.replay import tuning
from proposers.replay.tune_cli import _seconds, tune
from theory.trace_file import read, write
from theory.trace_prompts import part_prompts, select_prompts

app = typer.Typer()
app.command()(tune)
run = CliRunner()
FAST = ("--trials", "6", "--longest", "6")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("traces") / "t.npz"
    write(at, recorded(three_tokens, temperature=0.9))
    return at


def answer(*words: object) -> dict:
    result = run.invoke(app, [str(word) for word in (*words, "--json")])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*words: object, code: int = 2) -> str:
    result = run.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    said = result.stderr.strip()
    assert len(said.splitlines()) == 1
    assert said.startswith("specproof tune: ")
    return said


def test_what_is_written_is_what_was_found(path: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "config.json", tmp_path / "search.png"
    found = answer(path, "--out", out, "--plot", picture, *FAST, "--rule", "token")
    config = json.loads(out.read_text())
    assert config == found["additional_config"]
    assert config == {"specproof": {"rule": "token", **found["best"]["options"]}}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == [out, picture]
    words = shlex.split(found["command"].replace("\\\n", " "))
    assert words[:3] == ["vllm", "serve", "MODEL"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert json.loads(given["--additional-config"]) == config
    assert json.loads(given["--speculative-config"]) == found["speculative_config"]
    assert found["speculative_config"]["num_speculative_tokens"] == found["best"]["draft_length"]
    done = [trial for trial in found["trials"] if trial["state"] == "complete"]
    assert found["best"]["training_rate"] == max(trial["rate"] for trial in done)
    assert found["held_out"]["prompts"] == 5
    assert found["training"]["prompts"] == 7
    assert list(found["verdicts"]) == ["all", "prompt"]
    names = [line["name"] for line in found["verdicts"]["all"]["settings"]]
    assert (names[0], names[-2:]) == ("defaults", ["by hand", "found"])


def test_the_held_out_prompts_have_no_say(path: Path, tmp_path: Path) -> None:
    """Other answers to them change the verdict and nothing else; other training ones the search."""
    whole = read(path)
    stay, held_out = part_prompts(whole, 0.4, 0)
    rng = np.random.default_rng(0)
    first = answer(path, *FAST)

    def shuffled(prompts: np.ndarray) -> dict:
        tokens = whole.tokens.copy()
        for number in range(whole.answers):
            if whole.answer_prompts[number] in prompts:
                tokens[whole.answer(number)] = rng.permutation(tokens[whole.answer(number)])
        at = tmp_path / f"{prompts[0]}.npz"
        write(at, replace(whole, tokens=tokens))
        return answer(at, *FAST)

    def searched(found: dict) -> list:
        return [{**trial, "seconds": 0} for trial in found["trials"]]

    second, third = shuffled(held_out), shuffled(stay)
    assert searched(second) == searched(first)
    assert second["command"] == first["command"]
    assert second["verdicts"] != first["verdicts"]
    assert searched(third) != searched(first)


def test_the_verdict_is_a_replay_of_the_held_out_prompts(path: Path) -> None:
    found = answer(path, *FAST, "--token-price", 0.1, "--seed", 3)
    whole = read(path)
    held_out = select_prompts(whole, part_prompts(whole, 0.4, 3)[1])
    best = found["best"]
    work = tuning.Workload(held_out, "block", 6, tuning.linear_times(0.1, 6), seed=3)
    make = tuning.make_drafter("stand", best["options"], draft_length=6, seed=3)
    tokens, seconds = tuning.rates(work, held_out, make)
    line = found["verdicts"]["all"]["settings"][-1]
    # Another length draws other drafts, so that what is drafted, not what is kept, may differ.
    assert line["rate"]["value"] == pytest.approx(
        tokens / seconds[best["draft_length"] - 1], rel=0.01
    )
    assert found["token_price"] == pytest.approx(0.1)


def test_step_times_are_tokens_per_second(path: Path, tmp_path: Path) -> None:
    curve = tmp_path / "times.csv"
    curve.write_text("0,0.010\n8,0.018\n")
    found = answer(path, *FAST, "--step-times", curve)
    priced = answer(path, *FAST, "--token-price", 0.1)
    assert (found["unit"], found["token_price"]) == ("tokens/s", None)
    assert found["command"] == priced["command"]  # 10 ms + 1 ms a token is a price of 0.1
    for one, other in zip(found["trials"], priced["trials"], strict=True):
        assert one["rate"] == pytest.approx(100 * other["rate"], rel=1e-9)


def test_the_table(path: Path, tmp_path: Path) -> None:
    result = run.invoke(app, [str(path), *FAST, "--share", "none", "--out", str(tmp_path / "c")])
    assert result.exit_code == 0, result.output
    for word in ("held-out", "by hand", "found", "±", "speed-up", "vllm serve MODEL", "config:",
                 "not what was searched on"):  # fmt: skip
        assert word in result.stdout
    told = result.stdout.split("vllm serve")[0]
    assert all(len(line) <= 80 for line in told.splitlines())


def test_an_interrupt_keeps_the_best(path: Path, tmp_path: Path, monkeypatch) -> None:
    plain, calls = tuning.rates, 0

    def rates(*words: object) -> object:
        nonlocal calls
        calls += 1
        if calls > limit:
            raise KeyboardInterrupt
        return plain(*words)

    monkeypatch.setattr(tuning, "rates", rates)
    out, limit = tmp_path / "config.json", 8
    found = answer(path, "--budget", "1h", "--longest", 6, "--out", out)
    assert found["interrupted"]
    assert json.loads(out.read_text()) == found["additional_config"]
    calls, limit = 0, 1
    assert "interrupted before the defaults" in refusal(path, "--budget", "1h", code=130)


def test_a_second_interrupt_leaves_the_config(path: Path, tmp_path: Path, monkeypatch) -> None:
    def judge(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("proposers.replay.tuning_report.judge", judge)
    out = tmp_path / "config.json"
    assert run.invoke(app, [str(path), *FAST, "--out", str(out)]).exit_code == 130
    assert json.loads(out.read_text())["specproof"]["rule"] == "block"


def test_a_config_that_cannot_be_written_is_told(path: Path, tmp_path: Path, monkeypatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    said = refusal(path, *FAST, "--out", tmp_path / "config.json", code=1)
    assert "No space left on device" in said
    assert json.loads(said[said.index("{") :])["specproof"]["rule"] == "block"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "ten"], "--budget must be a time above 0 such as 90s, 10m or 1h; got 'ten'"),
        (["--budget", "0s"], "--budget must be"),
        (["--budget", "10"], "--budget must be"),
        (["--budget", "-5m"], "--budget must be"),
        (["--budget", "1d"], "--budget must be"),
        (["--rule", "kseq"], "--rule must be one of token, block, match; got 'kseq'"),
        (["--share", "some"], "--share must be one of prompt, all, none"),
        (["--order", "wild"], "--order must be one of lockstep, sequential"),
        (["--hold-out", "1"], "--hold-out must lie between 0 and 1; got 1"),
        (["--hold-out", "nan"], "--hold-out must lie between 0 and 1; got nan"),
        (["--token-price", "-1"], "--token-price must be 0 or more"),
        (["--token-price", "1", "--step-times", "x.csv"], "not both"),
        (["--step-times", "nowhere.csv"], "nowhere.csv"),
        (["--out", "nowhere/c.json"], "--out must be a file in a folder that exists"),
        (["--plot", "picture.txt"], "--plot must end in"),
    ],
)
def test_sentences(path: Path, words: list[str], said: str) -> None:
    assert said in refusal(path, *words)


def test_traces_that_cannot_be_tuned_on(path: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.npz"
    write(few, select_prompts(read(path), [0, 1, 2]))
    assert "3 prompts; tuning holds some out to judge by, and needs 4" in refusal(few)
    one = recorded(three_tokens, length=1)
    write(few, one)
    assert "no token behind a first one" in refusal(few)
    (tmp_path / "text.npz").write_text("no trace")
    assert "text.npz" in refusal(tmp_path / "text.npz")
    short = tmp_path / "short.csv"
    short.write_text("0,0.01\n4,0.02\n")
    said = refusal(path, "--step-times", short)
    assert "ends at 4 drafted tokens" in said
    assert "--longest and --draft-length 4" in said


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("1.5m", 90), (" 2s ", 2)]
)
def test_times(text: str, seconds: float) -> None:
    assert _seconds(text, None) == seconds
    assert _seconds(text, 5) == seconds
    assert _seconds(None, None) == 600
    assert _seconds(None, 5) is None


def test_optuna_is_loaded_by_a_search_only() -> None:
    program = (
        "import sys, vllm_plugin.cli, proposers.replay.tune_cli, proposers.replay.tuning;"
        "sys.exit('optuna' in sys.modules or 'sqlalchemy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
