"""One family of cases tested: exactly where its rows can be integrated, else statistically."""

from __future__ import annotations

import numpy as np

from theory.equivalence import Alternative, FitPlan, plan_fit
from theory.laws import Floats
from theory.testing.boxes import Boxes, NotBoxes, integrate
from theory.testing.cases import Case
from theory.testing.family import Family
from theory.testing.outcome import Finding
from theory.testing.probe import Probe, Rows
from theory.testing.schemes import Scheme
from theory.testing.verifier import Sampler

MAX_BOXES = 1 << 14
"""Boxes (tuples of candidates times tokens, at least) above which cases are not integrated."""
POINTS = 4096
"""Random points of a case at which its integration is tested."""
MAX_POINTS = 1 << 21
MAX_BINS = 64
POWER = 0.99


class Examiner:
    """Tests cases of one sampler; each spends `false_alarm` on either method."""

    def __init__(
        self,
        sampler: Sampler,
        drafts: Scheme,
        *,
        false_alarm: float,
        samples: int,
        tolerance: float,
        seed: int,
    ) -> None:
        self.probe = Probe(sampler, drafts)
        self.false_alarm, self.samples, self.tolerance = false_alarm, samples, tolerance
        self.rng = np.random.default_rng([seed, 0x5BEC])
        self.pure = True
        self.notes: list[str] = []

    def look(self, cases: tuple[Case, ...]) -> None:
        """Find out, on some cases, whether the sampler is a function of its arguments."""
        self.pure = self.probe.is_pure(Family.of(cases), self.rng)
        if not self.pure:
            self.notes.append(
                "the sampler is no function of its arguments (it has randomness of its own), so "
                "nothing can be integrated"
            )

    def find(self, case: Case) -> Finding | None:
        """The finding for one case alone, or None if its drafts cannot be drawn."""
        if self.probe.scheme.distinct and np.count_nonzero(case.q[0][0]) < case.n:
            return None
        return self.group((case,))[0]

    def group(self, cases: tuple[Case, ...]) -> list[Finding]:
        """The findings for cases of one kind, size and n."""
        family = Family.of(cases)
        boxes_needed = family.first.size ** (family.first.n + 1) * len(cases)
        if self.pure and boxes_needed <= MAX_BOXES:
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
        extra = np.zeros((0, 2, rows.axes))
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
                refuted = clean and bool(tv - self.tolerance > -np.log(self.false_alarm) / points)
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
        refuted = invalid > 0 or bool(plan.evaluate(seen).rejected)
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
    impossible = float(1 - (1 - POWER) ** (1 / plan.n))
    if plan.degrees_of_freedom == 0:
        return impossible
    names: tuple[Alternative, ...] = ("half", "largest")
    tv: float = max(1e-4, impossible)
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
