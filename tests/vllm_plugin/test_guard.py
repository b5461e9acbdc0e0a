"""Refusals at the door: one sentence before vLLM acts on the arguments, and no other refusals."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_plugin import guard, hooks
from vllm_plugin.config import ConfigurationError

OURS = {"method": "custom_class", "model": "vllm_plugin.Stand", "num_speculative_tokens": 8}


@pytest.fixture(autouse=True)
def no_runner_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)


def refusal(speculative: object, additional: object = None, model: str = "org/name") -> str:
    with pytest.raises(ConfigurationError) as refused:
        guard.check(model, speculative, additional)
    text = str(refused.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("proposer", guard.PROPOSERS)
@pytest.mark.parametrize("length", [1, 8, 128])
def test_what_can_be_served_passes(proposer: str, length: int, tmp_path: Path) -> None:
    if proposer == "vllm_plugin.SpecTr":
        length = min(length, 15)  # its 8 paths fill vLLM's 128 drafts
    if proposer == "vllm_plugin.Suffix":
        pytest.importorskip("arctic_inference.suffix_decoding", reason="it is optional")
    speculative = OURS | {"model": proposer, "num_speculative_tokens": length}
    assert guard.check(str(tmp_path), speculative, {"specproof": {"order": 3}}) is True
    assert guard.check("org/name", speculative, None) is True


def test_suffix_decoding_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = refusal(OURS | {"model": "vllm_plugin.Suffix"})
    assert "arctic-inference" in text
    assert "pip install" in text
    chooser = OURS | {"model": "vllm_plugin.Chooser"}
    members = {"specproof": {"members": ["stand", "suffix"]}}
    assert "arctic-inference" in refusal(chooser, members)
    assert guard.check("org/name", chooser, None) is True
    assert guard.check("org/name", OURS, members) is True


def test_json_texts_are_read_like_objects() -> None:
    text = '{"method": "custom_class", "model": "vllm_plugin.Stand", "num_speculative_tokens": 0}'
    assert "num_speculative_tokens is 0" in refusal(text)
    good = text.replace(": 0}", ": 8}")
    assert "no option 'x'" in refusal(good, '{"specproof": {"x": 1}}')


@pytest.mark.parametrize("length", [0, -1, 129, 10**9])
def test_a_draft_length_out_of_range(length: int) -> None:
    text = refusal(OURS | {"num_speculative_tokens": length})
    assert f"num_speculative_tokens is {length}" in text
    assert "1..128" in text


@pytest.mark.parametrize("length", [True, "8", 8.0, None, [8]])
def test_a_draft_length_that_is_no_whole_number(length: object) -> None:
    text = refusal(OURS | {"num_speculative_tokens": length})
    assert f"num_speculative_tokens is {length!r}" in text
    assert "from 1 to 128" in text


def test_a_missing_draft_length() -> None:
    speculative = {key: value for key, value in OURS.items() if key != "num_speculative_tokens"}
    assert "num_speculative_tokens is None" in refusal(speculative)


def test_a_missing_model_folder(tmp_path: Path) -> None:
    folder = str(tmp_path / "nowhere")
    assert refusal(OURS, model=folder) == f"the model folder {folder} does not exist"
    file = tmp_path / "file"
    file.touch()
    assert str(file) in refusal(OURS, model=str(file))


@pytest.mark.parametrize("value", ["1", "true", " True "])
def test_the_second_runner_forced(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
    assert "VLLM_USE_V2_MODEL_RUNNER" in refusal(OURS)
    assert guard.check("org/name", None, None) is False  # somebody else's business


def test_the_first_runner_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert guard.check("org/name", OURS, None) is True


def test_an_unknown_option() -> None:
    assert "no option 'ordre'" in refusal(OURS, {"specproof": {"ordre": 4}})


def test_a_setting_without_effect() -> None:
    text = refusal(OURS | {"prompt_lookup_max": 4})
    assert "'prompt_lookup_max'" in text
    assert "vllm_plugin.Stand" in text


@pytest.mark.parametrize("speculative", [None, {"method": "ngram", "num_speculative_tokens": 4}])
def test_our_options_without_our_proposer(speculative: object) -> None:
    text = refusal(speculative, {"specproof": {"order": 4}})
    assert "vllm_plugin.Stand" in text
    assert "drop the section" in text


@pytest.mark.parametrize(
    ("speculative", "additional"),
    [
        (None, None),
        (None, {"another": 1}),
        ({"method": "ngram", "num_speculative_tokens": 0}, None),  # vLLM's own to refuse
        ({"method": "custom_class", "model": "another.Proposer"}, {}),
        ("not json", "not json"),
        (17, 17),
    ],
)
def test_arguments_that_do_not_name_us_pass(speculative: object, additional: object) -> None:
    assert guard.check("/no/such/folder", speculative, additional) is False


def test_a_misfit_refuses_us_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "vllm_version", lambda: "9.9.9")
    assert "specproof refuses to speculate: vLLM 9.9.9" in refusal(OURS)
    assert guard.check("org/name", {"method": "ngram"}, None) is False


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2)])
def test_several_workers_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigurationError, match="one worker"):
        guard.check_workers(*sizes)
    guard.check_workers(1, 1)


@pytest.fixture
def engine_args(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """vLLM's EngineArgs with the guard installed; loading plugins changes the environment."""
    from vllm.engine.arg_utils import EngineArgs

    before = dict(os.environ)
    guard.install()
    yield EngineArgs
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"speculative_config": OURS | {"num_speculative_tokens": 0}}, "is 0"),
        ({"additional_config": {"specproof": {"x": 1}}}, "no option 'x'"),
        ({"model": "/no/such/folder"}, "/no/such/folder does not exist"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size is 2"),
    ],
)
def test_the_check_comes_before_vllms_own(
    engine_args: Any, change: dict[str, Any], part: str, tmp_path: Path
) -> None:
    """The folder is empty, so vLLM itself would fail on its missing config.json."""
    arguments = {"model": str(tmp_path), "speculative_config": dict(OURS)} | change
    with pytest.raises(ConfigurationError, match=part):
        engine_args(**arguments).create_engine_config()


def test_a_missing_folder_is_named_offline_too(
    engine_args: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM then looks for every model in the hub's cache, before it makes any configuration."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match="/no/such/folder does not exist"):
        engine_args(model="/no/such/folder", speculative_config=OURS).create_engine_config()
    with pytest.raises(Exception, match="cached snapshot") as failure:  # names are looked up
        engine_args(model="no-such-org/name", speculative_config=OURS)
    assert not isinstance(failure.value, ConfigurationError)


def test_others_reach_vllms_own_code(engine_args: Any, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"config\.json|model type|Invalid repository") as failure:
        engine_args(model=str(tmp_path)).create_engine_config()
    assert not isinstance(failure.value, ConfigurationError)


@pytest.mark.slow
def test_the_command_line_prints_one_sentence(tmp_path: Path) -> None:
    speculative = '{"method": "custom_class", "model": "vllm_plugin.Stand", '
    run = subprocess.run(
        [
            *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(tmp_path)),
            *("--speculative-config", speculative + '"num_speculative_tokens": 129}'),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 1
    said = [line for line in run.stderr.splitlines() if line.startswith("specproof: ")]
    (sentence,) = said
    assert "num_speculative_tokens is 129; it must lie in 1..128" in sentence
    assert run.stderr.rstrip().endswith(sentence)
    assert "Traceback" not in run.stderr + run.stdout


def test_a_file_of_step_times_is_read_before_a_model_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    section = {"specproof": {"step_times_path": str(path)}}
    assert "step_times_path" in refusal(OURS, section)
    path.write_text("[1]")
    assert f"{path} holds no step times" in refusal(OURS, section)


def test_a_policy_without_times_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = hooks.problem
    monkeypatch.setattr(
        hooks, "problem", lambda hook: "gone" if hook is hooks.EXECUTE_MODEL else real(hook)
    )
    assert "set length to 'fixed': gone" in refusal(OURS)
    assert guard.check("org/name", OURS, {"specproof": {"length": "fixed"}}) is True
