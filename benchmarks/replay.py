"""Does a replay say what the engine does? Both block efficiencies, on the same recorded answers.

    python benchmarks/replay.py --dataset FILE.jsonl --limit 4 --samples 4 --max-tokens 128 \\
        --temperature 0.7 --methods ngram,suffix,stand --traces FOLDER --json OUT

For each method `specproof record` serves the model with that speculation switched on and records
answers together with the engine's own counters; then the same drafter is replayed on these very
answers. Given the text, ngram and suffix have no noise left: a draft is accepted where it agrees.
For stand the replay gives an expectation, and the engine's one run scatters around it by the
standard deviation that is printed too. Exit code 1 when a gap is 3 % or more. A trace that is in
the folder already is not recorded again; it must come from the same questions and settings.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import methods
import numpy as np
from arguments import BriefParser, at_least, temperature
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from proposers.replay import DRAFTERS, make_drafter, profile, score
from proposers.replay.luck import step_moments
from theory.trace_file import TraceError, read
from theory.traces import Trace
from vllm_plugin.config import SECTION
from vllm_plugin.provenance import provenance
from vllm_plugin.server import plugin_speculation

MOST_GAP = 0.03
RECORD = (sys.executable, "-c", "from vllm_plugin.cli import main; main()", "record")


class ReplayError(RuntimeError):
    """A recording that failed or does not fit, in one sentence."""


@dataclass(frozen=True)
class Pair:
    """One method as the engine is asked for it, and as the replay builds it."""

    name: str
    speculative_config: Mapping[str, Any]
    drafter: str
    options: Mapping[str, Any]
    rule: str = "token"

    @property
    def additional_config(self) -> dict[str, Any] | None:
        """Only this project's drafters have options; both sides get every one of them."""
        ours = self.speculative_config["method"] == "custom_class"
        return {SECTION: dict(self.options) | {"rule": self.rule}} if ours else None


def pairs(names: Sequence[str], tokens: int, options: Mapping[str, Any]) -> list[Pair]:
    """The engine's methods and their replays; `options` change those of this project's drafters."""
    shortest, longest = 1, 4
    suffix = methods.SUFFIX_TUNED
    made = {
        "ngram": Pair(
            "ngram",
            methods.ngram_config(shortest, longest, tokens),
            "prompt_lookup",
            {"shortest_match": shortest, "longest_match": longest, "occurrence": "earliest"},
        ),
        "suffix": Pair(
            "suffix",
            {"method": "suffix", "num_speculative_tokens": tokens, **suffix},
            "suffix",
            {
                "suffix_max_spec_factor": suffix["suffix_decoding_max_spec_factor"],
                "suffix_min_token_prob": suffix["suffix_decoding_min_token_prob"],
            },
        ),
    }
    for name, kind in DRAFTERS.items():
        if name not in made:
            rule = options.get("rule", "block")
            own = dict(kind.defaults) | {k: v for k, v in options.items() if k in kind.defaults}
            asked = plugin_speculation(tokens, kind.engine_class)
            made[name] = Pair(name, asked, name, own, rule)
    unknown = [name for name in names if name not in made]
    if unknown or not names:
        raise methods.MethodError(
            f"--methods: {', '.join(unknown) or 'nothing'} is not a method; choose from "
            f"{', '.join(made)}."
        )
    return [made[name] for name in names]


def recorded(options: argparse.Namespace, pair: Pair) -> Trace:
    """The trace of a method, recorded now unless it is in the folder.

    Raises
    ------
    ReplayError
        When recording fails, and for a trace that has other settings or no counters.
    """
    out = options.traces / f"{pair.name}.npz"
    if not out.exists() or out.with_name(out.name + ".partial").exists():
        words = [
            *("--model", options.model, "--dataset", str(options.dataset), "--out", str(out)),
            *("--limit", str(options.limit), "--samples", str(options.samples)),
            *("--max-tokens", str(options.max_tokens), "--seed", str(options.seed)),
            *("--temperature", str(options.temperature)),
            *("--speculative-config", json.dumps(pair.speculative_config)),
        ]
        if pair.additional_config is not None:
            words += ["--additional-config", json.dumps(pair.additional_config)]
        if subprocess.run([*RECORD, *words], stdout=subprocess.DEVNULL).returncode:
            raise ReplayError(f"{pair.name} could not be recorded; the reason is above")
    trace = read(out)
    settings = trace.provenance.get("settings") or {}
    asked = {
        "speculative_config": pair.speculative_config,
        "additional_config": pair.additional_config,
        "samples": options.samples,
        "max_tokens": options.max_tokens,
    }
    held = {name: settings.get(name) for name in asked}
    if held != asked or trace.sampling.temperature != options.temperature:
        raise ReplayError(f"{out} was recorded with other settings: delete it or choose a folder")
    if not trace.provenance.get("counters"):
        raise ReplayError(f"{out} holds no counters of the engine, so there is nothing to compare")
    return trace


def compare(pair: Pair, trace: Trace, tokens: int) -> dict[str, Any]:
    """The engine's counters beside the replay of one trace."""
    counters = trace.provenance["counters"]
    maker = make_drafter(pair.drafter, pair.options, draft_length=tokens)
    offered = profile(trace, maker, draft_length=tokens)
    found = score(offered, trace, rule=pair.rule, draft_length=tokens)
    means, variances = step_moments(offered, trace, rule=pair.rule, draft_length=tokens)
    steps = float(means.sum())
    engine, replay = counters["block_efficiency"], found.block_efficiency
    return {
        "method": pair.name,
        "rule": pair.rule,
        "tokens": int(found.tokens.sum()),
        "answers": trace.answers,
        "engine": engine,
        "replay": replay,
        "gap": engine / replay - 1,
        "noise": math.sqrt(variances.sum()) / steps,
        "engine_steps": counters["decode_steps"],
        "replay_steps": steps,
        "engine_drafted_per_step": counters["draft_tokens"] / counters["decode_steps"],
        "replay_drafted_per_step": float(found.drafted.sum() / steps),
        "law_slack_90": float(np.quantile(trace.processed.slack, 0.9)),
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = BriefParser(prog="replay.py", description=(__doc__ or "").splitlines()[0])
    add, whole = made.add_argument, at_least(1)
    add("--dataset", type=Path, required=True, help="questions in Spec-Bench's JSON lines")
    add("--limit", type=whole, default=4, help="number of questions, spread over the tasks")
    add("--samples", type=whole, default=4, help="answers to each, one after another")
    add("--max-tokens", type=whole, default=128)
    add("--temperature", type=temperature, default=0.7)
    add("--seed", type=int, default=1, help="chooses and orders the questions, nothing else")
    add("--methods", default="ngram,suffix,stand", help="a,b,c; this project's drafters by name")
    add("--num-speculative-tokens", type=whole, default=8, help="K, of every method")
    add("--options", type=json.loads, default={}, help="JSON: changes to our drafters' options")
    add("--model", default="smollm2", help="name of a packaged model, or a folder")
    add("--traces", type=Path, required=True, help="folder that the recordings are kept in")
    add("--json", type=Path, required=True, metavar="OUT", help="where the result goes")
    return made


def view(rows: Sequence[Mapping[str, Any]], heading: str) -> Table:
    """The table for the terminal."""
    table = Table(title=heading, box=SIMPLE_HEAD)
    names = ("method", "tokens", "engine", "replay", "gap", "1 s.d.", "drafted/step", "replay")
    for name in names:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["method"],
            f"{row['tokens']:,}",
            f"{row['engine']:.3f}",
            f"{row['replay']:.3f}",
            f"{row['gap']:+.1%}",
            f"{row['noise']:.1%}",
            f"{row['engine_drafted_per_step']:.2f}",
            f"{row['replay_drafted_per_step']:.2f}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 2 for bad input, 1 when a recording failed or a gap is too large."""
    options = parser().parse_args(arguments)
    tokens = options.num_speculative_tokens
    try:
        chosen = pairs(options.methods.split(","), tokens, options.options)
        options.traces.mkdir(parents=True, exist_ok=True)
        rows = [compare(pair, recorded(options, pair), tokens) for pair in chosen]
    except (methods.MethodError, OSError, TraceError) as error:
        print(f"replay.py: {error}", file=sys.stderr)
        return 2
    except ReplayError as error:
        print(f"replay.py: {error}", file=sys.stderr)
        return 1
    heading = f"Tokens a decode step, {options.limit} questions x {options.samples}, K = {tokens}"
    Console().print(view(rows, f"{heading}, T = {options.temperature:g}"))
    result = {"provenance": provenance(), "results": rows}
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    wide = [row["method"] for row in rows if abs(row["gap"]) >= MOST_GAP]
    if wide:
        print(f"replay.py: gaps of {MOST_GAP:.0%} or more: {', '.join(wide)}", file=sys.stderr)
    return 1 if wide else 0


if __name__ == "__main__":
    sys.exit(main())
