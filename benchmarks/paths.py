"""Several paths in one forward: block efficiency, step time and cost of ours, by k, L and rule.

    python benchmarks/paths.py --dataset FILE.jsonl [--candidates 1,4] [--lengths 4,8] [--json OUT]

Every setting runs on an engine of its own, on the same questions; the samples of one question run
together and share the table. "optimum" is the best acceptance that any rule could have at the first
node for the rows that were met there, "expected" that of the rule in use (theory.accepted_mass),
"measured" what happened. The milliseconds of a step are medians over decoding steps of all
requests together; "ours" is layout, copying and verdict, without what vLLM's sampler does for the
rows that the verdict visits.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import path_probe
from arguments import BriefParser, at_least, numbers, temperature
from methods import SUFFIX_TUNED, MethodError
from methods import check as check_methods
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from theory import optimum
from theory.acceptance import Rule
from theory.accepted_mass import accepted_mass
from theory.cluster_ratio import ratio_interval
from theory.optimum import optimal_acceptance
from vllm_plugin import spec_bench
from vllm_plugin.local_engine import answers, local_engine
from vllm_plugin.models import ModelError
from vllm_plugin.path_settings import DRAFTING_OF, RULE_OF
from vllm_plugin.provenance import provenance
from vllm_plugin.server import model_folder

_CONSOLE = Console(stderr=True, width=160)
RIVALS = ("none", "ngram", "suffix")
MILLISECONDS = ("layout", "copying", "verdict", "stock", "learn", "draft", "forward", "logits")
MOST_ENUMERATED = 5  # candidates whose refusals theory follows one by one in reasonable time
OURS = ("layout", "copying", "verdict")


@dataclass(frozen=True)
class Setting:
    """One line of the result: a rival of vLLM's own, or k paths of L drafts and a rule."""

    name: str
    candidates: int = 1
    length: int = 0
    rule: str = ""
    drafting: str = ""
    shape: str = ""

    def speculation(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """vLLM's two options."""
        if self.name == "none":
            return None, {}
        if self.name == "ngram":
            lengths = {"prompt_lookup_min": 1, "prompt_lookup_max": 4}
            return {"method": "ngram", "num_speculative_tokens": self.length, **lengths}, {}
        if self.name == "suffix":
            tokens = {"num_speculative_tokens": self.length}
            return {"method": "suffix", **tokens, **SUFFIX_TUNED}, {}
        speculative = {
            "method": "custom_class",
            "model": "vllm_plugin.Stand",
            "num_speculative_tokens": self.length,
        }
        options: dict[str, Any] = {"rule": self.rule, "length": "fixed"}
        if self.shape:
            options |= {"shape": self.shape, "drafting": self.drafting}
        elif self.candidates > 1:
            options |= {"candidates": self.candidates, "drafting": self.drafting}
        return speculative, {"specproof": options}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = BriefParser(prog="paths.py", description=(__doc__ or "").splitlines()[0])
    add, whole = made.add_argument, at_least(1)
    add("--dataset", type=Path, required=True, help="questions in Spec-Bench's JSON lines")
    add("--limit", type=whole, default=6, help="number of questions, spread over the tasks")
    add("--samples", type=whole, default=4, help="answers to each question, in flight together")
    add("--candidates", type=numbers, default=[1, 4], help="k, a,b,c")
    add("--lengths", type=numbers, default=[4, 8], help="L, a,b,c")
    add("--rules", default="top_plus_one,kseq,rrs_without_replacement,sparse_optimal")
    add("--beam", action="store_true", help="stochastic beam search too")
    add("--shapes", default="", help="files of specproof tune-tree, a,b,c")
    add("--rivals", default="none,suffix", help=f"of {', '.join(RIVALS)}; empty for none of them")
    add("--options", type=json.loads, default={}, help="more options of ours, JSON")
    add("--temperature", type=temperature, default=0.7)
    add("--max-tokens", type=whole, default=96)
    add("--model", default="smollm2", help="name of a packaged model, or a folder")
    add("--dtype", default="bfloat16")
    add("--block-size", type=whole, default=128)
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="OUT", help="where the result goes")
    return made


def settings(options: argparse.Namespace) -> list[Setting]:
    """All lines in order, rivals first; ValueError for what cannot be run."""
    rivals = [name for name in options.rivals.split(",") if name]
    if rivals:
        check_methods(rivals)
    found = [Setting(name, length=max(options.lengths)) for name in rivals]
    rules = [rule for rule in options.rules.split(",") if rule]
    wrong = [rule for rule in rules if rule not in DRAFTING_OF]
    if wrong:
        raise ValueError(f"--rules: {wrong[0]} is none of {', '.join(DRAFTING_OF)}")
    for k in options.candidates:
        for length in options.lengths:
            if k == 1:
                found.append(Setting("stand", 1, length, "block"))
                continue
            found += [Setting("stand", k, length, rule, DRAFTING_OF[rule]) for rule in rules]
            if options.beam:
                found.append(Setting("stand", k, length, RULE_OF["beam"], "beam"))
    for file in [name for name in options.shapes.split(",") if name]:
        from proposers.shape import TreeShape

        shape = TreeShape.read(Path(file))
        for drafting in ("without_replacement", "top_plus_one"):
            rule = RULE_OF[drafting]
            found.append(Setting("stand", shape.paths, shape.depth, rule, drafting, file))
    return found


def run(setting: Setting, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Block efficiency, times and first nodes of one setting, on an engine of its own."""
    speculative, additional = setting.speculation()
    if "specproof" in additional:
        additional["specproof"] |= options.options
    questions = spec_bench.arrange(spec_bench.read(options.dataset), options.seed)
    sampling = {
        "samples": options.samples,
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
    }
    steps, nodes = [], []
    with local_engine(
        folder,
        speculative_config=speculative,
        additional_config=additional,
        dtype=options.dtype,
        max_model_len=2048,
        max_num_seqs=options.samples,
        block_size=options.block_size,
        seed=options.seed,
    ) as llm:
        llm.collective_rpc(path_probe.install)
        answers(llm, questions[-1].turns[0], **sampling)  # a warm-up
        llm.collective_rpc(path_probe.forget)
        for question in questions[: options.limit]:
            answers(llm, question.turns[0], **sampling)
            one = llm.collective_rpc(path_probe.collect)[0]
            steps.append(one[0])
            nodes.append(one[1])
    return summary(setting, options.samples, steps, nodes)


def summary(
    setting: Setting,
    samples: int,
    steps: Sequence[Sequence[dict[str, float]]],
    nodes: Sequence[Sequence[tuple[Any, ...]]],
) -> dict[str, Any]:
    """The line of a setting, from the steps and first nodes of every question."""
    # A prompt's own step emits a token without drafts; it is no decoding step.
    emitted = [sum(s["emitted"] for s in one if s["decoding"]) for one in steps]
    forwards = [sum(s["sampling"] for s in one if s["decoding"]) for one in steps]
    every = [s for one in steps for s in one]
    full = [s for s in every if s["decoding"] and s["sampling"] == samples]
    tokens, seconds = sum(s["emitted"] for s in every), sum(s["seconds"] for s in every)
    efficiency = ratio_interval(emitted, forwards)
    line = {
        "setting": setting.__dict__ | {"options": setting.speculation()},
        "block_efficiency": efficiency.as_dict(),
        "tokens_per_second": tokens / seconds,
        "tokens": tokens,
        "steps": len(every),
        "tokens_a_step": float(np.mean([s["tokens"] for s in full])),
        "milliseconds": {
            "step": _median(full, "seconds"),
            **{part: _median(full, part) for part in MILLISECONDS},
            "ours": 1000 * float(np.median([sum(s.get(p, 0) for p in OURS) for s in full])),
            "ours_mean": 1000 * float(np.mean([sum(s.get(p, 0) for p in OURS) for s in full])),
        },
    }
    if any(nodes):
        line["first_node"] = first_nodes(setting, nodes)
    return line


def _median(steps: Sequence[dict[str, float]], part: str) -> float:
    return 1000 * float(np.median([s.get(part, 0.0) for s in steps]))


def first_nodes(setting: Setting, nodes: Sequence[Sequence[tuple[Any, ...]]]) -> dict[str, Any]:
    """Measured acceptance with its interval by question; expected and best, by rows met."""
    drafting = "without_replacement" if setting.drafting == "beam" else setting.drafting
    drafts = cast(optimum.Drafts, drafting)
    expected, best, untold = [], [], 0
    for one in nodes:
        for given, drawn, offered, _ in one:
            held, q = np.asarray(given), np.asarray(drawn)
            p = np.append(held, max(0.0, 1 - held.sum()))
            law = np.append(q, 0.0) / q.sum()
            p /= p.sum()
            k = setting.candidates if drafts == "iid" else offered
            best.append(float(optimal_acceptance(p, law, k, drafts=drafts).value))
            if setting.rule == "rrs_without_replacement" and k > MOST_ENUMERATED:
                untold += 1
                continue
            mass = accepted_mass(p, law, k, rule=cast(Rule, setting.rule), drafts=drafts)
            expected.append(float(mass.sum()))
    accepted = [sum(node[3] for node in one) for one in nodes]
    counts = [len(one) for one in nodes]
    return {
        "nodes": sum(counts),
        "measured": ratio_interval(accepted, counts).as_dict(),
        # Over the verdicts alone, given the rows; None where too many refusals could be followed.
        "binomial": None if untold else 1.96 * _deviation(expected),
        "expected": None if untold else float(np.mean(expected)),
        "optimum": float(np.mean(best)),
    }


def _deviation(chances: list[float]) -> float:
    """The standard deviation of the mean of independent verdicts."""
    each = np.array(chances)
    return float(np.sqrt((each * (1 - each)).sum())) / len(chances)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def shown(lines: Sequence[dict[str, Any]]) -> Table:
    """One row a setting."""
    made = Table(box=SIMPLE, pad_edge=False)
    columns = (
        "method", "k", "L", "rule", "block eff.", "±", "tok/s", "step ms", "forward", "ours",
        "copying", "first node", "expected", "optimum",
    )  # fmt: skip
    for column in columns:
        made.add_column(column, justify="left" if column in ("method", "rule") else "right")
    for line in lines:
        s, ms, tau = line["setting"], line["milliseconds"], line["block_efficiency"]
        node = line.get("first_node")
        name = s["rule"] if s["drafting"] in ("", DRAFTING_OF.get(s["rule"])) else s["drafting"]
        half = (tau["high"] - tau["low"]) / 2 if tau["high"] is not None else float("nan")
        made.add_row(
            s["name"] + (f" {Path(s['shape']).stem}" if s["shape"] else ""),
            str(s["candidates"]), str(s["length"]), name,
            f"{tau['value']:.3f}", f"{half:.3f}", f"{line['tokens_per_second']:.1f}",
            f"{ms['step']:.1f}", f"{ms['forward']:.1f}", f"{ms['ours']:.2f}",
            f"{ms['copying']:.2f}",
            *(
                (f"{node['measured']['value']:.3f}±{_number(node['binomial'])}",
                 _number(node["expected"]), _number(node["optimum"]))
                if node else ("-", "-", "-")
            ),
        )  # fmt: skip
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 2 for bad input."""
    options = parser().parse_args(arguments)
    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # collective_rpc of functions
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        folder = model_folder(options.model)
        spec_bench.read(options.dataset)
        planned = settings(options)
    except (ModelError, MethodError, spec_bench.DatasetError, ValueError) as error:
        print(f"paths.py: {error}", file=sys.stderr)
        return 2
    lines: list[dict[str, Any]] = []
    for setting in planned:
        lines.append(run(setting, options, folder))
        _CONSOLE.print(shown(lines[-1:]))
        if options.json:
            origin = provenance() | {"options": {k: str(v) for k, v in vars(options).items()}}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({"provenance": origin, "lines": lines}, indent=1))
    Console(width=160).print(shown(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
