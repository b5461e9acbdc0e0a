"""Decisions about draft lengths on the server's ``/metrics``, once a second (docs/metrics.md)."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import numpy as np

from proposers.length.never_slower import NeverSlower
from proposers.length.tally import STOPS, Tally
from proposers.length.threshold import Threshold
from vllm_plugin import metrics
from vllm_plugin.metric_families import DECILES

EVERY = 1.0  # seconds


class LengthReport:
    """Passes a tally on to :mod:`vllm_plugin.metrics` every second in which something came in.

    In a thread of its own: after a step there may be no other for a while. ``lock`` is held by
    whoever touches the tally.
    """

    def __init__(self, tally: Tally) -> None:
        self.tally, self.lock = tally, threading.Lock()
        self._policy: Any = None
        self._requests = 0
        self._seconds = {"on": 0.0, "off": 0.0, "trial": 0.0}
        self._steps = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to pass on."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="specproof-report", daemon=True)
            self._thread.start()

    def step(self, policy: Any, requests: int, seconds: float) -> None:
        """A step of so many requests took ``seconds``, nan if that is not known."""
        with self.lock:
            self._policy, self._requests = policy, requests
            self._steps += 1
            if not math.isnan(seconds):
                state = policy.state if isinstance(policy, NeverSlower) else "on"
                self._seconds[state] += seconds

    def send(self) -> None:
        """Pass on what came in, and clear it."""
        with self.lock:
            if not self._steps:
                return
            tally, policy = self.tally, self._policy
            counters: dict[str, dict[str, float]] = {
                "length_stops": _named(STOPS, tally.stops),
                "draft_tokens": {"accepted": tally.accepted, "wasted": tally.wasted},
                "emitted_tokens": {"": tally.emitted},
                "predicted_acceptances": _named(DECILES, tally.predicted),
                "realised_acceptances": _named(DECILES, tally.realised),
                "judged_drafts": _named(DECILES, tally.judged),
                "length_seconds": dict(self._seconds),
            }
            timed = sum(self._seconds.values())
            gauges: dict[str, float] = {}
            if timed > 0.5 * EVERY:  # else there was little to do
                gauges["tokens_per_second"] = tally.emitted / EVERY
            threshold = policy.inner if isinstance(policy, NeverSlower) else policy
            if isinstance(threshold, Threshold) and self._requests:
                gauges["length_threshold"] = min(threshold.floor(self._requests), 1.0)
                gauges["achieved_speedup"] = threshold.speedup(self._requests)
            lengths = {n: int(tally.chosen[n]) for n in np.flatnonzero(tally.chosen).tolist()}
            tally.clear()
            self._seconds = dict.fromkeys(self._seconds, 0.0)
            self._steps = 0
        metrics.report(counters, gauges, lengths)

    def _run(self) -> None:
        while True:
            time.sleep(EVERY)
            try:
                self.send()
            except Exception:  # what is watched must not depend on who watches
                metrics.log().exception("specproof: a report about draft lengths failed")
                return


def _named(names: tuple[str, ...], values: Any) -> dict[str, float]:
    return {name: value for name, value in zip(names, values.tolist(), strict=True) if value}
