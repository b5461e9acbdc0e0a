"""What only this plugin counts, under ``specproof:`` on the server's ``/metrics``.

The engine counts in its own process, the page is made in the API server's. vLLM carries none of a
plugin's numbers across, so each engine process keeps its own in one small file of a folder that
its parent names, and a collector adds the files up when the page is asked for
(vllm_plugin/metrics_page.py). With several API servers vLLM uses Prometheus's own multiprocess
mode; then the numbers go there.
"""

from __future__ import annotations

import atexit
import json
import math
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vllm_plugin import metrics_page
from vllm_plugin.metric_families import COUNTERS, GAUGES, LENGTH_BOUNDS, LENGTHS, LENGTHS_TEXT

FOLDER = "SPECPROOF_METRICS_DIR"
PROMETHEUS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

_counts: dict[str, dict[str, float]] = {name: {} for name in COUNTERS}
_gauges: dict[str, float] = {}
_lengths: dict[int, int] = {}
_pid = os.getpid()
_born = time.time_ns()
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
    metrics_page.show(Path(os.environ[FOLDER]))


def count(name: str, label: str, message: str | None = None) -> None:
    """Add one to a counter; the first of each label is also logged, with this message."""
    with _counting:  # the thread that saves tables counts too
        _leave_the_parents()
        if message is not None and label not in _counts[name]:
            log().warning("specproof: %s (counted as specproof:%s_total)", message, name)
        _add(name, label, 1)
        _write()


def report(
    counters: Mapping[str, Mapping[str, float]],
    gauges: Mapping[str, float],
    lengths: Mapping[int, int],
) -> None:
    """Add to counters, set this process's gauges, and add to the histogram of draft lengths.

    All of one report is written at once, and nothing of one that is refused.

    Parameters
    ----------
    counters
        ``counters[name][label value]`` is what came since the last report, finite and 0 or more; a
        counter without a label has the one label value "".
    gauges
        ``gauges[name]`` is what holds now.
    lengths
        ``lengths[n]`` is how often n drafts of a request were verified since the last report.

    Raises
    ------
    ValueError
        For a name or a label value that metric_families.py does not have, or an amount below 0.
    """
    _check(counters, gauges, lengths)
    with _counting:
        _leave_the_parents()
        for name, amounts in counters.items():
            for label, amount in amounts.items():
                _add(name, label, float(amount))
        for name, value in gauges.items():
            _set(name, float(value))
        for length, times in lengths.items():
            _observe(int(length), int(times))
        _write()


def _check(
    counters: Mapping[str, Mapping[str, float]],
    gauges: Mapping[str, float],
    lengths: Mapping[int, int],
) -> None:
    for kind, names, known in (("counter", counters, COUNTERS), ("gauge", gauges, GAUGES)):
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"no {kind} is named {unknown[0]!r}; there are {', '.join(known)}")
    for name, amounts in counters.items():
        family = COUNTERS[name]
        allowed = family.values if family.label is not None else ("",)
        for label, amount in amounts.items():
            if allowed and label not in allowed:
                raise ValueError(
                    f"{label!r} is no {family.label or 'label'} of {name}; there are "
                    f"{', '.join(map(repr, allowed))}"
                )
            if not 0 <= amount < math.inf:
                raise ValueError(f"{name} cannot grow by {amount}; give a finite number >= 0")
    for length, times in lengths.items():
        if length < 0 or times < 0:
            raise ValueError(f"lengths has {length}: {times}; give whole numbers >= 0")


def _leave_the_parents() -> None:
    """After a fork: what the parent counted is the parent's."""
    global _pid, _born
    if _pid != os.getpid():
        _pid, _born = os.getpid(), time.time_ns()
        for counter in _counts.values():
            counter.clear()
        _gauges.clear()
        _lengths.clear()


def _add(name: str, label: str, amount: float) -> None:
    counter = _counts[name]
    counter[label] = counter.get(label, 0) + amount
    if PROMETHEUS_FOLDER in os.environ:
        made = _prometheus_counter(name)
        (made if COUNTERS[name].label is None else made.labels(label)).inc(amount)


def _set(name: str, value: float) -> None:
    _gauges[name] = value
    if PROMETHEUS_FOLDER in os.environ:
        _prometheus_gauge(name).labels(str(os.getpid())).set(value)


def _observe(length: int, times: int) -> None:
    _lengths[length] = _lengths.get(length, 0) + times
    if PROMETHEUS_FOLDER in os.environ:
        # observe() takes one value a call, and an engine has thousands a second.
        made = _prometheus_lengths()
        made._buckets[bisect_left(LENGTH_BOUNDS, length)].inc(times)
        made._sum.inc(length * times)


def _write() -> None:
    """Replace this process's file as a whole, so that no reader sees half of it."""
    if PROMETHEUS_FOLDER in os.environ or FOLDER not in os.environ:
        return
    part = Path(os.environ[FOLDER]) / f"{_pid}-{_born}.part"
    try:
        part.write_text(json.dumps([_counts, _gauges, _lengths]))
        part.replace(part.with_suffix(".json"))
    except FileNotFoundError:
        return  # the server that would show it has ended
    except OSError as error:  # a full disk, say, must not end an engine
        _say_not_written(str(error))


@cache
def _say_not_written(error: str) -> None:
    log().warning("specproof: counts are not written for /metrics: %s", error)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _prometheus_counter(name: str) -> Any:
    from prometheus_client import Counter

    return Counter(f"specproof:{name}", COUNTERS[name].text, COUNTERS[name].labels)


@cache
def _prometheus_gauge(name: str) -> Any:
    """A gauge that is shown as long as its process lives, without a second label for that process.

    Prometheus must be told of a process's end, which vLLM does for no engine: so an engine that
    takes the place of another does it.
    """
    from prometheus_client import Gauge

    for file in Path(os.environ[PROMETHEUS_FOLDER]).glob("gauge_livemostrecent_*.db"):
        if not metrics_page.lives(int(file.stem.rpartition("_")[2])):
            file.unlink(missing_ok=True)
    text, labels = GAUGES[name].text, GAUGES[name].labels
    return Gauge(f"specproof:{name}", text, labels, multiprocess_mode="livemostrecent")


@cache
def _prometheus_lengths() -> Any:
    from prometheus_client import Histogram

    return Histogram(f"specproof:{LENGTHS}", LENGTHS_TEXT, buckets=LENGTH_BOUNDS)


def log() -> Any:
    """The plugin's logger, whose lines look like vLLM's."""
    from vllm.logger import init_logger

    return init_logger("vllm.specproof")
