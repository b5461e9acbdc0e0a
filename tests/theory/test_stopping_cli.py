"""`specproof stopping` as a user runs it."""

import json

import pytest
import typer
from typer.testing import CliRunner

from theory.stopping_cli import stopping

app = typer.Typer()
app.command()(stopping)
run = CliRunner()


def test_json_and_plot(tmp_path):
    plot = tmp_path / "s.png"
    words = ["--acceptance", "0.8,0.7,0.6,0.5", "--draft-cost", "0.1", "--verify-cost", "1"]
    result = run.invoke(app, [*words, "--json", "--plot", str(plot)])
    answer = json.loads(result.stdout)
    rates = answer["tokens_per_cost_by_length"]
    assert answer["length"] == rates.index(max(rates))
    assert answer["tokens_per_cost"] == pytest.approx(max(rates))
    assert rates[1] == pytest.approx(1.8 / 1.1)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_table_marks_the_optimum(tmp_path):
    times = tmp_path / "t.csv"
    times.write_text("0,13\n4,16\n9,18.5\n19,24\n")
    words = ["--acceptance", ",".join(["0.7"] * 12), "--step-times", str(times)]
    result = run.invoke(app, words)
    assert result.exit_code == 0
    assert result.stdout.count("<- optimum") == 1
    assert "times no speculation" in result.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--acceptance", "0.8,high"], "numbers in [0, 1], separated by commas; got 'high'"),
        (["--acceptance", ""], "numbers in [0, 1], separated by commas; got ''"),
        (["--acceptance", "nan"], "numbers in [0, 1]"),
        (["--acceptance", "0.8", "--draft-cost", "-1"], "draft_cost must be finite and at least 0"),
        (["--acceptance", "0.8", "--discard-cost", "nan"], "discard_cost must be finite"),
        (["--acceptance", "0.8", "--plot", "/nowhere/x.png"], "a folder that exists"),
        (["--acceptance", "0.8", "--plot", "x.xyz"], "--plot must end in"),
        (["--acceptance", "0.8,1.8"], "numbers in [0, 1]"),
        (["--acceptance", "0.8", "--verify-cost", "-1"], "positive"),
        (["--acceptance", "0.8", "--step-times", "/nowhere.csv"], "/nowhere.csv"),
    ],
)
def test_bad_calls_end_with_status_2_and_a_sentence(words, sentence):
    result = run.invoke(app, words)
    assert result.exit_code == 2
    assert sentence in result.stderr
