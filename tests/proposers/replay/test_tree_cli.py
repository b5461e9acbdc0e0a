"""`specproof tune-tree` as a user runs it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from tuned_traces import noisy, recorded
from typer.testing import CliRunner

from proposers.path_stand import MAX_CANDIDATES
from proposers.replay import make_drafter
from proposers.replay.tree_cli import MOST_PATHS, tune_tree
from proposers.replay.tree_counts import rank_chances
from proposers.replay.tree_figure import _rows, node_reach
from proposers.replay.tree_report import difference, judge
from proposers.shape import TreeShape
from theory.trace_file import read, write
from theory.trace_prompts import part_prompts, select_prompts

app = typer.Typer()
app.command()(tune_tree)
run = CliRunner()
SMALL = ("--budget", "8", "--depth", "4", "--branching", "4")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("traces") / "t.npz"
    write(at, recorded(noisy, temperature=0.9))
    return at


def answer(*words: object) -> dict:
    result = run.invoke(app, [str(word) for word in (*words, "--json")])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*words: object, code: int = 2) -> str:
    result = run.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    said = result.stderr.strip()
    assert len(said.splitlines()) == 1
    assert said.startswith("specproof tune-tree: ")
    return said


@pytest.mark.parametrize("scheme", ["without_replacement", "top_plus_one"])
def test_the_file_holds_the_shape_and_the_command_names_it(path, tmp_path, scheme) -> None:
    out, picture = tmp_path / "shape.json", tmp_path / "tree.png"
    found = answer(path, *SMALL, "--scheme", scheme, "--out", out, "--plot", picture)
    shape = TreeShape.read(out)
    assert [list(node) for node in shape.nodes] == found["nodes"]
    assert len(shape.nodes) <= 8
    assert shape.depth <= 4
    assert json.loads(out.read_text())["about"]["held_out"] == found["verdicts"][-1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == [out, picture]
    words = shlex.split(found["command"].replace("\\\n", " "))
    assert words[:3] == ["vllm", "serve", "MODEL"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert json.loads(given["--speculative-config"]) == {
        "method": "custom_class",
        "model": "vllm_plugin.Stand",
        "num_speculative_tokens": shape.depth,
    }
    assert json.loads(given["--additional-config"]) == {
        "specproof": {"shape": str(out), "drafting": scheme, "min_survival": 0.0}
    }
    assert found["method"] == ("exact" if scheme == "without_replacement" else "greedy")


def test_the_verdict_is_a_replay_of_the_held_out_prompts(path: Path) -> None:
    found = answer(path, *SMALL, "--seed", 3, "--hold-out", 0.5, "--options", '{"order": 3}')
    whole = read(path)
    held_out = select_prompts(whole, part_prompts(whole, 0.5, 3)[1])
    assert found["held_out"]["prompts"] == held_out.prompts == 6
    make = make_drafter(
        "stand", {"order": 3, "min_survival": 0.0}, draft_length=4, seed=3, tokens=1000
    )
    chances = rank_chances(
        held_out, make, depth=4, branching=4, scheme="without_replacement", seed=3
    )
    shape = TreeShape(tuple(tuple(node) for node in found["nodes"]))
    chain, tree = judge(
        held_out, chances, [("", TreeShape.root_branching(1, shape.depth)), ("", shape)]
    )
    first, *others, last = found["verdicts"]
    assert first["block_efficiency"] == chain.block_efficiency.as_dict()
    assert last["block_efficiency"] == tree.block_efficiency.as_dict()
    assert last["gain"] == difference(chain.score, tree.score).as_dict()
    assert last["gain"]["low"] > 0
    assert list(found["found_minus_root_branching"]) == [line["name"] for line in others]
    assert found["additional_config"]["specproof"]["order"] == 3


def test_the_held_out_prompts_have_no_say(path: Path, tmp_path: Path) -> None:
    whole = read(path)
    rng = np.random.default_rng(0)
    first = answer(path, *SMALL)

    def shuffled(prompts: np.ndarray) -> dict:
        tokens = whole.tokens.copy()
        for number in range(whole.answers):
            if whole.answer_prompts[number] in prompts:
                tokens[whole.answer(number)] = rng.permutation(tokens[whole.answer(number)])
        at = tmp_path / f"{prompts[0]}.npz"
        write(at, replace(whole, tokens=tokens))
        return answer(at, *SMALL)

    stay, held_out = part_prompts(whole, 0.4, 0)
    second, third = shuffled(held_out), shuffled(stay)
    assert second["nodes"] == first["nodes"]
    assert second["verdicts"] != first["verdicts"]
    assert third["nodes"] != first["nodes"]


def test_no_shape_has_more_paths_than_the_drafter_takes() -> None:
    assert MOST_PATHS == MAX_CANDIDATES


def test_limits_and_methods(path: Path) -> None:
    shapes = {}
    for words in (
        ("--paths", "2"),
        ("--cost", "tokens"),
        ("--method", "greedy"),
        ("--method", "sequoia", "--weigh", "places"),
        ("--share", "prompt", "--order", "lockstep"),
    ):
        found = answer(path, *SMALL, *words)
        shapes[words[:2]] = TreeShape(tuple(tuple(node) for node in found["nodes"]))
        line = found["verdicts"][-1]
        assert line[{"tokens": "forward_tokens"}.get(words[1], "nodes")] <= 8
        assert line["block_efficiency"]["value"] > found["verdicts"][0]["block_efficiency"]["value"]
    assert shapes["--paths", "2"].paths == 2
    assert len(set(shapes.values())) > 1


def test_the_table(path: Path, tmp_path: Path) -> None:
    result = run.invoke(app, [str(path), *SMALL, "--out", str(tmp_path / "s.json")])
    assert result.exit_code == 0, result.output
    for word in ("1 x ", "found", "±", "tokens/step", "vllm serve MODEL", "shape: ", "to chain"):
        assert word in result.stdout
    told = result.stdout.split("vllm serve")[0]
    assert all(len(line) <= 80 for line in told.splitlines())
    assert "FILE" in run.invoke(app, [str(path), *SMALL]).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "0"], "--budget must be a number from 1 to 256; got 0"),
        (["--budget", "1", "--cost", "tokens"], "--budget must be a number from 2 to 256; got 1"),
        (["--paths", "0"], "--paths must be a number from 1 to 16; got 0"),
        (["--depth", "129"], "--depth must be a number from 1 to 128; got 129"),
        (["--branching", "17"], "--branching must be a number from 1 to 16; got 17"),
        (["--cost", "time"], "--cost must be one of nodes, tokens; got 'time'"),
        (["--method", "best"], "--method must be one of exact, greedy, sequoia; got 'best'"),
        (["--scheme", "iid"], "--scheme must be one of without_replacement, top_plus_one"),
        (["--weigh", "none"], "--weigh must be one of steps, places"),
        (["--drafter", "suffix"], "--drafter must be one of stand; got 'suffix'"),
        (["--share", "some"], "--share must be one of prompt, all, none"),
        (["--order", "wild"], "--order must be one of lockstep, sequential"),
        (["--held-out", "1"], "--hold-out must lie between 0 and 1; got 1"),
        (["--options", "{"], "--options must be JSON"),
        (["--options", '{"orders": 3}'], "no drafter has an option 'orders'"),
        (["--out", "nowhere/s.json"], "--out must be a file in a folder that exists"),
        (["--plot", "picture.txt"], "--plot must end in"),
        (
            ["--method", "exact", "--scheme", "top_plus_one"],
            "for top_plus_one there is greedy",
        ),
    ],
)
def test_sentences(path: Path, words: list[str], said: str) -> None:
    assert said in refusal(path, *words)


def test_traces_that_cannot_be_tuned_on(path: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.npz"
    write(few, select_prompts(read(path), [0, 1, 2]))
    assert "3 prompts; tuning holds some out to judge by, and needs 4" in refusal(few)
    write(few, recorded(noisy, length=1))
    assert "no token behind a first one" in refusal(few)
    (tmp_path / "text.npz").write_text("no trace")
    assert "text.npz" in refusal(tmp_path / "text.npz")
    assert "nowhere.npz" in refusal(tmp_path / "nowhere.npz")


def test_a_shape_that_cannot_be_written_is_told(path, tmp_path, monkeypatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    said = refusal(path, *SMALL, "--out", tmp_path / "s.json", code=1)
    assert "No space left on device" in said
    assert json.loads(said[said.index("[[") :])[0] == [0]
    assert list(tmp_path.iterdir()) == []


def test_the_picture_has_a_row_for_each_path_and_the_reach_of_each_node(path: Path) -> None:
    whole = read(path)
    make = make_drafter("stand", {"min_survival": 0.0}, draft_length=3, tokens=1000)
    chances = rank_chances(whole, make, depth=3, branching=3, scheme="without_replacement")
    shape = TreeShape(((0,), (0, 0), (0, 1), (0, 1, 0), (1,)))
    assert _rows(shape) == {(): 0, (0,): 0, (0, 0): 0, (0, 1): -1, (0, 1, 0): -1, (1,): -2}
    reach = node_reach(shape, chances)
    assert list(reach) == list(shape.nodes)
    assert sum(reach.values()) == pytest.approx(chances.accepted(shape))
    assert reach[0, 0] == pytest.approx(chances.counts([(0, 0)])[0] / chances.steps)
