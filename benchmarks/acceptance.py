"""Is predicted acceptance calibrated? And the fit of the prior that it starts from.

    python benchmarks/acceptance.py --traces T07.npz T1.npz [--json OUT] [--print-weights]

A STAND drafter is walked along every trace, one answer after the other and 16 side by side. The
prior is fitted on half of the prompts and judged on the other half, and the other way round: alone,
and learning online as the engine would (each step's predictions come before its labels). Expected
calibration error: 15 groups of as many places, |sum of predictions - labels| over all. Labels are
soft, min(1, q/p) of what was emitted, and a place counts by the chance that it is reached. At
T = 0, which a sampled trace shows as well, the label is whether the two argmaxes agree.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from proposers.length.predictor import AcceptancePredictor
from proposers.length.prior import SIZE, design
from proposers.replay import make_drafter
from proposers.replay.courses import Courses, draw_courses, greedy_places
from theory.trace_file import read
from theory.traces import Trace

K = 8
TOGETHER = (1, 16)


def basis(features: np.ndarray) -> np.ndarray:
    """The design matrix of places, (N, F) -> (N, SIZE)."""
    out = np.zeros((features.shape[0], SIZE))
    design(features, out)
    return out


def fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """Weighted logistic regression on soft labels, with a small ridge."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w
        value = weights @ (np.logaddexp(0.0, z) - y * z) + 0.5 * ridge * w @ w
        return float(value), x.T @ (weights * (1 / (1 + np.exp(-z)) - y)) + ridge * w

    return minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x


def calibration_error(p: np.ndarray, y: np.ndarray, groups: int = 15) -> float:
    """Groups of equally many places by prediction; see the module."""
    parts = np.array_split(np.argsort(p, kind="stable"), groups)
    return float(sum(abs((p[part] - y[part]).sum()) for part in parts) / p.size)


def area(p: np.ndarray, y: np.ndarray) -> float:
    """P(an accepted place was predicted above a refused one), ties half; soft labels."""
    _, at = np.unique(p, return_inverse=True)
    yes, no = np.bincount(at, y), np.bincount(at, 1 - y)
    return float(yes @ (np.cumsum(no) - no / 2) / (yes.sum() * no.sum()))


def fitted_places(trace: Trace, walked: Courses, half: int | None) -> tuple[np.ndarray, ...]:
    """Features, labels and chances to be reached, of every depth; ``half`` None takes all."""
    labels = walked.labels[:, :K]
    reach = np.ones_like(labels)
    reach[:, 1:] = np.cumprod(np.nan_to_num(labels), axis=1)[:, :-1]
    known = ~np.isnan(labels)
    if half is not None:
        answers = np.repeat(np.arange(trace.answers), np.diff(trace.answer_begins))
        known &= (trace.answer_prompts[answers] % 2 == half)[:, None]
    return walked.shown[:, :K][known], labels[known], reach[known]


def stream(trace: Trace, walked: Courses, half: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(features, labels) of the emitted places, step by step, with K drafts in each."""
    found = []
    for answer in np.argsort(trace.answer_prompts, kind="stable"):
        if trace.answer_prompts[answer] % 2 != half:
            continue
        t, end = trace.answer_begins[answer] + 1, trace.answer_begins[answer + 1]
        while t < end:
            emitted = min(int(walked.agreed[t]), K) + 1
            here = slice(0, min(emitted, K))
            found.append((walked.shown[t, here], walked.labels[t, here]))
            t += emitted
    return found


def judge(predictor: AcceptancePredictor, steps: Any, learning: bool) -> dict[str, float]:
    """Errors of one predictor over a stream."""
    predicted, labels = [], []
    for features, label in steps:
        predicted.append(predictor.predict(features[None])[0])
        labels.append(label)
        if learning:
            predictor.learn(features, label)
    p, y = np.concatenate(predicted), np.concatenate(labels)
    known = ~np.isnan(y)
    p, y = p[known], y[known]
    return {
        "calibration_error": calibration_error(p, y), "auc": area(p, y),
        "predicted": float(p.mean()), "accepted": float(y.mean()), "places": int(p.size),
    }  # fmt: skip


def main() -> None:
    """Walk, fit, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--traces", nargs="+", required=True, type=Path)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--print-weights", action="store_true", help="the fit on all prompts")
    given = parser.parse_args()
    walks = []
    for path in given.traces:
        trace = read(path)
        make = make_drafter(
            "stand", {"min_survival": 0.0}, draft_length=K,
            tokens=len(trace) + 4 * trace.prompt_tokens.size,
        )  # fmt: skip
        for together in TOGETHER:
            walked = draw_courses(trace, make, draft_length=K, together=together)
            walks.append((path.stem, together, trace, walked))
            greedy = greedy_places(trace, make, draft_length=K, together=together)
            walks.append((path.stem + " T=0", together, trace, greedy))

    def fit_on(half: int | None) -> np.ndarray:
        parts = [fitted_places(trace, walked, half) for _, _, trace, walked in walks]
        features, labels, reach = (np.concatenate(part) for part in zip(*parts, strict=True))
        return fit(basis(features), labels, reach)

    rows = []
    for half in (0, 1):
        weights = fit_on(1 - half)
        for name, together, trace, walked in walks:
            steps = stream(trace, walked, half)
            for learning in (False, True):
                made = AcceptancePredictor(weights)
                rows.append(
                    {"trace": name, "together": together, "half": half, "online": learning}
                    | judge(made, steps, learning)
                )
    table = Table("trace", "side by side", "half", "online", "ECE", "AUC", "predicted", "accepted")
    for row in rows:
        table.add_row(
            row["trace"], str(row["together"]), str(row["half"]), "yes" if row["online"] else "no",
            f"{row['calibration_error']:.4f}", f"{row['auc']:.3f}", f"{row['predicted']:.3f}",
            f"{row['accepted']:.3f}",
        )  # fmt: skip
    Console(highlight=False).print(table)
    if given.print_weights:
        print(np.array2string(fit_on(None), precision=3, separator=", ", suppress_small=True))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
