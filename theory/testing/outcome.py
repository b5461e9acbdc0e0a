"""What a check found: each case, the verdict, and the smallest example of the mistake."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from theory.laws import Floats
from theory.testing.cases import Case, show_law
from theory.testing.verifier import Kind

Verdict = Literal["lossless", "refuted", "undecided"]
Method = Literal["exact", "statistical"]


@dataclass(frozen=True)
class Finding:
    """One case.

    tv: total variation between what is emitted (completed by p) and p; exact by integration, or of
    the empirical law over the test's bins, whose own noise it then includes. visible: a TV that
    this test would have refuted with probability 0.99. reached: P(the emitted token is a candidate)
    for a node, tokens a step for a chain; None where the draft noise is integrated too. emitted:
    the law found.
    """

    case: Case = field(repr=False)
    method: Method
    tv: float
    refuted: bool
    visible: float
    samples: int
    reached: float | None
    emitted: Floats = field(repr=False)
    invalid: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "case": self.case.as_dict(),
            "method": self.method,
            "tv": self.tv,
            "refuted": self.refuted,
            "visible_tv": _number(self.visible),
            "samples": self.samples,
            "reached": self.reached,
            "emitted": self.emitted.tolist(),
            "invalid": self.invalid,
        }

    def __str__(self) -> str:
        size, n = self.case.size, self.case.n
        lines = [str(self.case)]
        if self.case.kind == "node":
            lines.append(f"emits {show_law(np.round(self.emitted, 12))}")
        else:
            worst = np.argsort(-np.abs(self.emitted - self.case.expected), kind="stable")[:3]
            for cell in worst:
                if abs(self.emitted[cell] - self.case.expected[cell]) < 1e-9:
                    break
                tokens = [int(cell) // size ** (n - place) % size for place in range(n + 1)]
                lines.append(
                    f"emits {' '.join(map(str, tokens))} with {self.emitted[cell]:.6g} instead of "
                    f"{self.case.expected[cell]:.6g}"
                )
        if self.invalid:
            lines.append(f"emits what is no token with probability {self.invalid:.4g}")
        return "\n".join([*lines, f"TV {self.tv:.6g} ({self.method})"])


@dataclass(frozen=True)
class Report:
    """The outcome of `theory.testing.check_sampler`; `str` is for people, `to_json` for machines.

    findings: every case tested, in order; a refuted sampler's end with the group of cases that
    refuted it. failing: the smallest failing case. shrunk: the same mistake in a simpler case.
    pure: whether the sampler is a function of its arguments. budget: probability that a lossless
    sampler is refuted, over the whole check. visible: the largest `Finding.visible`.
    """

    verdict: Verdict
    name: str
    kind: Kind
    drafts: str
    budget: float
    tolerance: float
    resolution: float
    pure: bool
    findings: tuple[Finding, ...] = field(repr=False)
    failing: Finding | None
    shrunk: Finding | None
    calls: int
    rows: int
    notes: tuple[str, ...] = ()

    @property
    def visible(self) -> float:
        """A TV that would have been refuted, wherever it stood, with probability 0.99."""
        return max((f.visible for f in self.findings), default=float("inf"))

    @property
    def tv(self) -> float:
        """The largest TV found."""
        return max((f.tv for f in self.findings), default=0.0)

    @property
    def reached(self) -> float | None:
        """Mean acceptance (node) or tokens a step (chain) over the cases, where it was measured."""
        known = [f.reached for f in self.findings if f.reached is not None]
        return float(np.mean(known)) if known else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "format": "specproof-check/1",
            "verdict": self.verdict,
            "name": self.name,
            "kind": self.kind,
            "drafts": self.drafts,
            "budget": self.budget,
            "tolerance": self.tolerance,
            "resolution": self.resolution,
            "visible_tv": _number(self.visible),
            "largest_tv": self.tv,
            "reached": self.reached,
            "pure": self.pure,
            "cases": {method: self._count(method) for method in ("exact", "statistical")},
            "failing": None if self.failing is None else self.failing.as_dict(),
            "shrunk": None if self.shrunk is None else self.shrunk.as_dict(),
            "calls": self.calls,
            "rows": self.rows,
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """`as_dict` as one JSON object."""
        return json.dumps(self.as_dict(), allow_nan=False)

    def _count(self, method: Method) -> int:
        return sum(f.method == method for f in self.findings)

    def _methods(self) -> str:
        parts = []
        for method, how in (("exact", "exactly"), ("statistical", "statistically")):
            tvs = [f.tv for f in self.findings if f.method == method]
            noise = ", with its noise" if method == "statistical" else ""
            if tvs:
                parts.append(f"{len(tvs)} {how} (largest TV {max(tvs):.3g}{noise})")
        return ", ".join(parts)

    def __str__(self) -> str:
        head = {
            "lossless": f"{self.name} is lossless in every case that was tested",
            "refuted": f"{self.name} is NOT lossless",
            "undecided": f"{self.name}: undecided",
        }[self.verdict]
        lines = [head]
        if self.failing is not None:
            case = self.failing.case
            lines.append(
                f"  smallest failing case: {case.size} tokens, n = {case.n}, {case.name!r}, "
                f"TV {self.failing.tv:.6g}"
            )
        if self.shrunk is not None:
            lines += ["  shrunk:", *(f"    {line}" for line in str(self.shrunk).splitlines())]
        what = "P(emitted token is a candidate)" if self.kind == "node" else "tokens a step"
        reached = "not measured" if self.reached is None else f"{self.reached:.4f}"
        lines += [
            f"  {self.kind}, drafts {self.drafts}; cases tested: {self._methods()}",
            f"  false-alarm budget {self.budget:g} for all of it; a TV of {self.visible:.3g} "
            f"would be refuted with probability 0.99 (asked for: {self.resolution:g})",
            f"  mean {what}: {reached}; {self.calls} calls, {self.rows} rows",
            *(f"  {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
