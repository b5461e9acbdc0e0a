"""What only this plugin counts, under ``specproof:`` on the server's ``/metrics``.

The engine counts in its own process, the page is made in the API server's. vLLM carries none of a
plugin's numbers across, so each engine process keeps its counts in one small file of a folder that
its parent names, and a collector adds the files up when the page is asked for. With several API
servers vLLM uses Prometheus's own multiprocess mode; then the counts go there.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = "SPECPROOF_METRICS_DIR"
COUNTERS = {
    "requests_without_drafts": ("reason", "Requests served without drafts, by reason."),
    "requests_with_one_path": (
        "reason",
        "Requests verified along one path where several candidates are asked for, by reason.",
    ),
    "table_saves": ("result", "Saves of the STAND table to table_path, by result."),
    "rows_without_law": ("kind", "Target rows that were no law (NaN, or no finite logit)."),
}

_counts: dict[str, dict[str, int]] = {name: {} for name in COUNTERS}
_pid = os.getpid()
_counting = threading.Lock()


@cache
def prepare() -> None:
    """Name the folder for the engines that this process starts, and show its counts on the page.

    A process of the server's own keeps its parent's folder. A server that another program started
    gets one of its own, whatever that program has in its environment.
    """
    if FOLDER not in os.environ or multiprocessing.parent_process() is None:
        folder = tempfile.mkdtemp(prefix="specproof-metrics-")
        os.environ[FOLDER] = folder
        atexit.register(_remove, folder, os.getpid())
    _register()


def count(name: str, label: str, message: str | None = None) -> None:
    """Add one to a counter; the first of each label is also logged, with this message."""
    with _counting:  # the thread that saves tables counts too
        _count(name, label, message)


def _count(name: str, label: str, message: str | None) -> None:
    global _pid
    if _pid != os.getpid():  # a fork: what the parent counted is the parent's
        _pid = os.getpid()
        for counter in _counts.values():
            counter.clear()
    counter = _counts[name]
    if message is not None and label not in counter:
        log().warning("specproof: %s (counted as specproof:%s_total)", message, name)
    counter[label] = counter.get(label, 0) + 1
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        _prometheus(name).labels(label).inc()
    elif FOLDER in os.environ:
        _write(Path(os.environ[FOLDER]))


def totals(folder: Path) -> dict[str, dict[str, int]]:
    """Every counter's labels and values, summed over the engine processes of a folder."""
    sums: dict[str, dict[str, int]] = {name: {} for name in COUNTERS}
    for file in folder.glob("*.json"):
        for name, counter in json.loads(file.read_text()).items():
            for label, value in counter.items():
                sums[name][label] = sums[name].get(label, 0) + value
    return sums


def _write(folder: Path) -> None:
    """Replace this process's file as a whole, so that no reader sees half of it."""
    part = folder / f"{os.getpid()}.part"
    try:
        part.write_text(json.dumps(_counts))
        part.replace(part.with_suffix(".json"))
    except FileNotFoundError:
        return  # the server that would show it has ended


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _register() -> None:
    from prometheus_client import REGISTRY

    collector: Any = _Collector()
    REGISTRY.register(collector)


@cache
def _prometheus(name: str) -> Any:
    from prometheus_client import Counter

    label, text = COUNTERS[name]
    return Counter(f"specproof:{name}", text, [label])


class _Collector:
    """Reads the folder at each scrape."""

    def describe(self) -> Iterable[Any]:
        """Nothing: its names are its own."""
        return ()

    def collect(self) -> Iterable[Any]:
        """One family for each counter."""
        from prometheus_client.core import CounterMetricFamily

        sums = totals(Path(os.environ.get(FOLDER, os.devnull)))
        for name, (label, text) in COUNTERS.items():
            family = CounterMetricFamily(f"specproof:{name}", text, labels=[label])
            for value, number in sorted(sums[name].items()):
                family.add_metric([value], number)
            yield family


def log() -> Any:
    """The plugin's logger, whose lines look like vLLM's."""
    from vllm.logger import init_logger

    return init_logger("vllm.specproof")
