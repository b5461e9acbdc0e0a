"""The page's side of the plugin's metrics: what the files of the engine processes say together.

Files of engines that have ended stay, so that no counter ever falls; their gauges are not shown.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from vllm_plugin.metric_families import COUNTERS, GAUGES, LENGTH_BOUNDS, LENGTHS, LENGTHS_TEXT


class Totals(NamedTuple):
    """What the files of a folder hold.

    ``counters[name][label value]`` and ``lengths[n]``, how often n drafts were verified, are over
    all engine processes; ``gauges[name][process id]`` are of those that live.
    """

    counters: dict[str, dict[str, float]]
    gauges: dict[str, dict[str, float]]
    lengths: dict[int, int]


def totals(folder: Path) -> Totals:
    """Read a folder into which engine processes write (metrics.py); one that is gone is empty."""
    found = Totals({name: {} for name in COUNTERS}, {name: {} for name in GAUGES}, {})
    for file in sorted(folder.glob("*.json")):  # of one process id the later process comes last
        counters, gauges, lengths = json.loads(file.read_text())
        for name, amounts in counters.items():
            sums = found.counters[name]
            for label, amount in amounts.items():
                sums[label] = sums.get(label, 0) + amount
        for length, times in lengths.items():
            found.lengths[int(length)] = found.lengths.get(int(length), 0) + times
        engine = file.name.partition("-")[0]
        if gauges and lives(int(engine)):
            for name, value in gauges.items():
                found.gauges[name][engine] = value
    return found


def lives(pid: int) -> bool:
    """Whether a process of this machine (this namespace of process ids) has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def show(folder: Path) -> None:
    """Add the families to this process's page."""
    from prometheus_client import REGISTRY

    collector: Any = _Collector(folder)
    REGISTRY.register(collector)


class _Collector:
    """Reads the folder at each scrape."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def describe(self) -> Iterable[Any]:
        """Nothing: its names are its own."""
        return ()

    def collect(self) -> Iterable[Any]:
        """Every family, each with what was reported of it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        found = totals(self.folder)
        for kind, families, numbers in (
            (CounterMetricFamily, COUNTERS, found.counters),
            (GaugeMetricFamily, GAUGES, found.gauges),
        ):
            for name, known in families.items():
                family = kind(f"specproof:{name}", known.text, labels=known.labels)
                for label, number in sorted(numbers[name].items()):
                    family.add_metric([label] if known.labels else [], number)
                yield family
        yield _histogram(found.lengths)


def _histogram(lengths: dict[int, int]) -> Any:
    from prometheus_client.core import HistogramMetricFamily
    from prometheus_client.utils import floatToGoString

    family = HistogramMetricFamily(f"specproof:{LENGTHS}", LENGTHS_TEXT, labels=())
    if lengths:
        buckets = [
            (floatToGoString(bound), sum(n for length, n in lengths.items() if length <= bound))
            for bound in (*LENGTH_BOUNDS, math.inf)
        ]
        family.add_metric([], buckets, sum(length * n for length, n in lengths.items()))
    return family
