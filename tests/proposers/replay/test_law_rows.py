"""(p, q) of a recorded trace, for `specproof bounds`: the laws themselves, at chosen positions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from proposers.replay.law_rows import DRAFT_LENGTH, law_rows
from tests.proposers.replay.small_traces import GivenDrafter, trace
from theory import optimal_acceptance
from theory.bounds_cli import bounds
from theory.trace_file import write
from theory.traces import Trace

RNG = np.random.default_rng(0)
P, Q = RNG.dirichlet(np.ones(5), 5), RNG.dirichlet(np.full(5, 0.4), 5)
ANSWERS = [(0, [1, 2, 3, 4, 0, 1]), (1, [0, 0, 2]), (0, [4])]


def recorded() -> Trace:
    return trace(lambda text: P[text[-1]], ANSWERS, [[0, 1], [2]], max_tokens=9)


def drafter() -> GivenDrafter:
    """Never begins a draft behind token 3."""
    return GivenDrafter(
        lambda text: Q[text[-1]], draft_length=DRAFT_LENGTH, stops=lambda text: text[-1] == 3
    )


def test_rows_are_the_laws_where_the_engine_would_draft() -> None:
    found = law_rows(recorded(), drafter, most=100)
    before = [1, 2, 4, 0, 0, 0]  # the token before each position; none after 3, none at the start
    assert (found.sampled, found.positions, len(found.rows)) == (7, 7, 6)
    for last, (p, q) in zip(before, found.rows, strict=True):
        order, other = np.argsort(-P[last]), slice(0, 5)
        np.testing.assert_allclose(p[other], P[last][order], rtol=1e-5)
        np.testing.assert_allclose(q[other], Q[last][order], rtol=1e-9)
        assert p[5] == pytest.approx(0, abs=1e-6) and q[5] == 0


def test_fewer_rows_are_drawn_evenly() -> None:
    found = law_rows(recorded(), drafter, most=3)
    assert found.sampled == 3 and len(found.rows) <= 3
    everywhere = {tuple(q) for _, q in law_rows(recorded(), drafter, most=100).rows}
    drawn = [
        {tuple(q) for _, q in law_rows(recorded(), drafter, most=3, seed=seed).rows}
        for seed in range(20)
    ]
    assert set.union(*drawn) == everywhere


def test_what_is_not_in_the_head_shares_the_rest_and_the_emitted_token_keeps_its_own() -> None:
    whole = recorded()
    cut = replace(whole, ids=whole.ids[:, :2], log_masses=whole.log_masses[:, :2])
    for (p, q), (exact, _), place in zip(
        law_rows(cut, drafter, most=100).rows,
        law_rows(whole, drafter, most=100).rows,
        (1, 2, 4, 5, 7, 8),
        strict=True,
    ):
        assert p.sum() == pytest.approx(1) and q.sum() == pytest.approx(1)
        np.testing.assert_allclose(np.sort(p)[::-1][:2], exact[:2], rtol=1e-5)
        own = np.exp(whole.emitted_log_masses[place])
        assert np.isclose(p, own, rtol=1e-4).any()


def test_bounds_of_a_recorded_trace(tmp_path: Path) -> None:
    from vllm_plugin.cli import app

    path = tmp_path / "trace.npz"
    write(path, recorded())
    run = CliRunner().invoke(
        app,
        [
            *("bounds", "--trace", str(path), "--drafter", "stand", "--k", "1", "--json"),
            *("--options", '{"specproof": {"order": 2, "min_survival": 0.0}}'),
        ],
    )
    assert run.exit_code == 0, run.output
    assert "rows: where stand would begin a draft among 7 of 7 positions\n" in run.stderr
    lines = json.loads(run.stdout)["bounds"]
    assert all(0 < line["acceptance"]["mean"] <= line["optimum"] + 1e-9 for line in lines)
    rows = law_rows(recorded(), drafter, most=100).rows
    assert all(0 < float(optimal_acceptance(p, q, 2).value) <= 1 + 1e-9 for p, q in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--drafter", "oracle"], "no drafter is called 'oracle'"),
        (["--options", "{"], "--options must be JSON"),
        (["--options", '{"ordr": 3}'], "no drafter has an option 'ordr'"),
    ],
)
def test_wrong_words_end_in_a_sentence(tmp_path: Path, words: list[str], said: str) -> None:
    from vllm_plugin.cli import app

    path = tmp_path / "trace.npz"
    write(path, recorded())
    run = CliRunner().invoke(app, ["bounds", "--trace", str(path), *words])
    assert run.exit_code == 2 and said in run.stderr and run.stdout == ""
    path.write_text("text")
    run = CliRunner().invoke(app, ["bounds", "--trace", str(path)])
    assert run.exit_code == 2 and f"{path} is no trace: it is no .npz file" in run.stderr


def test_theory_alone_has_no_drafters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("theory.bounds_cli._recorded", [])
    app = typer.Typer()
    app.command()(bounds)
    run = CliRunner().invoke(app, ["--trace", str(tmp_path / "trace.npz")])
    assert run.exit_code == 2 and "use the command `specproof bounds`" in run.stderr
    run = CliRunner().invoke(app, ["--trace", "rows.jsonl", "--drafter", "stand"])
    assert run.exit_code == 2 and "go with a recorded --trace" in run.stderr
