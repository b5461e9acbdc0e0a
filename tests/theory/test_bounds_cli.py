"""`specproof bounds` as a user runs it."""

import json
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from theory import acceptance_rate, optimal_acceptance
from theory.bounds_cli import bounds
from theory.inputs import write_trace

app = typer.Typer()
app.command()(bounds)
run = CliRunner()
RNG = np.random.default_rng(0)
P, Q = RNG.dirichlet(np.ones(10)), RNG.dirichlet(np.ones(10))


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "p.npy", P)
    np.savetxt(tmp_path / "q.csv", Q[None], delimiter=",")
    return ["--p", str(tmp_path / "p.npy"), "--q", str(tmp_path / "q.csv")]


def test_json_carries_the_python_values(files):
    result = run.invoke(app, [*files, "--k", "1,3", "--json"])
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["one_minus_tv"]["mean"] == pytest.approx(np.minimum(P, Q).sum())
    for line in answer["bounds"]:
        best = optimal_acceptance(P, Q, line["k"], drafts=line["drafts"]).value
        assert line["optimum"] == pytest.approx(float(best))
        if line["rule"]:
            rate = float(acceptance_rate(P, Q, line["k"], rule=line["rule"]))
            assert line["acceptance"]["mean"] == pytest.approx(rate)
            assert line["gap"] == pytest.approx(float(best) - rate, abs=1e-12)
    assert len(answer["bounds"]) == 2 * (3 + 8)


def test_table_and_plot(files, tmp_path):
    plot = tmp_path / "out.png"
    result = run.invoke(app, [*files, "--k", "1,2,4", "--plot", str(plot)])
    assert result.exit_code == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    for word in ("without_replacement", "top_plus_one", "kseq", "gap", "1 - TV"):
        assert word in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines()[:-1])


def test_what_is_asked_twice_is_answered_once(files):
    words = ["--k", "2,2", "--drafts", "iid,iid", "--rules", "kseq,kseq", "--json"]
    lines = json.loads(run.invoke(app, [*files, *words]).stdout)["bounds"]
    assert [(line["k"], line["rule"], line["rows"]) for line in lines] == [
        (2, None, 1),
        (2, "kseq", 1),
    ]


def test_selection(files):
    result = run.invoke(app, [*files, "--drafts", "iid", "--rules", "kseq,top_plus_one", "--json"])
    lines = json.loads(result.stdout)["bounds"]
    assert {line["rule"] for line in lines} == {None, "kseq"}
    assert {line["drafts"] for line in lines} == {"iid"}


def test_trace_with_quantiles(tmp_path):
    rows = [(RNG.dirichlet(np.ones(6)), RNG.dirichlet(np.ones(6))) for _ in range(30)]
    write_trace(tmp_path / "t.jsonl", rows, 6)
    result = run.invoke(app, ["--trace", str(tmp_path / "t.jsonl"), "--k", "2", "--json"])
    lines = json.loads(result.stdout)["bounds"]
    iid = next(line for line in lines if line["rule"] is None and line["drafts"] == "iid")
    values = [float(optimal_acceptance(p, q, 2).value) for p, q in rows]
    assert iid["rows"] == 30
    assert iid["acceptance"]["mean"] == pytest.approx(np.mean(values))
    assert iid["acceptance"]["q90"] == pytest.approx(np.quantile(values, 0.9))
    table = run.invoke(app, ["--trace", str(tmp_path / "t.jsonl"), "--k", "2"]).stdout
    assert "30 rows" in table
    assert "90 %" in table


def test_rows_with_too_little_support_are_counted_apart(tmp_path):
    rows = [
        (np.array([0.5, 0.3, 0.2]), np.array([0.5, 0.5, 0.0])),
        (np.ones(3) / 3, np.ones(3) / 3),
    ]
    write_trace(tmp_path / "t.jsonl", rows, 3)
    lines = json.loads(
        run.invoke(app, ["--trace", str(tmp_path / "t.jsonl"), "--k", "3", "--json"]).stdout
    )["bounds"]
    assert {(line["drafts"], line["rows"]) for line in lines} == {
        ("iid", 2),
        ("without_replacement", 1),
        ("top_plus_one", 1),
    }


def test_a_wide_law_gets_an_estimate_with_its_error(tmp_path):
    wide = RNG.dirichlet(np.ones(3000), size=2)
    np.savez(tmp_path / "w.npz", p=wide[0], q=wide[1])
    both = ["--p", str(tmp_path / "w.npz"), "--q", str(tmp_path / "w.npz"), "--k", "4", "--json"]
    lines = json.loads(run.invoke(app, both).stdout)["bounds"]
    errors = {line["rule"]: line["standard_error"] for line in lines}
    assert 0 < errors["rrs_without_replacement"] < 0.02
    assert errors["kseq"] == 0


def test_a_plot_without_matplotlib_says_what_to_install(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run.invoke(app, [*files, "--k", "1", "--plot", str(tmp_path / "x.png")])
    assert result.exit_code == 1
    assert "pip install matplotlib" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give --p and --q, or --trace"),
        (["P"], "give --p and --q, or --trace"),
        (["P", "Q", "--k", "0"], "--k must be numbers"),
        (["P", "Q", "--k", "two"], "--k must be numbers"),
        (["P", "Q", "--k", "²"], "--k must be numbers"),
        (["P", "Q", "--k", "1,,2"], "--k must be numbers"),
        (["P", "Q", "--rules", ""], "--rules must be all or some of token"),
        (["P", "Q", "--plot", "/nowhere/x.png"], "a folder that exists; got '/nowhere/x.png'"),
        (["P", "Q", "--plot", "x.xyz"], "--plot must end in .png, .pdf, .svg; got 'x.xyz'"),
        (["P", "--q", "/nowhere.npy"], "No such file"),
        (["P", "--q", "/etc/hostname"], "must end in .npy"),
        (["P", "Q", "--drafts", "tree"], "--drafts must be all or some of iid"),
        (["P", "Q", "--rules", "best"], "--rules must be all or some of token"),
        (["P", "Q", "--drafts", "top_plus_one", "--k", "50"], "use drafts 'iid'"),
        (["--trace", "/nowhere.jsonl"], "No such file"),
    ],
)
def test_bad_calls_end_with_status_2_and_a_sentence(files, arguments, sentence):
    words = []
    for word in arguments:
        words += {"P": files[:2], "Q": files[2:]}.get(word, [word])
    result = run.invoke(app, words)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stdout == ""
