"""benchmarks/replay.py: what is compared with what, when a gap is an error, and its door."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "proposers" / "replay"))

import replay as benchmark
from methods import MethodError
from small_traces import trace

from theory.trace_file import write
from theory.traces import Sampling

V = 6
LAWS = np.random.default_rng(5).dirichlet(np.full(V, 0.4), V)
PROMPT = [0, 1, 2]


def recorded(answers: int = 4, length: int = 25) -> Any:
    rng = np.random.default_rng(1)
    texts = []
    for _ in range(answers):
        text = list(PROMPT)
        for _ in range(length):
            text.append(int(rng.choice(V, p=LAWS[text[-1]])))
        texts.append((0, text[len(PROMPT) :]))
    return trace(lambda text: LAWS[text[-1]], texts, [PROMPT], max_tokens=60)


def test_ours_get_every_option_and_rivals_none() -> None:
    ngram, suffix, stand = benchmark.pairs(
        ["ngram", "suffix", "stand"], 8, {"decay": 0.9, "rule": "token", "exploration": 1.0}
    )
    assert ngram.additional_config is None
    assert suffix.additional_config is None
    assert ngram.options["occurrence"] == "earliest"
    assert stand.additional_config is not None
    section = stand.additional_config["specproof"]
    assert section["decay"] == 0.9
    assert section["rule"] == stand.rule == "token"
    assert "exploration" not in section
    assert stand.speculative_config["num_speculative_tokens"] == 8


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(MethodError, match="oracle is not a method; choose from ngram, suffix"):
        benchmark.pairs(["oracle"], 8, {})


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    words = ["--dataset", "d.jsonl", "--traces", str(tmp_path), "--json", str(tmp_path / "o.json")]
    return benchmark.parser().parse_args(words)


def settings(pair: Any, options: argparse.Namespace, **changed: Any) -> dict[str, Any]:
    return {
        "speculative_config": pair.speculative_config,
        "additional_config": pair.additional_config,
        "samples": options.samples,
        "max_tokens": options.max_tokens,
    } | changed


def keep(options: argparse.Namespace, pair: Any, counters: Any, **changed: Any) -> None:
    held = replace(
        recorded(),
        sampling=Sampling(options.temperature),
        provenance={"settings": settings(pair, options, **changed), "counters": counters},
    )
    write(options.traces / f"{pair.name}.npz", held)


COUNTERS = {"block_efficiency": 1.5, "decode_steps": 64, "draft_tokens": 100}


def test_a_trace_of_other_settings_is_refused(options: argparse.Namespace) -> None:
    (pair,) = benchmark.pairs(["ngram"], 8, {})
    keep(options, pair, COUNTERS)
    assert len(benchmark.recorded(options, pair)) == 100
    keep(options, pair, COUNTERS, samples=3)
    with pytest.raises(benchmark.ReplayError, match="other settings"):
        benchmark.recorded(options, pair)
    keep(options, pair, None)
    with pytest.raises(benchmark.ReplayError, match="no counters"):
        benchmark.recorded(options, pair)


def test_a_failed_recording_ends_the_benchmark(
    options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(words: list[str], **named: Any) -> Any:
        assert words[words.index("--temperature") + 1] == "0.7"
        assert "--additional-config" not in words
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr(benchmark.subprocess, "run", fails)
    words = ["--dataset", "d.jsonl", "--traces", str(options.traces), "--methods", "ngram"]
    assert benchmark.main([*words, "--json", str(options.json)]) == 1
    assert "ngram could not be recorded" in capsys.readouterr().err
    assert not options.json.exists()


@pytest.mark.parametrize(("engine", "status"), [(1.02, 0), (1.04, 1)])
def test_a_gap_of_three_percent_is_an_error(
    options: argparse.Namespace, engine: float, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (pair,) = benchmark.pairs(["ngram"], 8, {})
    keep(options, pair, COUNTERS)
    row = benchmark.compare(pair, benchmark.recorded(options, pair), 8)
    keep(options, pair, COUNTERS | {"block_efficiency": engine * row["replay"]})
    words = ["--dataset", "d.jsonl", "--traces", str(options.traces), "--methods", "ngram"]
    assert benchmark.main([*words, "--json", str(options.json)]) == status
    (found,) = json.loads(options.json.read_text())["results"]
    assert found["gap"] == pytest.approx(engine - 1)
    assert found["noise"] == 0
    assert ("gaps of 3%" in capsys.readouterr().err) == bool(status)
