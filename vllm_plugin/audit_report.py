"""What an audit found: the verdict, what it rests on, and how to show it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from theory.audit_statistics import Deviation, Look, SequentialAudit
from vllm_plugin.audit_target import Drafting

Verdict = Literal["lossless", "refuted", "undecided"]
SMALLEST_SHARE = 0.05  # of tested tokens in steps with drafts; below it "lossless" says nothing


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit; probabilities are of the events that docs/audit.md defines.

    ``false_alarm``: probability with which a right engine is refuted, at most. ``confidence``:
    probability with which ``tv_bound`` holds, at least. ``power``: probability with which an engine
    that deviates by ``resolution`` would have been refuted by now. ``drafted_share``: share of the
    tested tokens that came out of steps that verified a draft. ``limits``: what this audit could
    not decide, one sentence each.
    """

    verdict: Verdict
    reason: str
    target: str
    temperature: float
    false_alarm: float
    log_evidence: float
    resolution: float
    tv_bound: float
    confidence: float
    power: float
    tested_tokens: int
    sequences: int
    undetermined_tokens: int
    drafting: Drafting | None
    drafted_share: float | None
    tolerance: float
    numerical_gap: float | None
    deviations: tuple[Deviation, ...]
    seconds: float
    start_seconds: float
    limits: tuple[str, ...] = ()
    curve: tuple[Look, ...] = field(default=(), repr=False)

    def as_json(self) -> dict[str, Any]:
        """Every field as plain values; infinite evidence becomes a null."""
        return dict(_plain(asdict(self)))

    def to_json(self) -> str:
        """:meth:`as_json` as one line of text."""
        return json.dumps(self.as_json())

    def __str__(self) -> str:
        """A paragraph for a person."""
        worst = self.deviations[0] if self.deviations else None
        lines = [
            f"{self.verdict}: {self.reason}",
            f"  {self.target}, temperature {self.temperature:g}",
            f"  tested {self.tested_tokens:,} tokens of {self.sequences:,} sequences in "
            f"{self.seconds:.0f} s (start: {self.start_seconds:.0f} s)",
            f"  speculation: {self._speculation()}",
            f"  evidence: 10^{self.log_evidence / math.log(10):.1f}, refuted from "
            f"10^{-math.log10(self.false_alarm):.1f} on; a right engine gets there with "
            f"probability {self.false_alarm:g} at most",
            f"  mean deviation of the tested events: below {self.tv_bound:.4f} with confidence "
            f"{self.confidence:.0%} (resolution {self.resolution:g})",
            f"  power: an engine off by {self.resolution:g} would have been refuted by now with "
            f"probability {self.power:.2f}",
            f"  numerical tolerance: {self.tolerance:.2g}"
            + ("" if self.numerical_gap is None else f" (measured gap {self.numerical_gap:.2g})"),
        ]
        if worst is not None and self.verdict == "refuted":
            lines.append(f"  most telling event: {worst.event}, {worst.excess:+.4f} beyond its due")
        return "\n".join([*lines, *(f"  not decided: {limit}" for limit in self.limits)])

    def _speculation(self) -> str:
        if self.drafting is None:
            return "the engine shows no counters"
        found = self.drafting
        rate = f" ({found.accepted / found.drafted:.0%})" if found.drafted else ""
        share = f"; {self.drafted_share:.0%} of the tested tokens" if self.drafted_share else ""
        return f"{found.drafted:,} drafted, {found.accepted:,} accepted{rate}{share}"


def conclude(
    statistics: SequentialAudit,
    name: str,
    temperature: float,
    sequences: int,
    positions: int,
    drafting: Drafting | None,
    gap: float | None,
    seconds: float,
    start_seconds: float,
) -> AuditReport:
    """The report of an audit that ended with these statistics; ``positions`` were sampled."""
    share = None
    if drafting is not None:
        share = min(1.0, (drafting.drafts + drafting.accepted) / max(positions, 1))
    verdict, reason = _verdict(statistics, drafting, share)
    return AuditReport(
        verdict=verdict,
        reason=reason,
        target=name,
        temperature=temperature,
        false_alarm=statistics.budget,
        log_evidence=statistics.log_evidence,
        resolution=statistics.resolution,
        tv_bound=statistics.tv_bound,
        confidence=1 - statistics.miss,
        power=statistics.power(statistics.resolution),
        tested_tokens=statistics.tested,
        sequences=sequences,
        undetermined_tokens=statistics.undetermined,
        drafting=drafting,
        drafted_share=share,
        tolerance=statistics.tolerance,
        numerical_gap=gap,
        deviations=tuple(statistics.deviations()),
        seconds=seconds,
        start_seconds=start_seconds,
        limits=_limits(statistics, drafting),
        curve=tuple(statistics.curve),
    )


def _verdict(
    statistics: SequentialAudit, drafting: Drafting | None, share: float | None
) -> tuple[Verdict, str]:
    if statistics.refuted:
        return "refuted", "the sampled tokens do not follow the laws that the engine itself reports"
    if not statistics.tested:
        return "undecided", "no law was determined well enough to test a token against it"
    if drafting is None or share is None:
        return "undecided", "the engine shows no counters, so nobody knows whether it drafted"
    if not drafting.drafted:
        return "undecided", "not one draft was verified, so speculation was not tested"
    if share < SMALLEST_SHARE:
        return (
            "undecided",
            f"only {share:.1%} of the tested tokens came out of steps that verified a draft",
        )
    if statistics.cleared:
        return (
            "lossless",
            f"no tested event deviates by {statistics.resolution:g} or more on average "
            f"(confidence {1 - statistics.miss:.0%}), and nothing was refuted",
        )
    return "undecided", "the time ran out before the bound fell below the resolution"


def _limits(statistics: SequentialAudit, drafting: Drafting | None) -> tuple[str, ...]:
    limits = []
    if statistics.undetermined:
        limits.append(
            f"{statistics.undetermined:,} tokens whose law is not determined by the log "
            "probabilities that the engine gives: allow more of them (max_logprobs), or audit at "
            "temperature 1"
        )
    if drafting is None:
        limits.append(
            "whether anything was drafted: start vLLM with its statistics on "
            "(disable_log_stats=False)"
        )
    return tuple(limits)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def draw(path: Path, report: AuditReport) -> None:
    """Evidence against tested tokens with its threshold, and the bound with the resolution.

    Raises ImportError without matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tested = [look.tested for look in report.curve]
    ten = math.log(10)
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(8, 6), sharex=True, layout="constrained"
    )
    above.plot(tested, [look.log_evidence / ten for look in report.curve], marker=".")
    threshold = -math.log10(report.false_alarm)
    above.axhline(threshold, color="C3", linestyle="--", label=f"refuted: 10^{threshold:.1f}")
    above.set(ylabel="log10 evidence", title=f"specproof audit: {report.verdict}")
    above.legend(fontsize="small")
    below.plot(tested, [look.tv_bound for look in report.curve], marker=".", color="C2")
    label = f"resolution {report.resolution:g}"
    below.axhline(report.resolution, color="grey", linestyle=":", label=label)
    below.set(xlabel="tested tokens", ylabel="bound on the deviation")
    below.set_ylim(bottom=0.0)
    below.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
