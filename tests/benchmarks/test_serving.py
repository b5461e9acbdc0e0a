"""The serving benchmark's door, its choice of questions and the shape of its result; no server."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import methods
import serving

from vllm_plugin import spec_bench
from vllm_plugin.load import Question, Workload
from vllm_plugin.measurement import Measurement, pooled, speed_ratios
from vllm_plugin.scrape import Counters
from vllm_plugin.server import ServerError

CATEGORIES = ("writing", "math", "qa", "qa", "rag", "qa", "rag", "coding")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = (
        {"question_id": i, "category": category, "turns": [f"question {i}", "and then?"]}
        for i, category in enumerate(CATEGORIES)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


Call = Callable[..., int]


@pytest.fixture
def bench(dataset: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command with defaults; a server that would start is an error of the test."""

    def no_server(*given: Any, **named: Any) -> None:
        raise AssertionError("a server was about to start")

    monkeypatch.setattr(serving, "vllm_server", no_server)

    def call(*words: str) -> int:
        defaults = ["--dataset", str(dataset), "--json", str(tmp_path / "out.json")]
        try:
            return serving.main([*defaults, "--model", str(folder), *words])
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code

    return call


def fake_measurement(method: str, tokens: int = 100, seconds: float = 2.0) -> Measurement:
    counters = Counters(
        generation_tokens=tokens,
        first_tokens=10,
        decode_steps=45,
        drafts=40,
        draft_tokens=200,
        accepted_tokens=50,
        accepted_per_position=(30, 20),
    )
    return Measurement(method, tokens, seconds, 0.1, counters, (0.01, 0.02), (0.1, 0.2))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--methods", "none,magic"], "magic is not a method; choose from none, ngram"),
        (["--methods", ""], "nothing is not a method"),
        (["--methods", "none,none"], "each method can be named once"),
        (["--samples", "0"], "'0' is not a whole number from 1 up"),
        (["--limit", "x"], "'x' is not a whole number from 1 up"),
        (["--limit", "99"], "more than the 8 questions"),
        (["--temperature", "3"], "'3' is not a number from 0 to 2"),
        (["--categories", "qa,poetry"], "poetry is not in the data set; it has"),
        (["--additional-config", "[1]"], "is not a JSON object"),
        (["--dataset", "/nowhere.jsonl"], "/nowhere.jsonl cannot be read: No such file"),
        (["--model", "/nowhere/model"], "/nowhere/model is no model folder"),
        (["--json", "/dev/null/out.json"], "/dev/null/out.json cannot be written"),
        (["--methods", "ngram"], "leaves none of the 8 questions to calibrate ngram on"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    bench: Call, capsys: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    assert bench(*words) == 2
    printed = capsys.readouterr()
    assert part in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""


def test_suffix_without_its_package_is_refused(
    bench: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods.importlib.util, "find_spec", lambda name: None)
    assert bench("--methods", "none,suffix") == 2
    assert "arctic-inference" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"question_id": 1, "category": "qa"}',
        '{"question_id": 1, "category": "qa", "turns": []}',
        '{"question_id": 1, "category": "qa", "turns": [""]}',
        '{"question_id": 1, "category": 3, "turns": ["a"]}',
    ],
)
def test_a_malformed_line_is_named(
    bench: Call, dataset: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    dataset.write_text(dataset.read_text() + "\n" + line + "\n")
    assert bench() == 2
    assert f"{dataset}, line 10: expected an object" in capsys.readouterr().err


def test_an_empty_dataset_is_refused(bench: Call, dataset: Path) -> None:
    dataset.write_text("\n")
    assert bench() == 2


def test_every_prefix_is_spread_over_the_tasks(dataset: Path) -> None:
    ordered = spec_bench.arrange(spec_bench.read(dataset), seed=3)
    assert len({one.identity for one in ordered}) == len(CATEGORIES)
    assert [spec_bench.task(one.category) for one in ordered[:3]] == ["mt_bench", "qa", "rag"]
    assert ordered == spec_bench.arrange(spec_bench.read(dataset), seed=3)
    assert any(ordered != spec_bench.arrange(ordered, seed) for seed in range(5))


def test_a_task_name_stands_for_its_categories(dataset: Path) -> None:
    questions = spec_bench.read(dataset)
    assert len(spec_bench.restrict(questions, ["mt_bench"])) == 3
    assert len(spec_bench.restrict(questions, ["qa", "writing"])) == 4
    assert spec_bench.restrict(questions, []) == questions


def test_calibration_never_sees_a_measured_question(dataset: Path) -> None:
    words = ["--dataset", str(dataset), "--json", "x", "--limit", "5", "--methods", "none,ngram"]
    chosen, spare = serving.choose(serving.parser().parse_args(words))
    assert len(chosen) == 5 and len(spare) == 3
    assert not {one.identity for one in chosen} & {one.identity for one in spare}


def test_ngram_gets_the_fastest_of_its_trials() -> None:
    def speed(config: Any) -> float:
        return 10.0 - abs(config["num_speculative_tokens"] - 4) - config["prompt_lookup_min"]

    best, trials = methods.calibrate_ngram(8, speed)
    assert best["num_speculative_tokens"] == 4 and best["prompt_lookup_min"] == 1
    assert len(trials) == 6
    assert max(one["tokens_per_second"] for one in trials) == speed(best)


def test_the_configurations_of_the_methods() -> None:
    extra = {"specproof": {"rule": "token"}}
    planned = methods.plan(
        ["none", "suffix", "stand"], 6, additional=extra, ngram=None, suffix=None
    )
    none, suffix, stand = planned
    assert none.speculative_config is None and none.additional_config is None
    assert suffix.speculative_config is not None and stand.speculative_config is not None
    assert suffix.speculative_config["suffix_decoding_max_spec_factor"] == 4.0
    assert suffix.speculative_config["suffix_decoding_min_token_prob"] == 0.0
    assert stand.speculative_config["model"] == "vllm_plugin.Stand"
    assert stand.speculative_config["num_speculative_tokens"] == 6
    assert stand.additional_config == extra
    ours = methods.plan(list(methods.OURS), 6, additional=extra, ngram=None, suffix=None)
    named = [one.speculative_config["model"] for one in ours if one.speculative_config]
    assert named == list(methods.OURS.values())


def test_the_result_has_the_promised_shape(
    bench: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def run(self: Any, method: Any, workload: Workload, title: str) -> Measurement:
        order.append(method.name)
        assert workload.samples == 2 and len(workload.questions) == 3
        return fake_measurement(method.name, seconds=2.0 if method.name == "none" else 1.0)

    monkeypatch.setattr(serving.Bench, "run", run)
    given = ["--limit", "3", "--samples", "2", "--rounds", "2", "--methods", "none,stand"]
    assert bench(*given) == 0
    assert order == ["none", "stand", "none", "stand"]
    written = json.loads((tmp_path / "out.json").read_text())
    none, stand = written["results"]
    assert {
        "method",
        "tokens",
        "seconds",
        "tokens_per_second",
        "block_efficiency",
        "acceptance_rate",
        "accepted_per_position",
        "drafted_tokens",
        "tpot_ms",
    } <= stand.keys()
    assert stand["tpot_ms"].keys() == {"p50", "p99"}
    assert stand["tokens"] == 200 and stand["drafted_tokens"] == 400
    assert stand["block_efficiency"] == pytest.approx(2.0)
    assert stand["accepted_per_position"] == [60, 40]
    assert stand["speed_ratio"] == {"baseline": "none", "median": 2.0, "rounds": [2.0, 2.0]}
    assert none["speed_ratio"]["median"] == 1.0
    origin = written["provenance"]
    assert origin["configs"]["stand"]["speculative_config"]["model"] == "vllm_plugin.Stand"
    assert len(origin["dataset"]["sha256"]) == 64 and len(origin["dataset"]["questions"]) == 3
    assert origin["machine"]["cores"] >= 1 and "numpy" in origin["versions"]
    assert "stand" in capsys.readouterr().out


def test_a_server_that_fails_is_status_1(
    bench: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: Any, method: Any, workload: Workload, title: str) -> Measurement:
        raise ServerError("vllm serve ended before it answered")

    monkeypatch.setattr(serving.Bench, "run", run)
    assert bench("--methods", "none") == 1
    assert "ended before it answered" in capsys.readouterr().err


def test_a_slow_machine_cancels_in_the_ratio() -> None:
    plain = [fake_measurement("none", seconds=2.0), fake_measurement("none", seconds=20.0)]
    ours = [fake_measurement("stand", seconds=1.0), fake_measurement("stand", seconds=10.0)]
    assert speed_ratios(ours, plain) == [2.0, 2.0]
    assert pooled(ours).tokens == 200 and pooled(ours).seconds == 11.0


def test_a_workload_counts_its_requests() -> None:
    questions = (Question("a", "qa", ("x", "y")), Question("b", "qa", ("z",)))
    assert Workload(questions, samples=3).requests == 6
    assert Workload(questions, samples=3, all_turns=True).requests == 9
