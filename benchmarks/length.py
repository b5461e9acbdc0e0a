"""How many tokens to verify? Every length policy on the same recorded answers, without an engine.

    python benchmarks/length.py --trace T07.npz [--concurrency 1,4,16,32] [--times line:31,2] \\
        [--json OUT] [--plot OUT.png]

All policies cut the same drawn chains of STAND (proposers/replay/courses.py), so differences are
paired by prompt: in tokens/s to the best fixed K, which is searched on the same answers, K = 0
(plain decoding) included. The baselines get what hindsight can give them: of every setting on
their grids the one that is best here. The threshold policy has no setting. `--times` is what a
step takes: `design` (DESIGN.md's table), `line:A,B` (A ms, and B ms for every token but the first)
or a JSON file [[tokens, seconds], ...].

`equal` answers another question: of the tokens that a fixed K drafts, how many are needed for the
same block efficiency if a token is verified while 1 - a_1...a_i < h, h found by bisection.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arguments import BriefParser, at_least, numbers
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from proposers.length.baselines import Confidence, EntropyBound, MovingAverage
from proposers.length.never_slower import NeverSlower
from proposers.length.policy import Fixed, LengthPolicy, Refusal, StepTimes
from proposers.length.threshold import Threshold
from proposers.replay import make_drafter
from proposers.replay.courses import Courses, draw_courses
from proposers.replay.lengths import GivenTimes, LengthScore, simulate_lengths
from theory.cluster_ratio import difference_interval
from theory.trace_file import TraceError, read
from theory.traces import Trace
from vllm_plugin.provenance import provenance

_CONSOLE = Console(highlight=False, width=int(os.environ.get("COLUMNS", "120")))
Maker = Callable[[], LengthPolicy]
FIXED = (0, 1, 2, 3, 4, 5, 6, 8)
# DESIGN.md's decode steps of SmolLM2-135M on two CPU cores, at 1 and at 4 requests.
ONE_REQUEST_TIMES = GivenTimes([1, 5, 10, 20, 36], [0.013, 0.016, 0.0185, 0.024, 0.031])
SEVERAL_REQUESTS_TIMES = GivenTimes([4, 20, 40, 80, 144], [0.015, 0.023, 0.035, 0.053, 0.083])


@dataclass(frozen=True)
class Line:
    """The best setting of one policy at one concurrency."""

    concurrency: int
    policy: str
    setting: str
    score: LengthScore

    def as_json(self, base: LengthScore) -> dict[str, Any]:
        """Everything, with the paired difference to a base."""
        gain = difference_interval(
            (base.tokens, base.seconds), (self.score.tokens, self.score.seconds)
        )
        return {
            "concurrency": self.concurrency, "policy": self.policy, "setting": self.setting,
            "tokens_per_second": self.score.tokens_per_second,
            "ratio_to_best_fixed": self.score.tokens_per_second / base.tokens_per_second,
            "difference_to_best_fixed": gain.as_dict(),
            "block_efficiency": self.score.block_efficiency,
            "drafted_per_token": self.score.drafted_per_token,
            "wasted_per_token": self.score.wasted_per_token,
        }  # fmt: skip


def given_times(text: str, concurrency: int) -> StepTimes:
    """The step times that ``--times`` names."""
    if text == "design":
        return ONE_REQUEST_TIMES if concurrency == 1 else SEVERAL_REQUESTS_TIMES
    if text.startswith("line:"):
        base, more = (float(part) / 1000 for part in text[5:].split(","))
        return GivenTimes([1, 2], [base, base + more])
    points = json.loads(Path(text).read_text())
    return GivenTimes([n for n, _ in points], [s for _, s in points])


def families(times: StepTimes, longest: int) -> Iterator[tuple[str, str, Maker]]:
    """(policy, setting, a fresh instance) of everything but fixed K and the batch table."""
    for h in (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95):
        yield "SpecDec++ h", f"h={h}", lambda h=h: Refusal(h)
    for c in (0.3, 0.4, 0.6, 0.8, 0.9):
        yield "HF confidence", f"c={c}", lambda c=c: Confidence(c)
        yield "HF conf.+heuristic", f"c={c}, start 5", lambda c=c: Confidence(c, 5)
    for gamma in (0.1, 0.3, 0.8):
        for least in (0.3, 0.5, 0.8):
            yield (
                "AdaEDL", f"gamma={gamma}, least={least}",
                lambda gamma=gamma, least=least: EntropyBound(gamma, least),
            )  # fmt: skip
        yield (
            "AdaEDL moving", f"gamma={gamma}, target .5",
            lambda gamma=gamma: EntropyBound(gamma, 0.4, target=0.5),
        )  # fmt: skip
    for most in (2, longest):
        for slack in (0, 1, 2):
            yield (
                "DiffuSpec average", f"<={most}, slack {slack}",
                lambda most=most, slack=slack: MovingAverage(0 if slack else 1, most, slack=slack),
            )  # fmt: skip
    yield "threshold", "", lambda: Threshold(times)
    yield "threshold, guarded", "", lambda: NeverSlower(Threshold(times), times)


def compare(
    trace: Trace, courses: Courses, times: StepTimes, concurrency: int, overhead: float
) -> tuple[list[Line], dict[int, LengthScore]]:
    """The best of every policy, in the order of their names here; fixed K first."""

    def run(policy: LengthPolicy) -> LengthScore:
        return simulate_lengths(trace, courses, policy, times, overhead=overhead)

    fixed = {k: run(Fixed(k)) for k in FIXED if k <= courses.draft_length}
    best = max(fixed, key=lambda k: fixed[k].tokens_per_second)
    drafting = max((k for k in fixed if k), key=lambda k: fixed[k].tokens_per_second)
    lines = [
        Line(concurrency, "plain", "", fixed[0]),
        Line(concurrency, "fixed, best", f"K={best}", fixed[best]),
        Line(concurrency, "fixed, best K>0", f"K={drafting}", fixed[drafting]),
    ]
    found: dict[str, Line] = {}
    for name, setting, make in families(times, courses.draft_length):
        made = Line(concurrency, name, setting, run(make()))
        held = found.get(name)
        if held is None or made.score.tokens_per_second > held.score.tokens_per_second:
            found[name] = made
    return lines + list(found.values()), fixed


def equal_efficiency(
    trace: Trace, courses: Courses, times: StepTimes, fixed: dict[int, LengthScore]
) -> list[dict[str, float]]:
    """Drafted tokens of fixed K and of h at the same block efficiency."""
    rows = []
    for k, base in fixed.items():
        if k not in (2, 4, 8):
            continue
        low, high = 0.0, 1.0
        for _ in range(14):
            h = (low + high) / 2
            made = simulate_lengths(trace, courses, Refusal(h), times)
            low, high = (h, high) if made.block_efficiency < base.block_efficiency else (low, h)
        made = simulate_lengths(trace, courses, Refusal(high), times)
        rows.append(
            {
                "K": k, "h": high, "block_efficiency": base.block_efficiency,
                "block_efficiency_h": made.block_efficiency,
                "drafted_per_token": base.drafted_per_token,
                "drafted_per_token_h": made.drafted_per_token,
                "saved": 1 - made.drafted_per_token / base.drafted_per_token,
            }
        )  # fmt: skip
    return rows


def show(lines: list[Line]) -> None:
    """One table for each concurrency."""
    for concurrency in dict.fromkeys(line.concurrency for line in lines):
        here = [line for line in lines if line.concurrency == concurrency]
        base = here[1].score
        table = Table(
            "policy", "best setting", "tokens/s", "to best fixed K", "block eff.", "drafted/token",
            "wasted/token", box=SIMPLE, title=f"{concurrency} side by side",
        )  # fmt: skip
        for line in here:
            made = line.as_json(base)
            gain = made["difference_to_best_fixed"]
            sides = "" if gain["low"] is None else f" [{gain['low']:+.1f}, {gain['high']:+.1f}]"
            table.add_row(
                line.policy, line.setting, f"{made['tokens_per_second']:.1f}",
                f"x{made['ratio_to_best_fixed']:.3f}{sides}", f"{made['block_efficiency']:.3f}",
                f"{made['drafted_per_token']:.2f}", f"{made['wasted_per_token']:.2f}",
            )  # fmt: skip
        _CONSOLE.print(table)


def draw(path: Path, lines: list[Line]) -> None:
    """Tokens/s over plain decoding's against concurrency, a line for each policy."""
    from theory.figures import load_pyplot, save_picture

    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    sizes = list(dict.fromkeys(line.concurrency for line in lines))
    plain = {
        line.concurrency: line.score.tokens_per_second for line in lines if line.policy == "plain"
    }
    for name in dict.fromkeys(line.policy for line in lines):
        values = [
            line.score.tokens_per_second / plain[line.concurrency]
            for line in lines
            if line.policy == name
        ]
        ours = name.startswith("threshold")
        axes.plot(sizes, values, marker="o", label=name, linewidth=2.5 if ours else 1.0)
    axes.set(xscale="log", xlabel="requests side by side", ylabel="tokens/s over plain decoding")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.legend(fontsize="x-small")
    save_picture(figure, path)


def main() -> None:
    """Walk once for every concurrency, then try everything."""
    parser = BriefParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trace", required=True, type=Path)
    parser.add_argument("--concurrency", type=numbers, default=[1, 4, 16, 32])
    parser.add_argument("--times", default="design")
    parser.add_argument("--draft-length", type=at_least(1), default=12, help="longest chain")
    parser.add_argument("--overhead-ms", type=float, default=0.0, help="of a step that drafts")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the drawn chains")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    try:
        trace = read(given.trace)
        given_times(given.times, 1)
    except (TraceError, OSError, ValueError) as error:
        parser.error(str(error))
    make = make_drafter(
        "stand", {"min_survival": 0.0}, draft_length=given.draft_length,
        tokens=len(trace) + int(trace.prompt_tokens.size) * 8,
    )  # fmt: skip
    lines: list[Line] = []
    equal: dict[int, list[dict[str, float]]] = {}
    for concurrency in given.concurrency:
        times = given_times(given.times, concurrency)
        courses = draw_courses(
            trace, make, draft_length=given.draft_length, together=concurrency, seed=given.seed
        )
        here, fixed = compare(trace, courses, times, concurrency, given.overhead_ms / 1000)
        lines += here
        equal[concurrency] = equal_efficiency(trace, courses, times, fixed)
    show(lines)
    for concurrency, rows in equal.items():
        saved = ", ".join(f"K={row['K']}: {100 * row['saved']:.0f} %" for row in rows)
        _CONSOLE.print(f"drafted tokens saved at equal block efficiency, {concurrency}: {saved}")
    if given.json:
        base = {line.concurrency: line.score for line in lines if line.policy == "fixed, best"}
        held = {
            "provenance": provenance() | {"options": {k: str(v) for k, v in vars(given).items()}},
            "rows": [line.as_json(base[line.concurrency]) for line in lines],
            "equal_efficiency": equal,
        }
        given.json.write_text(json.dumps(held, indent=1) + "\n")
    if given.plot:
        draw(given.plot, lines)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
