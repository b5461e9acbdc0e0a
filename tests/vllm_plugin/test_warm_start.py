"""A table's file at the door: one sentence before a model is loaded, or a start."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from proposers import table_file
from proposers.table_file import Contexts, Identity
from vllm_plugin import guard, hooks, warm_start
from vllm_plugin.config import ConfigurationError, Options, read_options

OURS = {"method": "custom_class", "model": "vllm_plugin.Stand", "num_speculative_tokens": 8}
IDENTITY = Identity(order=Options().order, entries=Options().entries, vocabulary=64, tokenizer="")
MODEL = SimpleNamespace(skip_tokenizer_init=True, get_vocab_size=lambda: 64)


def write(path: Path, identity: Identity = IDENTITY) -> Path:
    block = Contexts(
        keys=np.ones(1, np.uint64),
        used=np.ones(1, np.uint32),
        counts=np.ones(1, np.float32),
        kept=np.ones(1, np.float32),
        ids=np.full((1, identity.entries), -1, np.int32),
        probabilities=np.zeros((1, identity.entries), np.float32),
    )
    table_file.write(path, identity, [block])
    return path


def refusal(path: object, model: Any = MODEL) -> str:
    with pytest.raises(ConfigurationError) as refused:
        warm_start.check(model, Options(table_path=str(path)))
    text = str(refused.value)
    assert "\n" not in text
    assert text.startswith("--additional-config: specproof.table_path")
    return text


def test_no_file_a_missing_file_and_a_good_file_pass(tmp_path: Path) -> None:
    warm_start.check(MODEL, Options())
    warm_start.check(MODEL, Options(table_path=str(tmp_path / "none")))
    good = write(tmp_path / "good")
    before = good.read_bytes()
    warm_start.check(MODEL, Options(table_path=str(good)))
    assert good.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} <= {"good", "good.lock", "none.lock"}


def test_a_path_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert warm_start.table_path(Options(table_path="~/t")) == tmp_path / "t"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"order": 2}, "order 2"),
        ({"entries": 3}, "entries 3"),
        ({"vocabulary": 65}, "vocabulary 65, but vocabulary is 64"),
    ],
)
def test_a_table_of_other_settings(tmp_path: Path, changes: dict[str, int], words: str) -> None:
    path = write(tmp_path / "t", replace(IDENTITY, **changes))
    text = refusal(path)
    assert words in text and str(path) in text


def test_a_table_of_another_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1})
    monkeypatch.setattr(
        "vllm.tokenizers.registry.cached_tokenizer_from_config", lambda config: held
    )
    own = warm_start.fingerprint({"b": 1, "a": 0})
    path = tmp_path / "t"
    write(path, replace(IDENTITY, tokenizer=own))
    model = SimpleNamespace(skip_tokenizer_init=False, get_vocab_size=lambda: 64)
    warm_start.check(model, Options(table_path=str(path)))
    write(path, replace(IDENTITY, tokenizer=warm_start.fingerprint({"a": 1, "b": 0})))
    assert "another tokenizer" in refusal(path, model)
    warm_start.check(MODEL, Options(table_path=str(path)))  # no tokenizer here: none to compare


def test_a_damaged_foreign_or_newer_file(tmp_path: Path) -> None:
    path = write(tmp_path / "t")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "damaged" in refusal(path)
    path.write_bytes(b"something else")
    assert "no table of specproof" in refusal(path)
    path.write_bytes(whole[:16] + b"\x09\0\0\0" + whole[20:])
    assert "version 9" in refusal(path)


def test_no_file_but_a_folder_or_nothing_to_write_to(tmp_path: Path) -> None:
    assert "no file" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "a" / "b")
    assert "null" in refusal(tmp_path / "a\0b")
    assert "too long" in refusal(tmp_path / ("x" * 300)).lower()


def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**settings: object) -> None:  # root may write anywhere, so the kernel is played
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert "cannot be written: Permission denied" in refusal(tmp_path / "t")


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root needs setpriv")
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    """The same with a real kernel, as a user who is nobody in that folder."""
    code = (
        "import sys; from pathlib import Path; from vllm_plugin import warm_start\n"
        "warm_start._try_to_write(Path(sys.argv[1]))"
    )
    tmp_path.chmod(0o555)
    command = [sys.executable, "-c", code, str(tmp_path / "t")]
    if os.getuid() == 0:
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "cannot be written: Permission denied" in done.stderr


def test_a_file_that_another_server_is_writing_can_be_written(tmp_path: Path) -> None:
    path = write(tmp_path / "t")
    with FileLock(f"{path}.lock"):
        warm_start.check(MODEL, Options(table_path=str(path)))


# The options, and the guard in front of vLLM


@pytest.mark.parametrize("path", ["", 3, True, ["x"]])
def test_a_path_that_is_none(path: object) -> None:
    with pytest.raises(ConfigurationError, match=r"specproof\.table_path is "):
        read_options({"specproof": {"table_path": path}})


@pytest.mark.parametrize("minutes", [-1, float("nan"), float("inf"), 1e9, "5"])
def test_minutes_that_are_none(minutes: object) -> None:
    with pytest.raises(ConfigurationError, match=r"specproof\.table_save_minutes is "):
        read_options({"specproof": {"table_save_minutes": minutes}})


def test_a_proposer_without_a_table_is_refused_one() -> None:
    options: dict[str, dict[str, object]] = {"specproof": {"table_path": "/tmp/t"}}
    with pytest.raises(ConfigurationError, match="no effect with vllm_plugin"):
        guard.check("org/name", OURS | {"model": "vllm_plugin.PromptLookup"}, options)
    assert guard.check("org/name", OURS, options) is True
    chooser = OURS | {"model": "vllm_plugin.Chooser"}
    assert guard.check("org/name", chooser, options) is True
    options["specproof"] |= {"members": ["prompt_lookup"]}
    with pytest.raises(ConfigurationError, match="'stand' among members"):
        guard.check("org/name", chooser, options)


def test_a_vllm_with_other_seams_serves_without_a_table_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hooks, "TABLES", (replace(hooks.ENGINE_GRACE, parameters=("x",)),))
    assert guard.check("org/name", OURS, None) is True
    with pytest.raises(ConfigurationError, match="table_path cannot be served"):
        guard.check("org/name", OURS, {"specproof": {"table_path": "/tmp/t"}})


def test_engine_arguments_are_refused_before_an_engine_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SimpleNamespace(
        model_config=MODEL, speculative_config=SimpleNamespace(model=OURS["model"])
    )
    create = guard._guarded(lambda self: made)
    path = write(tmp_path / "t")
    arguments = SimpleNamespace(
        model="org/name",
        speculative_config=OURS,
        additional_config={"specproof": {"table_path": str(path)}},
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
    )
    patience: list[bool] = []
    monkeypatch.setattr(warm_start, "wait_for_saving", lambda: patience.append(True))
    monkeypatch.setattr("vllm_plugin.metrics.prepare", lambda: None)
    assert create(arguments) is made
    assert patience == [True]
    path.write_bytes(b"something else")
    with pytest.raises(ConfigurationError, match="no table of specproof"):
        create(arguments)
    monkeypatch.setattr("sys.argv", ["/usr/bin/vllm", "serve"])
    with pytest.raises(SystemExit, match=r"specproof: --additional-config: .*no table of"):
        create(arguments)


def test_checking_a_file_needs_no_numba(tmp_path: Path) -> None:
    """A CPU worker's kernels cannot be registered once it is loaded (config.py)."""
    path = write(tmp_path / "t")
    code = f"""
import sys
from types import SimpleNamespace
from vllm_plugin import warm_start
from vllm_plugin.config import Options
model = SimpleNamespace(skip_tokenizer_init=True, get_vocab_size=lambda: 64)
warm_start.check(model, Options(table_path={str(path)!r}))
loaded = {{"numba", "llvmlite", "torch"}} & set(sys.modules)
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("request_timeout", "process_timeout", "seconds"),
    [
        (0, 0, warm_start.GRACE_SECONDS),  # `vllm serve` as it is
        (0, None, warm_start.GRACE_SECONDS),  # an LLM object
        (0, 60, 60),
        (30, 30, 30),  # draining: what the user gave
        (30, 0, 0),
    ],
)
def test_engines_are_given_time_to_save(
    request_timeout: float, process_timeout: float | None, seconds: float
) -> None:
    from vllm.v1.engine.utils import get_engine_process_shutdown_timeout as stock

    patient = warm_start._patient(getattr(stock, "__specproof_original__", stock))
    assert patient(request_timeout, process_timeout) == seconds
