"""`check_sampler`: is a verification rule lossless, shown exactly where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from theory.testing.adversarial import NARROW, groups
from theory.testing.cases import Case
from theory.testing.examiner import Examiner
from theory.testing.outcome import Finding, Report, Verdict
from theory.testing.schemes import Scheme, scheme
from theory.testing.shrink import shrink
from theory.testing.verifier import Kind, Sampler, Verifier


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
        exactly the numbers. The shrunk example stays within both.
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
    sizes = _numbers(vocabulary, "vocabulary", least=2, below=NARROW)
    counts = _numbers(candidates, "candidates", least=1, below=None)
    kind, drafting = _drafting(sampler, kind, drafts)
    _check_options(budget, samples, tolerance, resolution)
    found = list(groups(kind, sizes, counts, drafting, seed))
    if not found:
        raise ValueError(
            f"no law over {max(sizes)} tokens has the {min(counts)} different candidates that "
            f"drafts {drafting.name!r} offers: use a larger vocabulary or fewer candidates"
        )
    examiner = Examiner(
        sampler,
        drafting,
        false_alarm=budget / (2 * sum(len(group) for group in found)),
        samples=samples,
        tolerance=tolerance,
        seed=seed,
    )
    examiner.look(found[0])
    findings: list[Finding] = []
    failing = shrunk = None
    for group in found:
        here = examiner.group(group)
        findings += here
        refuted = [f for f in here if f.refuted]
        if refuted:
            failing = max(refuted, key=lambda f: f.tv)
            shrunk = shrink(
                failing,
                examiner.find,
                allowed=lambda case: case.size >= sizes[0] and case.n >= counts[0],
                attempts=60 if examiner.pure else 12,
            )
            break
    verdict, doubts = _verdict(findings, tolerance, resolution)
    return Report(
        verdict=verdict,
        name=name or str(getattr(sampler, "name", getattr(sampler, "__name__", "the sampler"))),
        kind=kind,
        drafts=drafting.name,
        budget=budget,
        tolerance=tolerance,
        resolution=resolution,
        pure=examiner.pure,
        findings=tuple(findings),
        failing=failing,
        shrunk=shrunk,
        calls=examiner.probe.calls,
        rows=examiner.probe.rows,
        notes=tuple(dict.fromkeys([*examiner.notes, *doubts])),
    )


def examine(
    sampler: Sampler,
    case: Case,
    *,
    budget: float = 1e-9,
    drafts: str | Scheme | None = None,
    seed: int = 0,
    samples: int = 20_000,
    tolerance: float = 1e-5,
) -> Finding:
    """Test a sampler on one case of your own: `Case.node(p, q, k)` or `Case.chain(p, q, K)`.

    Options as in `check_sampler`; the whole budget is spent on this case. Raises ValueError where
    the drafts need more different candidates than q has.
    """
    _, drafting = _drafting(sampler, case.kind, drafts)
    _check_options(budget, samples, tolerance, 1.0)
    examiner = Examiner(
        sampler,
        drafting,
        false_alarm=budget / 2,
        samples=samples,
        tolerance=tolerance,
        seed=seed,
    )
    examiner.look((case,))
    finding = examiner.find(case)
    if finding is None:
        raise ValueError(f"drafts {drafting.name!r} needs a q with {case.n} tokens; see the case")
    return finding


def assert_lossless(sampler: Sampler, **options: Any) -> Report:
    """`check_sampler`, and AssertionError with its report unless the verdict is lossless."""
    report = check_sampler(sampler, **options)
    if report.verdict != "lossless":
        raise AssertionError(str(report))
    return report


def _verdict(
    findings: list[Finding], tolerance: float, resolution: float
) -> tuple[Verdict, list[str]]:
    """The verdict, and what stands in the way of a clear one."""
    if any(f.refuted for f in findings):
        return "refuted", []
    doubts = []
    doubtful = [f.tv for f in findings if f.method == "exact" and f.tv > tolerance]
    if doubtful:
        doubts.append(
            f"a TV of {max(doubtful):.3g} was found, above the tolerance {tolerance:g} but too "
            "small to be certain of with this budget"
        )
    blind = sum(f.visible > resolution for f in findings)
    if blind:
        doubts.append(f"{blind} cases could not see a TV of {resolution:g}: use more samples")
    return ("undecided" if doubts else "lossless"), doubts


def _drafting(
    sampler: Sampler, kind: Kind | None, drafts: str | Scheme | None
) -> tuple[Kind, Scheme]:
    """Kind and scheme: as asked for, else as the verifier says, else a node of iid draws."""
    own = sampler if isinstance(sampler, Verifier) else None
    chosen = kind or (own.kind if own else "node")
    if chosen not in ("node", "chain"):
        raise ValueError(f"kind must be 'node' or 'chain'; got {kind!r}")
    return chosen, scheme(drafts or (own.drafts if own else "iid"))


def _check_options(budget: float, samples: int, tolerance: float, resolution: float) -> None:
    if not 0 < budget < 1 or samples < 1 or not 0 <= tolerance < resolution <= 1:
        raise ValueError(
            "need 0 < budget < 1, samples >= 1 and 0 <= tolerance < resolution <= 1; got "
            f"{budget}, {samples}, {tolerance}, {resolution}"
        )


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


__all__ = ["assert_lossless", "check_sampler", "examine"]
