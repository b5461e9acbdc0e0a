"""`specproof simulate` as a user runs it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from small_traces import trace
from typer.testing import CliRunner

from proposers.replay import make_drafter, profile, resolve, score
from proposers.replay.simulate_cli import simulate
from proposers.replay.simulation import Setting, walks
from proposers.replay.simulation import simulate as run_all
from theory.cluster_ratio import difference_interval, ratio_interval
from theory.trace_file import read, write

app = typer.Typer()
app.command()(simulate)
run = CliRunner()
V = 9
LAWS = np.random.default_rng(3).dirichlet(np.full(V, 0.3), V) * 0.95 + 0.05 / V
PROMPTS = [[0, 1, 2, 0, 1], [5, 5, 3], [8, 2, 8, 2, 8]]
SMALL = '{"specproof": {"table_mib": 1, "min_survival": 0.02}}'


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rng = np.random.default_rng(0)
    answers = []
    for number in range(9):
        text = list(PROMPTS[number % 3])
        for _ in range(30 + number):
            text.append(int(rng.choice(V, p=LAWS[text[-1]])))
        answers.append((number % 3, text[len(PROMPTS[number % 3]) :]))
    at = tmp_path_factory.mktemp("traces") / "t.npz"
    write(at, trace(lambda text: LAWS[text[-1]], answers, PROMPTS, max_tokens=60))
    return at


def answer(*words: object) -> dict:
    result = run.invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_json_carries_the_python_values(path, tmp_path):
    curve = tmp_path / "times.csv"
    curve.write_text("0,0.010\n8,0.018\n")
    found = answer(
        path, "--drafter", "prompt_lookup,stand", "--draft-length", "2,4", "--rule", "token",
        "--share", "prompt", "--order", "lockstep", "--options", SMALL, "--step-times", curve,
        "--json",
    )  # fmt: skip
    assert (found["prompts"], found["answers"], found["tokens"]) == (3, 9, 306)
    recorded = read(path)
    times = np.linspace(0.010, 0.018, 9)
    options = json.loads(SMALL)["specproof"]
    scores = {}
    for line in found["lines"]:
        name, k = line["drafter"], line["draft_length"]
        offered = profile(
            recorded, make_drafter(name, options, draft_length=4), draft_length=4, share="prompt",
            order="lockstep",
        )  # fmt: skip
        whole = score(offered, recorded, rule="token", draft_length=k, step_times=times)
        scores[name, k] = whole
        expected = ratio_interval(whole.tokens, whole.steps)
        assert line["block_efficiency"] == pytest.approx(expected.as_dict())
        rate = ratio_interval(whole.tokens, whole.seconds)
        assert line["tokens_per_second"] == pytest.approx(rate.as_dict())
        assert line["wasted"] == pytest.approx(whole.wasted.sum())
        assert line["acceptance"] == pytest.approx(whole.acceptance.tolist())
    assert [(line["drafter"], line["draft_length"]) for line in found["lines"]] == [
        ("prompt_lookup", 2), ("prompt_lookup", 4), ("stand", 2), ("stand", 4),
    ]  # fmt: skip
    assert found["lines"][1]["difference"] is None
    first, second = scores["prompt_lookup", 4], scores["stand", 4]
    gap = difference_interval((first.tokens, first.steps), (second.tokens, second.steps))
    assert found["lines"][3]["difference"] == pytest.approx(gap.as_dict())


def test_table_and_picture(path, tmp_path):
    picture = tmp_path / "out.png"
    result = run.invoke(
        app, [str(path), "--draft-length", "1,3", "--options", SMALL, "--plot", str(picture)]
    )
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    for word in ("stand", "prompt_lookup", "block", "wasted", "±", "refused drafts"):
        assert word in result.stdout
    assert "…" not in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if "plot" not in line)


def test_all_columns_fit_a_terminal(path, tmp_path):
    curve = tmp_path / "times.csv"
    curve.write_text("0,0.010\n8,0.018\n")
    result = run.invoke(
        app,
        [str(path), "--drafter", "stand,token_recycling", "--draft-length", "2,4", "--options",
         SMALL, "--step-times", str(curve)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "rule = block, k = 1, table: all, sequential" in result.stdout
    assert "tokens/s" in result.stdout
    assert "…" not in result.stdout


@pytest.mark.parametrize(
    ("words", "rule", "drafts"),
    [
        ([], "top_plus_one", "top_plus_one"),
        (["--drafts", "iid"], "kseq", "iid"),
        (["--drafts", "without_replacement"], "rrs_without_replacement", "without_replacement"),
        (["--rule", "rrs"], "rrs", "iid"),
        (["--rule", "match"], "match", "iid"),
        (["--rule", "match", "--drafts", "top_plus_one"], "match", "top_plus_one"),
        (["--rule", "sparse_optimal"], "sparse_optimal", "without_replacement"),
    ],
)
def test_several_candidates_with_what_was_left_open(path, words, rule, drafts):
    found = answer(
        path, "--drafter", "stand", "--candidates", "1,2", "--draft-length", 2, *words,
        "--options", SMALL, "--json",
    )  # fmt: skip
    one, two = found["lines"]
    assert (two["rule"], two["drafts"], two["candidates"]) == (rule, drafts, 2)
    assert one["drafts"] is None
    assert two["steps"] < one["steps"] if rule != "match" else two["drafted"] > one["drafted"]


def test_the_rule_may_stand_among_the_options(path):
    section = '{"rule": "match", "table_mib": 1}'
    found = answer(path, "--drafter", "stand", "--options", section, "--json")
    assert found["lines"][0]["rule"] == "match"
    found = answer(path, "--drafter", "stand", "--options", section, "--rule", "token", "--json")
    assert found["lines"][0]["rule"] == "token"


def test_chains_that_depend_on_K_are_walked_for_each(path):
    settings = resolve(["aded", "stand"], [2, 4], [1], None, None)
    assert walks(settings) == 3
    told: list[int] = []
    recorded = read(path)
    scored = dict(run_all(recorded, settings, options={"table_mib": 1}, advance=told.append))
    assert sum(told) == 3 * len(recorded)
    alone = dict(run_all(recorded, settings[:1], options={"table_mib": 1}))
    assert scored[settings[0]].steps.tolist() == alone[settings[0]].steps.tolist()
    assert settings[0] == Setting("aded", 2, 1, "block", None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--drafter", "eagle"], "--drafter must be some of stand, prompt_lookup"),
        (["--rule", "best"], "rule must be one of token, block, match, kseq"),
        (["--draft-length", "0"], "--draft-length must be numbers from 1 to 128"),
        (["--draft-length", "-3"], "--draft-length must be numbers from 1 to 128"),
        (["--candidates", "2,x"], "--candidates must be numbers from 1 to 64"),
        (["--candidates", "2", "--rule", "block"], "for one candidate; several go with kseq, rrs"),
        (
            ["--candidates", "2", "--rule", "token", "--drafts", "without_replacement"],
            "several without_replacement drafts go with match, rrs_without_replacement, sparse",
        ),
        (
            ["--candidates", "2", "--rule", "kseq", "--drafts", "top_plus_one"],
            "top_plus_one drafts go with match, top_plus_one",
        ),
        (["--drafts", "beam"], "drafts must be one of iid, without_replacement, top_plus_one"),
        (["--share", "some"], "--share must be one of prompt, all, none; got 'some'"),
        (["--order", "random"], "--order must be one of lockstep, sequential; got 'random'"),
        (["--options", "{"], "--options must be JSON"),
        (["--options", "[1]"], "--options must be a JSON object"),
        (["--options", '{"specproof": 3}'], "--options must be a JSON object"),
        (["--options", '{"ordr": 3}'], "no drafter has an option 'ordr'; the options are"),
        (["--options", '{"order": 99}'], "order is 99; it must lie in 1..8"),
        (["--options", '{"order": "4"}'], "order is '4', which is not of the kind of 6"),
        (["--options", '{"table_mib": 0}'], "a table budget of 0 bytes is too small"),
        (["--step-times", "missing.csv"], "missing.csv"),
        (["--plot", "picture.txt"], "--plot must end in .png, .pdf, .svg"),
    ],
)
def test_wrong_input_is_one_sentence(path, words, sentence):
    result = run.invoke(app, [str(path), *words])
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not result.stdout


def test_short_step_times_are_refused_before_the_work(path, tmp_path):
    curve = tmp_path / "times.csv"
    curve.write_text("0.010\n0.011\n0.012\n")
    words = [str(path), "--step-times", str(curve), "--draft-length"]
    assert run.invoke(app, [*words, "2", "--options", SMALL]).exit_code == 0
    result = run.invoke(app, [*words, "2", "--candidates", "2"])
    assert result.exit_code == 2
    assert "ends at 2 drafted tokens, but up to 4 can be drafted" in result.stderr


def test_what_is_no_trace_is_refused(tmp_path, path):
    wrong = tmp_path / "wrong.npz"
    wrong.write_bytes(b"PK nothing")
    for given in (wrong, tmp_path / "missing.npz", tmp_path):
        result = run.invoke(app, [str(given)])
        assert result.exit_code == 2
        assert len(result.stderr.strip().splitlines()) == 1
    empty = tmp_path / "empty.npz"
    whole = read(path)
    write(
        empty,
        replace(
            whole, answer_prompts=whole.answer_prompts[:1], answer_begins=np.zeros(2, np.int64),
            tokens=whole.tokens[:0], ids=whole.ids[:0], log_masses=whole.log_masses[:0],
            emitted_log_masses=whole.emitted_log_masses[:0],
        ),
    )  # fmt: skip
    result = run.invoke(app, [str(empty)])
    assert result.exit_code == 2
    assert "holds no tokens" in result.stderr


def test_one_prompt_leaves_nothing_to_judge_by(tmp_path):
    at = tmp_path / "one.npz"
    answers = [(0, [1, 2, 0, 1, 2, 0, 1, 2])]
    write(at, trace(lambda text: LAWS[text[-1]], answers, PROMPTS[:1], max_tokens=9))
    found = answer(at, "--options", SMALL, "--json")
    assert found["lines"][0]["block_efficiency"]["low"] is None
    assert run.invoke(app, [str(at), "--options", SMALL]).exit_code == 0
