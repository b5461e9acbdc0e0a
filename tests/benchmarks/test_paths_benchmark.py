"""benchmarks/paths.py without an engine: its settings, its sums, and mistakes in one sentence."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import paths

        yield paths
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question_id": 1, "category": "math", "turns": ["2 + 2?"]}) + "\n")
    return file


def lines(benchmark: Any, dataset: Path, *more: str) -> list[Any]:
    options = benchmark.parser().parse_args(["--dataset", str(dataset), *more])
    return list(benchmark.settings(options))


def test_one_line_for_every_k_length_and_rule(benchmark: Any, dataset: Path) -> None:
    found = lines(
        benchmark, dataset, "--candidates", "1,4", "--lengths", "4,8", "--rules", "kseq", "--beam",
        "--rivals", "none",
    )  # fmt: skip
    assert [(s.name, s.candidates, s.length, s.rule, s.drafting) for s in found] == [
        ("none", 1, 8, "", ""),
        ("stand", 1, 4, "block", ""),
        ("stand", 1, 8, "block", ""),
        ("stand", 4, 4, "kseq", "iid"),
        ("stand", 4, 4, "rrs_without_replacement", "beam"),
        ("stand", 4, 8, "kseq", "iid"),
        ("stand", 4, 8, "rrs_without_replacement", "beam"),
    ]
    assert found[0].speculation() == (None, {})
    assert found[3].speculation()[1] == {
        "specproof": {"rule": "kseq", "length": "fixed", "candidates": 4, "drafting": "iid"}
    }


def test_a_line_sums_decoding_steps_and_compares_first_nodes(benchmark: Any) -> None:
    """p accepts the draw x of q = (1/2, 1/2) with min(1, p/q): the expected acceptance is 3/4."""
    step = {"decoding": 1.0, "seconds": 0.01, "tokens": 6.0, "layout": 0.001, "verdict": 0.0005}
    steps = [
        [step | {"sampling": 2, "emitted": 5}, step | {"sampling": 1, "emitted": 1}],
        [step | {"sampling": 2, "emitted": 4}, step | {"decoding": 0.0, "emitted": 2}],
    ]
    nodes = [[([0.25, 0.75], [0.5, 0.5], 1, True)], [([0.25, 0.75], [0.5, 0.5], 1, False)]]
    setting = benchmark.Setting("stand", 1, 4, "token", "iid")
    line = benchmark.summary(setting, 2, steps, nodes)
    assert line["block_efficiency"]["value"] == pytest.approx(10 / 5)
    assert line["tokens_per_second"] == pytest.approx(12 / 0.04)
    assert line["milliseconds"]["ours"] == pytest.approx(1.5)
    assert line["first_node"]["expected"] == pytest.approx(0.75)
    assert line["first_node"]["optimum"] == pytest.approx(0.75)
    assert line["first_node"]["measured"]["value"] == 0.5
    assert benchmark.shown([line]).row_count == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rules", "block"], "--rules: block is none of"),
        (["--rivals", "best"], "not a method"),
        (["--shapes", "nowhere.json"], "cannot be read"),
        (["--model", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_end_in_one_sentence(
    benchmark: Any,
    dataset: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "--model" not in arguments:
        monkeypatch.setattr(benchmark, "model_folder", lambda name: Path("unused"))
    assert benchmark.main(["--dataset", str(dataset), *arguments]) == 2
    printed = capsys.readouterr().err.strip()
    assert words in printed
    assert "\n" not in printed
