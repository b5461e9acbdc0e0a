"""`specproof model`: built once, whole or not at all, and the model that was packaged."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_gguf import random_llama, write_gguf, write_wheel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from vllm_plugin import gguf_model, models
from vllm_plugin.cli import app

# A child that builds "tiny" and says when conversion begins; no torch, so that it starts at once.
CHILD = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
from vllm_plugin import models

def write_model(gguf, folder, *, progress):
    (folder / "config.json").write_text("{}")
    print("converting", flush=True)
    time.sleep(float(sys.argv[2]))

sys.modules["vllm_plugin.gguf_model"] = types.SimpleNamespace(write_model=write_model)
models.RECIPES["tiny"] = models.Recipe(("specproof-tiny==1.0",), sys.argv[1])
print(models.build("tiny"), flush=True)
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> models.Recipe:
    """A recipe "tiny" whose package pip finds in a folder, and an empty cache for it."""
    torch.manual_seed(0)
    write_gguf(tmp_path / "tiny.gguf", "llama", random_llama())
    data = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "links").mkdir()
    write_wheel(tmp_path / "links", "specproof-tiny", "1.0", data)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = models.Recipe(("specproof-tiny==1.0",), hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(models.RECIPES, "tiny", recipe)
    return recipe


def left_in_cache() -> set[str]:
    return {entry.name for entry in models.cache_root().iterdir()} - {"tiny.lock"}


def child(recipe: models.Recipe, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, recipe.sha256, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_a_name_builds_once_and_prints_only_its_folder(tiny: models.Recipe) -> None:
    first = CliRunner().invoke(app, ["model", "tiny"])
    assert first.exit_code == 0, first.output
    folder = Path(first.stdout.rstrip("\n"))
    assert folder == models.folder_of("tiny")
    assert AutoTokenizer.from_pretrained(folder).tokenize("hello") == ["hello"]
    written = folder.stat().st_mtime_ns
    again = CliRunner().invoke(app, ["model", "tiny", "--json"])
    assert json.loads(again.stdout) == {"name": "tiny", "folder": str(folder)}
    assert folder.stat().st_mtime_ns == written
    assert left_in_cache() == {folder.name}


def test_check_compares_with_the_packaged_weights(tiny: models.Recipe) -> None:
    result = CliRunner().invoke(app, ["model", "tiny", "--check", "--json"])
    assert json.loads(result.stdout)["largest_logit_gap"] < 1e-4


def test_unknown_name_names_the_known_ones() -> None:
    result = CliRunner().invoke(app, ["model", "llama"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "specproof: unknown model 'llama'; the known ones are smollm2, gemma3-270m.\n"
    )


def test_changed_weights_are_refused(tiny: models.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.RECIPES, "tiny", models.Recipe(tiny.packages, "0" * 64))
    with pytest.raises(models.ModelError, match="the package has been changed, so it is not used"):
        models.build("tiny")
    assert left_in_cache() == set()


def test_package_that_pip_cannot_get(tiny: models.Recipe, tmp_path: Path) -> None:
    next((tmp_path / "links").iterdir()).unlink()
    result = CliRunner().invoke(app, ["model", "tiny"])
    assert result.exit_code == 1
    complaint = result.stderr.splitlines()[-1]
    assert complaint.startswith("specproof: pip cannot download specproof-tiny==1.0 (")
    assert "No matching distribution found" in complaint
    assert left_in_cache() == set()


def test_cache_that_cannot_be_written(
    tiny: models.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(models.ModelError, match="set XDG_CACHE_HOME to a folder"):
        models.build("tiny")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_leaves_nothing(tiny: models.Recipe, signum: signal.Signals) -> None:
    with child(tiny, 60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "converting\n"
        process.send_signal(signum)
        assert process.wait(120) != 0
    assert left_in_cache() == set()


def test_next_build_sweeps_what_a_killed_one_left(tiny: models.Recipe) -> None:
    with child(tiny, 60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "converting\n"
        process.kill()
    (stale,) = left_in_cache()
    assert stale.startswith("tiny-1.tmp-")
    assert models.build("tiny").name == "tiny-1"
    assert left_in_cache() == {"tiny-1"}


def test_concurrent_builds_convert_once(tiny: models.Recipe) -> None:
    processes = [child(tiny, 1) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(len(output) for output in outputs) == [1, 1, 2]  # one of them said "converting"
    assert {output[-1] for output in outputs} == {str(models.folder_of("tiny"))}
    assert left_in_cache() == {"tiny-1"}


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return models.build("smollm2")


@pytest.fixture(scope="module")
def smollm2_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.fetch(models.RECIPES["smollm2"], tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def packaged_logits(smollm2: Path, smollm2_gguf: Path) -> list[torch.Tensor]:
    return models.logits_of(smollm2, weights=smollm2_gguf)


@pytest.mark.slow
def test_smollm2_is_the_packaged_model(smollm2: Path, packaged_logits: list[torch.Tensor]) -> None:
    """Both are rounded to bfloat16 and run in float32, so nothing but conversion can differ."""
    assert models.largest_gap(models.logits_of(smollm2), packaged_logits) < 1e-3


@pytest.mark.slow
def test_smollm2_without_the_permutation_is_another_model(
    smollm2_gguf: Path,
    packaged_logits: list[torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control: the comparison above sees a missing permutation of q and k."""
    monkeypatch.setattr(gguf_model, "undo_rotary_permutation", lambda rows, heads: rows)
    gguf_model.write_model(smollm2_gguf, tmp_path)
    assert models.largest_gap(models.logits_of(tmp_path), packaged_logits) > 1


@pytest.mark.slow
def test_smollm2_answers_a_question(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]
    assert answer[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(answer[prompt.input_ids.shape[1] :], skip_special_tokens=True)
    assert "Paris" in text


def test_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models.folder_of("smollm2") == tmp_path / "specproof" / "models" / "smollm2-1"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the XDG specification ignores
    assert models.cache_root() == Path(os.path.expanduser("~/.cache/specproof/models"))
