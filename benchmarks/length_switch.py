"""Inside the engine's worker: which policy decides on draft lengths, and what it came to.

Functions for ``LLM.collective_rpc``; :mod:`length_engine` calls them. A policy keeps what it has
learned while others have their turn.
"""

from __future__ import annotations

from typing import Any

from vllm_plugin.local_engine import runner_of


def switch(worker: Any, name: str, made: dict[str, Any]) -> None:
    """Let a policy decide from now on; ``made`` says how it is made the first time."""
    from proposers.length import baselines, policy
    from proposers.length.never_slower import NeverSlower
    from proposers.length.predictor import AcceptancePredictor
    from proposers.length.step_times import StepTimes
    from proposers.length.threshold import Threshold
    from vllm_plugin.length_control import LengthControl

    runner = runner_of(worker)
    adapter = runner.drafter.adapter
    controls = runner.__dict__.setdefault("specproof_controls", {})
    if name not in controls:
        times = StepTimes()
        kinds: dict[str, Any] = {
            "Fixed": policy.Fixed,
            "Refusal": policy.Refusal,
            "Confidence": baselines.Confidence,
            "EntropyBound": baselines.EntropyBound,
            "MovingAverage": baselines.MovingAverage,
            "BatchTable": baselines.BatchTable,
            "NeverSlower": lambda: NeverSlower(Threshold(times), times),
        }
        controls[name] = LengthControl(
            kinds[made["kind"]](*made.get("words", ()), **made.get("named", {})),
            adapter.draft_length,
            predictor=AcceptancePredictor(),
            step_times=times,
        )
    adapter.control = controls[name]
    adapter.drafter.min_survival = made.get("min_survival", 0.0)


def sums(worker: Any) -> dict[str, Any]:
    """What the present policy came to since it was last asked."""
    runner = runner_of(worker)
    control = runner.drafter.adapter.control
    report = control.report
    with report.lock:
        tally = report.tally
        found = {
            "accepted": tally.accepted,
            "drafted": tally.accepted + tally.wasted,
            "emitted": tally.emitted,
            "steps": float(tally.chosen.sum()),
            "stops": tally.stops.tolist(),
            "chosen": tally.chosen.tolist(),
            "predicted": tally.predicted.tolist(),
            "realised": tally.realised.tolist(),
            "judged": tally.judged.tolist(),
            "state": getattr(control.policy, "state", "on"),
            "seconds": control.step_times.seconds([1, 2, 4, 8, 16, 32, 64]).tolist(),
        }
        tally.clear()
    return found


def keep_sums(worker: Any) -> None:
    """Let nobody else clear the sums: metrics are not asked for here."""
    from vllm_plugin.length_report import LengthReport

    LengthReport.send = lambda report: None  # type: ignore[method-assign]
