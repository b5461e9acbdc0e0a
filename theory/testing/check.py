"""`check_sampler`: is a verification rule lossless, shown exactly where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from theory.equivalence import Alternative, FitPlan, plan_fit
from theory.laws import Floats
from theory.testing.adversarial import NARROW, groups
from theory.testing.boxes import Boxes, NotBoxes, integrate
from theory.testing.cases import Case, Family
from theory.testing.outcome import Finding, Report, Verdict
from theory.testing.probe import Probe, Rows
from theory.testing.schemes import Scheme, scheme
from theory.testing.shrink import shrink
from theory.testing.verifier import Kind, Sampler, Verifier

MAX_ROWS = 2048
"""Tuples of candidates of a group of cases above which it is tested statistically."""
POINTS = 4096
"""Random points of a case at which its integration is tested."""
MAX_POINTS = 1 << 21
MAX_BINS = 64
POWER = 0.99


def check_sampler(
    sampler: Sampler,
    *,
    vocabulary: int | Sequence[int],
    candidates: int | Sequence[int],
    budget: float = 1e-9,
    kind: Kind | None = None,
    drafts: str | Scheme | None = None,
    seed: int = 0,
    samples: int = 20_000,
    tolerance: float = 1e-5,
    resolution: float = 0.05,
    name: str | None = None,
) -> Report:
    """Drive a sampler through adversarial laws and compare what it emits with p.

    Parameters
    ----------
    sampler : (p, q, candidates, uniforms) -> tokens, batched; see `theory.testing.Sampler`. A
        `Verifier` brings its own kind, drafts and name.
    vocabulary : number of tokens; 2, 3 and 4 are tested too. A sequence gives exactly the sizes.
    candidates : candidates of a node, or drafts of a chain: 1, 2, ... up to this. A sequence gives
        exactly the numbers.
    budget : probability that a lossless sampler is refuted, over the whole check.
    kind : "node" (default) or "chain".
    drafts : "iid" (default), "without_replacement", "top_plus_one" or a `Scheme`.
    seed : of the laws and of the random points. The same check gives the same report.
    samples : rows of a case that is tested statistically.
    tolerance : TV that is forgiven, for rounding; 1e-5 is enough for float32.
    resolution : a sampler is called lossless only if this TV would have been refuted, wherever it
        stood, with probability 0.99; otherwise undecided.

    A sampler that is a function of its arguments is integrated exactly over all candidates and
    uniforms (`theory.testing.boxes`); its output is taken to be constant on boxes only after that
    was tested at random points, and a refutation needs as many of them as its TV asks for. All
    other samplers, and cases too large to enumerate, are tested by `theory.equivalence`. Every case
    spends an equal part of the budget, half on each.

    Raises ValueError for options that make no sense, and for tokens of another shape or type.
    """
    plan = _Check(
        sampler,
        _numbers(vocabulary, "vocabulary", least=2, below=NARROW),
        _numbers(candidates, "candidates", least=1, below=None),
        budget=budget,
        kind=kind or (sampler.kind if isinstance(sampler, Verifier) else "node"),
        drafts=scheme(drafts or (sampler.drafts if isinstance(sampler, Verifier) else "iid")),
        seed=seed,
        samples=samples,
        tolerance=tolerance,
        resolution=resolution,
        name=name or str(getattr(sampler, "name", getattr(sampler, "__name__", "the sampler"))),
    )
    return plan.run()


def assert_lossless(sampler: Sampler, **options: Any) -> Report:
    """`check_sampler`, and AssertionError with its report unless the verdict is lossless."""
    report = check_sampler(sampler, **options)
    if report.verdict != "lossless":
        raise AssertionError(str(report))
    return report


class _Check:
    def __init__(
        self,
        sampler: Sampler,
        sizes: list[int],
        counts: list[int],
        *,
        budget: float,
        kind: Kind,
        drafts: Scheme,
        seed: int,
        samples: int,
        tolerance: float,
        resolution: float,
        name: str,
    ) -> None:
        if kind not in ("node", "chain"):
            raise ValueError(f"kind must be 'node' or 'chain'; got {kind!r}")
        if not 0 < budget < 1 or samples < 1 or not 0 <= tolerance < resolution <= 1:
            raise ValueError(
                "need 0 < budget < 1, samples >= 1 and 0 <= tolerance < resolution <= 1; got "
                f"{budget}, {samples}, {tolerance}, {resolution}"
            )
        self.probe = Probe(sampler, drafts)
        self.kind, self.budget, self.samples = kind, budget, samples
        self.tolerance, self.resolution, self.name = tolerance, resolution, name
        self.rng = np.random.default_rng([seed, 0x5BEC])
        self.groups = list(groups(kind, sizes, counts, drafts, seed))
        if not self.groups:
            raise ValueError(
                f"no law over {max(sizes)} tokens has the {min(counts)} different candidates that "
                f"drafts {drafts.name!r} offers: use a larger vocabulary or fewer candidates"
            )
        tests = sum(len(group) for group in self.groups)
        self.false_alarm = budget / (2 * tests)
        self.pure = True
        self.notes: list[str] = []

    def run(self) -> Report:
        self.pure = self.probe.is_pure(Family.of(self.groups[0]), self.rng)
        if not self.pure:
            self.notes.append(
                "the sampler is no function of its arguments (it has randomness of its own), so "
                "nothing can be integrated"
            )
        findings: list[Finding] = []
        failing = shrunk = None
        for group in self.groups:
            found = self._group(group)
            findings += found
            refuted = [f for f in found if f.refuted]
            if refuted:
                failing = max(refuted, key=lambda f: f.tv)
                shrunk = shrink(failing, self._find, attempts=60 if self.pure else 12)
                break
        return Report(
            verdict=self._verdict(findings),
            name=self.name,
            kind=self.kind,
            drafts=self.probe.scheme.name,
            budget=self.budget,
            tolerance=self.tolerance,
            resolution=self.resolution,
            pure=self.pure,
            findings=tuple(findings),
            failing=failing,
            shrunk=shrunk,
            calls=self.probe.calls,
            rows=self.probe.rows,
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _verdict(self, findings: list[Finding]) -> Verdict:
        if any(f.refuted for f in findings):
            return "refuted"
        doubtful = [f for f in findings if f.method == "exact" and f.tv > self.tolerance]
        if doubtful:
            self.notes.append(
                f"a TV of {max(f.tv for f in doubtful):.3g} was found, too small to be certain of "
                f"with this budget; tolerance {self.tolerance:g}"
            )
        blind = [f for f in findings if f.visible > self.resolution]
        if blind:
            self.notes.append(
                f"{len(blind)} cases could not see a TV of {self.resolution:g}: use more samples"
            )
        return "undecided" if doubtful or blind else "lossless"

    def _find(self, case: Case) -> Finding | None:
        """The finding for one case alone, or None if its drafts cannot be drawn."""
        if self.probe.scheme.distinct and np.count_nonzero(case.q[0][0]) < case.n:
            return None
        return self._group((case,))[0]

    def _group(self, cases: tuple[Case, ...]) -> list[Finding]:
        family = Family.of(cases)
        if self.pure and family.first.size**family.first.n * len(cases) <= MAX_ROWS:
            rows = Rows(self.probe, family)
            boxes = self._boxes(rows)
            if boxes is not None:
                return self._exact(rows, boxes)
            self.notes.append(
                f"{cases[0].size} tokens, n = {cases[0].n}: the output is not constant on boxes of "
                "the uniforms, so the cases were tested statistically"
            )
        return [self._statistical(family, case) for case in range(len(cases))]

    def _boxes(self, rows: Rows) -> Boxes | None:
        extra = np.zeros((0, rows.axes))
        for _ in range(4):
            try:
                boxes = integrate(rows.evaluate, rows.owner.size, rows.axes, self.rng, extra=extra)
            except NotBoxes:
                return None
            wrong = np.concatenate(
                [
                    self._agreement(rows, boxes, case, POINTS)
                    for case in range(len(rows.family.cases))
                ]
            )
            if not wrong.size:
                return boxes
            extra = np.concatenate([extra, wrong[:8]])
        return None

    def _agreement(self, rows: Rows, boxes: Boxes, case: int, points: int) -> Floats:
        mine = np.flatnonzero(rows.owner == case)
        chance = rows.chance[mine] / rows.chance[mine].sum()
        chosen = mine[np.searchsorted(np.cumsum(chance)[:-1], self.rng.random(points), "right")]
        return boxes.agreement(rows.evaluate, chosen, self.rng)

    def _exact(self, rows: Rows, boxes: Boxes) -> list[Finding]:
        mass = boxes.mass * rows.chance[boxes.rows]
        reached = rows.reached(boxes.rows, boxes.codes)
        found = []
        for case, law in enumerate(rows.family.cases):
            mine = rows.owner[boxes.rows] == case
            emitted, invalid = rows.family.completed(case, boxes.codes[mine], mass[mine])
            tv = 0.5 * (float(np.abs(emitted - law.expected).sum()) + invalid)
            points, refuted = POINTS, False
            if tv > self.tolerance:
                need = 2 * -np.log(self.false_alarm) / (tv - self.tolerance)
                points = int(min(MAX_POINTS, max(POINTS, np.ceil(need))))
                clean = self._agreement(rows, boxes, case, points).size == 0
                refuted = clean and tv - self.tolerance > -np.log(self.false_alarm) / points
            found.append(
                Finding(
                    case=law,
                    method="exact",
                    tv=tv,
                    refuted=refuted,
                    visible=self.tolerance - float(np.log(1 - POWER)) / points,
                    samples=points,
                    reached=None if reached is None else float(mass[mine] @ reached[mine]),
                    emitted=emitted,
                    invalid=invalid,
                )
            )
        return found

    def _statistical(self, family: Family, case: int) -> Finding:
        law = family.cases[case].expected
        cells, reached = self.probe.sample(family, case, self.samples, self.rng)
        valid = cells >= 0
        seen = np.bincount(cells[valid], minlength=law.size)
        plan = plan_fit(
            law,
            self.samples,
            false_alarm=self.false_alarm,
            min_expected=max(5.0, self.samples / MAX_BINS),
        )
        invalid = float(1 - valid.mean())
        refuted = invalid > 0 or plan.evaluate(seen).rejected
        emitted = seen / self.samples
        inside = plan.labels >= 0
        bins = np.bincount(plan.labels[inside], emitted[inside], plan.law.size)
        gap = float(np.abs(bins - plan.law).sum()) + float(emitted[~inside].sum()) + invalid
        return Finding(
            case=family.cases[case],
            method="statistical",
            tv=0.5 * gap,
            refuted=refuted,
            visible=visible_tv(plan),
            samples=self.samples,
            reached=reached,
            emitted=emitted,
            invalid=invalid,
        )


def visible_tv(plan: FitPlan) -> float:
    """The TV of the bins, to 5 %, that a plan rejects with probability `POWER`; inf if none.

    Against the alternative "half", the least visible one of `theory.equivalence`, or "largest"
    where that does not exist; by the chi-square approximation. One bin rejects what is impossible
    under the law, seen at least once in n.
    """
    impossible = 1 - (1 - POWER) ** (1 / plan.n)
    if plan.degrees_of_freedom == 0:
        return impossible
    names: tuple[Alternative, ...] = ("half", "largest")
    tv = max(1e-4, impossible)
    while tv < 1:
        for alternative in names:
            try:
                power = plan.power(tv, alternative, simulations=0)
            except ValueError:
                continue
            if power >= POWER:
                return tv
            break
        tv *= 1.05
    return float("inf")


def _numbers(
    given: int | Sequence[int], name: str, *, least: int, below: tuple[int, ...] | None
) -> list[int]:
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        smaller = range(least, int(given)) if below is None else below
        numbers = sorted({*(n for n in smaller if n < given), int(given)})
    else:
        numbers = sorted({int(n) for n in given}) if isinstance(given, Sequence) else []
    if not numbers or numbers[0] < least:
        raise ValueError(f"{name} must be an integer >= {least}, or some of them; got {given!r}")
    return numbers


__all__ = ["assert_lossless", "check_sampler"]
