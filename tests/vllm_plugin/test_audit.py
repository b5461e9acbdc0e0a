"""The audit over a server's API, and its command line: verdicts, exit codes, one sentence each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_vllm import FakeVllm, served
from typer.testing import CliRunner

from tests.theory.markov_engine import VOCABULARY, target
from vllm_plugin.audit import AuditError, audit_engine
from vllm_plugin.audit_prompts import default_prompts, read_prompts
from vllm_plugin.cli import app

P = target()
WRONG = 0.8 * P + 0.2 * np.eye(VOCABULARY)[P.argmax(axis=1)]
SETTINGS: dict[str, Any] = {
    "temperature": 1.0,
    "resolution": 0.05,
    "seconds": 60.0,
    "samples": 8,
    "length": 40,
}
OPTIONS = ("--temperature", "1", "--resolution", "0.05", "--samples", "8")


def command(*words: str) -> Any:
    return CliRunner().invoke(app, ["audit", *words])


def test_a_right_server_is_lossless() -> None:
    fake = FakeVllm(P, P)
    with served(fake) as url:
        report = audit_engine(url, **SETTINGS)
    assert report.verdict == "lossless"
    assert report.tv_bound < report.resolution
    assert report.numerical_gap == pytest.approx(0, abs=1e-9)
    assert report.tolerance == 1e-4
    assert report.drafting is not None
    assert report.drafting.drafted > 0
    assert report.limits == ()
    assert report.tested_tokens == 39 * report.sequences
    assert json.loads(report.to_json())["verdict"] == "lossless"
    assert str(report).startswith("lossless: no tested event deviates by 0.05 or more")
    # what a model's generation_config.json would change is fixed in every request
    assert all(body["top_p"] == 1 and body["top_k"] == 0 for body in fake.bodies)


def test_a_wrong_server_is_refuted_and_told_why() -> None:
    with served(FakeVllm(P, WRONG)) as url:
        report = audit_engine(url, **SETTINGS)
    assert report.verdict == "refuted"
    assert report.log_evidence >= -np.log(report.false_alarm)
    best = report.deviations[0]
    assert best.excess == pytest.approx(0.2 * (1 - P.max(axis=1)).mean(), abs=0.06)
    assert "most telling event" in str(report)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("drafts", "not one draft was verified, so speculation was not tested"),
        ("metrics", "the engine shows no counters, so nobody knows whether it drafted"),
    ],
)
def test_without_drafts_nothing_is_decided(broken: str, reason: str) -> None:
    with served(FakeVllm(P, P, broken)) as url:
        report = audit_engine(url, **SETTINGS)
    assert (report.verdict, report.reason) == ("undecided", reason)
    assert report.tv_bound < report.resolution


def test_when_the_time_is_out_nothing_is_decided() -> None:
    with served(FakeVllm(P, P)) as url:
        report = audit_engine(url, **(SETTINGS | {"seconds": 1e-3, "samples": 1}))
    assert report.verdict == "undecided"
    assert report.reason.startswith("the time ran out")
    assert report.sequences == 8


def test_a_law_that_the_api_does_not_give_is_not_decided() -> None:
    """Above temperature 1 the tail that no API shows has any weight: said, not guessed."""
    with served(FakeVllm(P, P, most_logprobs=20)) as url:
        report = audit_engine(
            url, **(SETTINGS | {"temperature": 1.5, "seconds": 2.0}), tolerance=1e-4
        )
    # the fake reports its 6 tokens, all there are, so nothing is missing even here
    assert report.undetermined_tokens == 0
    short = np.full((VOCABULARY, VOCABULARY), 0.1)  # reports laws that sum to .6
    with served(FakeVllm(short, P)) as url:
        report = audit_engine(
            url, **(SETTINGS | {"temperature": 1.5, "seconds": 2.0}), tolerance=1e-4
        )
    assert report.verdict == "undecided"
    assert report.tested_tokens == 0
    assert report.undetermined_tokens > 0
    assert "audit at temperature 1" in report.limits[0]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("token_ids", "does not return token ids"),
        ("prompt_logprobs", "prompt_logprobs are not for sale"),
        ("ignore_eos", "ended some answers early"),
        ("dies", "the connection to"),
        ("n", "does not take several prompts, or n"),
        ("logprobs", "returned no logprobs by token id"),
        ("completions", "answered something else than completions"),
    ],
)
def test_a_server_that_cannot_be_audited_is_refused_in_one_sentence(
    broken: str, words: str
) -> None:
    with served(FakeVllm(P, P, broken)) as url, pytest.raises(AuditError, match=words):
        audit_engine(url, **SETTINGS)


def test_laws_that_are_none_are_refused() -> None:
    with (
        served(FakeVllm(P + 2, P)) as url,
        pytest.raises(AuditError, match="reported a law that is none"),
    ):
        audit_engine(url, **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.0}, "leaves nothing to chance"),
        ({"seconds": 0.0}, "seconds and samples must be positive"),
        ({"budget": 2.0}, "budget must lie"),
        ({"tolerance": 0.05}, "must be at least 0 and below the resolution"),
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": [[]]}, "a prompt is empty"),
        ({"prompts": [[1] * 198]}, "must fit the model's 200"),
        ({"length": 1}, "must fit the model's 200 and be asked for"),
    ],
)
def test_settings_that_cannot_be_audited_are_refused(settings: dict[str, Any], words: str) -> None:
    with served(FakeVllm(P, P)) as url, pytest.raises(AuditError, match=words):
        audit_engine(url, **(SETTINGS | settings))


@pytest.mark.parametrize(
    ("emission", "broken", "code"), [(P, "", 0), (WRONG, "", 1), (P, "drafts", 2)]
)
def test_the_exit_code_is_the_verdict(emission: Any, broken: str, code: int) -> None:
    with served(FakeVllm(P, emission, broken)) as url:
        run = command("--against", url, *OPTIONS, "--json")
    assert run.exit_code == code
    assert json.loads(run.stdout)["verdict"] == ("lossless", "refuted", "undecided")[code]


def test_the_picture_and_the_text(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.write_text('[1, 2, 3, 1, 2]\n\nsome text\n"[more] text"\n')
    picture = tmp_path / "audit.png"
    fake = FakeVllm(P, P)
    with served(fake) as url:
        run = command(
            *("--against", url, *OPTIONS, "--prompts", str(prompts), "--plot", str(picture)),
        )
    assert run.exit_code == 0, run.output
    assert run.stdout.startswith("lossless: ")
    assert f"plot: {picture}" in run.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [1, 2, 3, 1, 2] in fake.bodies[-2]["prompt"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 64, "give --model to start an engine, or --against URL"),
        (["--model", "x", "--against", "y"], 64, "give --model to start an engine, or --against"),
        (["--nonsense"], 64, "No such option"),
        (["--temperature", "warm"], 64, "Invalid value"),
        (
            ["--model", "smollm2", "--speculative-config", "{"],
            64,
            "--speculative-config is no JSON",
        ),
        (["--model", "smollm2", "--additional-config", "[]"], 64, "must be a JSON object"),
        (["--against", "x", "--without-plugins"], 64, "belong to the command that started"),
        (["--against", "x", "--plot", "/no/such/place.png"], 64, "folder /no/such does not exist"),
        (["--against", "x", "--prompts", "/no/such"], 64, "cannot be read"),
        (["--model", "smollm2", "--temperature", "0"], 64, "leaves nothing to chance"),
        (["--model", "smollm2", "--budget", "0"], 64, "budget must lie strictly between 0 and 1"),
        (["--against", "http://127.0.0.1:9"], 69, "no OpenAI-compatible server at"),
        (["--against", "nonsense"], 69, "no OpenAI-compatible server at nonsense"),
    ],
)
def test_wrong_calls_end_in_one_sentence(words: list[str], code: int, said: str) -> None:
    run = command(*words)
    assert run.exit_code == code
    assert said in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_prompts_of_a_file_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text("\n  \n")
    with pytest.raises(AuditError, match="holds no prompt"):
        read_prompts(path)
    path.write_text("fine\n[1, -2]\n")
    with pytest.raises(AuditError, match="line 2 must be a text or an array of token ids"):
        read_prompts(path)
    path.write_text("[not json\n")
    assert read_prompts(path) == ["[not json"]


@pytest.mark.parametrize("vocabulary", [8, 64, 50_000])
def test_prompts_for_an_engine_without_a_tokenizer_repeat_themselves(vocabulary: int) -> None:
    for prompt in default_prompts(vocabulary):
        assert len(set(prompt)) < len(prompt)
        assert 0 <= min(prompt) <= max(prompt) < vocabulary
