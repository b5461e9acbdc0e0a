"""The replay benchmark beside a made-up engine: counters against a replay of the same answers."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import replay as benchmark

from tests.proposers.replay.small_traces import trace
from theory.trace_file import write
from theory.traces import Sampling, Trace
from vllm_plugin.record_server import RecordError
from vllm_plugin.scrape import Counters

GREEDY = benchmark.Pair({}, "prompt_lookup", {"shortest_match": 1, "longest_match": 2}, "token")


def greedy(decode_steps: int, tokens: int = 9) -> Trace:
    """Nine tokens of a cycle of three, at temperature 0, with the counters of an engine."""
    cycle = np.roll(np.eye(3), 1, axis=1)
    found = trace(
        lambda text: cycle[text[-1]],
        [(0, [0, 1, 2, 0, 1, 2, 0, 1, 2])],
        [[0, 1, 2]],
        max_tokens=9,
        sampling=Sampling(0.0),
    )
    counters = Counters(
        generation_tokens=tokens, first_tokens=1, decode_steps=decode_steps, draft_tokens=6
    )
    return replace(found, provenance={"counters": asdict(counters)})


def test_an_engine_that_does_what_the_replay_expects() -> None:
    # The prefill emits 0; drafts of 2 are right: 3 tokens a step, and 2 in the last.
    found = benchmark.compare("lookup", GREEDY, greedy(3), 2)
    assert found.replay == pytest.approx(8 / 3) == found.engine
    assert found.gap == pytest.approx(0) and found.luck == 0
    assert found.engine_drafted == 2 and found.tokens == 9


def test_a_slower_engine_is_told() -> None:
    found = benchmark.compare("lookup", GREEDY, greedy(4), 2)
    assert found.engine == 2 and found.gap == pytest.approx(100 / 3)
    assert found.as_json()["gap_percent"] == found.gap


def test_counters_that_are_not_those_of_the_answers_are_not_compared() -> None:
    with pytest.raises(RecordError, match="counted 10 tokens while the trace of x got 9"):
        benchmark.compare("x", GREEDY, greedy(4, tokens=10), 2)
    with pytest.raises(RecordError, match="holds no counters"):
        benchmark.compare("x", GREEDY, replace(greedy(4), provenance={"counters": None}), 2)


def test_traces_that_are_there_are_compared_and_wide_gaps_end_in_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "model_folder", lambda name: tmp_path)
    monkeypatch.setattr(benchmark, "pairs", lambda tokens: {"good": GREEDY, "slow": GREEDY})
    for name, steps in (("good", 3), ("slow", 4)):
        write(tmp_path / f"{name}-1x1x9-t0-k2.npz", greedy(steps))
    words = [
        *("--dataset", "none.jsonl", "--limit", "1", "--samples", "1", "--max-tokens", "9"),
        *("--temperature", "0", "--draft-length", "2", "--traces", str(tmp_path)),
        *("--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")),
    ]
    assert benchmark.main([*words, "--methods", "good"]) == 0
    assert benchmark.main([*words, "--methods", "good,slow"]) == 3
    shown = capsys.readouterr()
    assert "slow differs by +33.3 %" in shown.err and "good differs" not in shown.err
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert benchmark.main([*words, "--methods", "guess"]) == 2
    assert "'guess' is none of good, slow" in capsys.readouterr().err


def test_every_method_can_be_replayed() -> None:
    for name, pair in benchmark.pairs(3).items():
        if name != "suffix":  # arctic-inference is optional
            made = benchmark.make_drafter(pair.drafter, pair.options, draft_length=3)()
            assert made.draft_length == 3
        assert pair.speculative_config["num_speculative_tokens"] == 3
