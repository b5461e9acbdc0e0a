"""Rows (p, q) of a replayed drafter, and `specproof bounds --trace FILE.npz`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from small_traces import trace
from typer.testing import CliRunner

from proposers import PromptLookupDrafter
from proposers.batch import Drafts, Followed
from proposers.replay.node_laws import node_laws
from theory.bounds_cli import bounds
from theory.inputs import write_trace
from theory.trace_file import write
from vllm_plugin.cli import app

run = CliRunner()
V = 9
LAWS = np.random.default_rng(3).dirichlet(np.full(V, 0.3), V) * 0.95 + 0.05 / V
PROMPT = [0, 1, 2, 0, 1]


@pytest.fixture(scope="module")
def recorded():
    rng = np.random.default_rng(0)
    answers = []
    for number in range(6):
        text = list(PROMPT)
        for _ in range(30 + number):
            text.append(int(rng.choice(V, p=LAWS[text[-1]])))
        answers.append((0, text[len(PROMPT) :]))
    return trace(lambda text: LAWS[text[-1]], answers, [PROMPT], max_tokens=60)


class Knowing(PromptLookupDrafter):
    """Its q is a known function of the last token; it drafts where that token is even."""

    def __init__(self, laws):
        super().__init__(draft_length=1)
        self.laws = laws

    def draft(self, requests):
        count = len(requests)
        nothing = np.zeros((count, 1), np.int32)
        return Drafts(
            nothing, np.zeros(count, np.int64), nothing[..., None], np.zeros((count, 1, 1))
        )

    def follow(self, requests, continuation):
        last = requests.tokens[requests.rows, requests.lengths - 1]
        law = self.laws[last][:, None]
        ids = np.broadcast_to(np.arange(V, dtype=np.int32), law.shape)
        q = np.take_along_axis(law, np.maximum(continuation, 0)[..., None], axis=2)[..., 0]
        return Followed(np.where((last % 2 == 0)[:, None], q, -1.0), ids, law)


def texts_before(recorded):
    """The last token before every position at which a step can start with room for a draft."""
    found = {}
    for answer in range(recorded.answers):
        rows = recorded.answer(answer)
        found |= {t: int(recorded.tokens[t - 1]) for t in range(rows.start + 1, rows.stop)}
    return found


def test_rows_are_the_laws_where_the_drafter_drafts(recorded):
    q = np.roll(LAWS, 1, axis=1)
    found = node_laws(recorded, lambda: Knowing(q))
    before = texts_before(recorded)
    drafting = [t for t, last in sorted(before.items()) if last % 2 == 0]
    assert found.positions.tolist() == drafting
    assert (found.drafting, found.all_positions) == (len(drafting), len(before))
    for t, (p, law) in zip(found.positions, found.rows, strict=True):
        assert p == pytest.approx(np.append(LAWS[before[t]], 0), abs=1e-6)
        assert law == pytest.approx(np.append(q[before[t]], 0))


def test_what_the_head_does_not_hold_goes_to_one_more_token(recorded):
    """With a head of 3 of 9 tokens, those of q beyond it share what the head leaves."""
    from dataclasses import replace

    short = replace(
        recorded,
        ids=np.ascontiguousarray(recorded.ids[:, :3]),
        log_masses=np.ascontiguousarray(recorded.log_masses[:, :3]),
    )
    q = np.zeros((V, V))
    q[:, :5] = 0.2
    found = node_laws(short, lambda: Knowing(q))
    for t, (p, law) in zip(found.positions, found.rows, strict=True):
        assert p.shape == law.shape == (6,)
        assert p.sum() == pytest.approx(1)
        truth = LAWS[texts_before(recorded)[t]]
        known = [x for x in range(5) if x in short.ids[t] or x == short.tokens[t]]
        assert p[known] == pytest.approx(truth[known], abs=0.02)
        kept = float(short.processed.kept[t])
        for x in set(range(5)) - set(known):
            assert p[x] == pytest.approx((1 - kept) / 6, abs=0.02)


def test_a_sample_is_drawn_evenly_and_again_by_its_seed(recorded):
    everything = node_laws(recorded, lambda: Knowing(LAWS)).positions
    often = np.zeros(len(everything))
    for seed in range(400):
        few = node_laws(recorded, lambda: Knowing(LAWS), most=5, seed=seed)
        assert few.drafting == len(everything)
        assert len(few.rows) == len(set(few.positions.tolist())) == 5
        often += np.isin(everything, few.positions)
    # Each position is in a sample with probability 5/n: a chi-square of n cells, 6 sigma.
    n = len(everything)
    expected = 400 * 5 / n
    chi = float(((often - expected) ** 2 / (expected * (1 - 5 / n))).sum())
    assert chi < n + 6 * np.sqrt(2 * n)
    again = node_laws(recorded, lambda: Knowing(LAWS), most=5, seed=1).positions
    assert (
        again.tolist()
        == node_laws(recorded, lambda: Knowing(LAWS), most=5, seed=1).positions.tolist()
    )


def test_no_draft_anywhere_is_said(recorded):
    class Silent(Knowing):
        def follow(self, requests, continuation):
            laws = super().follow(requests, continuation)
            return Followed(np.full_like(laws.q, -1.0), laws.law_ids, laws.law_probabilities)

    with pytest.raises(ValueError, match="drafts nowhere"):
        node_laws(recorded, lambda: Silent(LAWS))


def test_the_command_says_what_its_rows_are(recorded, tmp_path):
    path = tmp_path / "t.npz"
    write(path, recorded)
    words = ["bounds", "--trace", str(path), "--drafter", "prompt_lookup", "--k", "1"]
    found = json.loads(run.invoke(app, [*words, "--json"]).stdout)
    rows = node_laws(recorded, lambda: PromptLookupDrafter(draft_length=1, longest=4, shortest=1))
    alpha = np.mean([np.minimum(p, q).sum() for p, q in rows.rows])
    assert found["one_minus_tv"]["mean"] == pytest.approx(float(alpha))
    assert f"all of the {rows.drafting:,} positions" in found["rows"]
    few = run.invoke(app, [*words, "--rows", "7"])
    assert "rows: 7 at random of the" in few.stdout
    longest = '{"specproof": {"longest_match": 1}}'
    other = json.loads(run.invoke(app, [*words, "--options", longest, "--json"]).stdout)
    assert other["one_minus_tv"]["mean"] != found["one_minus_tv"]["mean"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["TRACE", "--drafter", "oracle"], "no drafter is called 'oracle'"),
        (["TRACE", "--options", "{"], "--options must be JSON"),
        (["TRACE", "--options", '{"orders": 3}'], "'orders'"),
        (["ROWS", "--drafter", "stand"], "--drafter and --options go with a --trace that ends in"),
        (["/nowhere.npz"], "No such file"),
    ],
)
def test_bad_calls_end_with_status_2_and_a_sentence(recorded, tmp_path, words, sentence):
    write(tmp_path / "t.npz", recorded)
    write_trace(tmp_path / "rows.jsonl", [(LAWS[0], LAWS[1])], V)
    places = {"TRACE": str(tmp_path / "t.npz"), "ROWS": str(tmp_path / "rows.jsonl")}
    result = run.invoke(app, ["bounds", "--trace", *(places.get(word, word) for word in words)])
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stdout == ""


def test_theory_alone_cannot_replay(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr("theory.bounds_cli.READERS", {})
    write(tmp_path / "t.npz", recorded)
    alone = typer.Typer()
    alone.command()(bounds)
    result = run.invoke(alone, ["--trace", str(tmp_path / "t.npz")])
    assert result.exit_code == 2
    assert "t.npz must begin with a line like" in result.stderr
