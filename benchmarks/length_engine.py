"""How many tokens to verify? Every length policy in one running engine, taking turns.

    python benchmarks/length_engine.py --dataset FILE.jsonl [--temperature 0.7] [--concurrency 1] \\
        [--limit 6] [--rounds 3] [--max-tokens 96] [--seeded] [--json OUT]

In each round every policy answers the same questions; the rounds bring other ones. Each policy's
requests name a group of their own (`specproof_group`), so none drafts from what another one's turn
taught. At T = 0, and with `--seeded`, all of them write the same texts and differ in time alone;
but requests with a seed are verified by the rule `match` whatever the server's rule is. Ratios are
to the best fixed K, found on the same rounds; the range is that of rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import length_switch
from arguments import BriefParser, at_least, temperature
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from vllm_plugin import spec_bench
from vllm_plugin.local_engine import in_flight, local_engine
from vllm_plugin.models import ModelError
from vllm_plugin.provenance import provenance
from vllm_plugin.server import model_folder
from vllm_plugin.spec_bench import DatasetError

_CONSOLE = Console(highlight=False, width=int(os.environ.get("COLUMNS", "120")))


def policies(longest: int) -> dict[str, dict[str, Any]]:
    """Name -> how it is made; lengths beyond ``longest`` are left out."""
    fixed = {
        f"fixed K={k}": {"kind": "Fixed", "words": [k]}
        for k in (0, 1, 2, 3, 4, 6, 8, 12, 16)
        if k <= longest
    }
    return {
        **fixed,
        f"fixed K={longest}, min_survival .05": {
            "kind": "Fixed", "words": [longest], "min_survival": 0.05,
        },
        "batch table": {
            "kind": "BatchTable", "words": [[[1, min(4, longest)], [4, 2], [16, 1]]],
        },
        "SpecDec++ h=.7": {"kind": "Refusal", "words": [0.7]},
        "SpecDec++ h=.9": {"kind": "Refusal", "words": [0.9]},
        "HF confidence": {"kind": "Confidence"},
        "HF conf.+heuristic": {"kind": "Confidence", "words": [0.4, min(5, longest)]},
        "AdaEDL": {"kind": "EntropyBound", "named": {"target": 0.5}},
        "DiffuSpec average": {"kind": "MovingAverage", "words": [1, longest]},
        "threshold": {"kind": "NeverSlower"},
    }  # fmt: skip


def parser() -> BriefParser:
    """The command line."""
    made = BriefParser(prog="length_engine.py", description=(__doc__ or "").splitlines()[0])
    made.add_argument("--dataset", type=Path, required=True)
    made.add_argument("--limit", type=at_least(1), default=6, help="questions of a round")
    made.add_argument("--rounds", type=at_least(1), default=3)
    made.add_argument("--temperature", type=temperature, default=0.7)
    made.add_argument("--concurrency", type=at_least(1), default=1)
    made.add_argument("--max-tokens", type=at_least(1), default=96)
    made.add_argument("--draft-length", type=at_least(1), default=8)
    made.add_argument("--seeded", action="store_true", help="the same texts for all policies")
    made.add_argument("--only", default="", help="names of policies, separated by ';'")
    made.add_argument("--model", default="smollm2")
    made.add_argument("--json", type=Path)
    return made


def run(given: Any) -> dict[str, Any]:
    """Rounds of all policies; for each, what each round took and emitted."""
    chosen = policies(given.draft_length)
    if given.only:
        wanted = [name.strip() for name in given.only.split(";")]
        unknown = [name for name in wanted if name not in chosen]
        if unknown:
            raise DatasetError(
                f"--only: {unknown[0]!r} is no policy; choose from {'; '.join(chosen)}"
            )
        chosen = {name: chosen[name] for name in wanted}
    questions = spec_bench.arrange(spec_bench.read(given.dataset), 1)
    needed = given.limit * (given.rounds + 1)
    if needed > len(questions):
        raise DatasetError(
            f"{given.rounds} rounds and a warm-up of --limit {given.limit} need {needed} "
            f"questions, but there are {len(questions)}"
        )
    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    speculative = {
        "method": "custom_class", "model": "vllm_plugin.Stand",
        "num_speculative_tokens": given.draft_length,
    }  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    with local_engine(
        Path(model_folder(given.model)),
        speculative_config=speculative,
        additional_config={"specproof": {}},
        max_model_len=2048, max_num_seqs=max(given.concurrency, 2), dtype="bfloat16", seed=0,
    ) as llm:  # fmt: skip
        llm.collective_rpc(length_switch.keep_sums)
        for number in range(given.rounds + 1):
            own = questions[number * given.limit : (number + 1) * given.limit]
            order = list(chosen)[number:] + list(chosen)[:number]
            for name in order:
                llm.collective_rpc(length_switch.switch, args=(name, chosen[name]))
                began = time.perf_counter()
                tokens = in_flight(
                    llm, [one.turns[0] for one in own], together=given.concurrency,
                    temperature=given.temperature, max_tokens=given.max_tokens,
                    extra_args={"specproof_group": name},
                    seed=1000 * number if given.seeded else None,
                )  # fmt: skip
                seconds = time.perf_counter() - began
                (sums,) = llm.collective_rpc(length_switch.sums)
                if number:  # the first is for warming up
                    found[name].append(sums | {"tokens": tokens, "wall": seconds})
                print(f"round {number}, {name}: {tokens / seconds:.1f} tokens/s", file=sys.stderr)
    return found


def summary(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A line for each policy, with its ratios to the best fixed K, round by round."""
    rates = {
        name: [one["tokens"] / one["wall"] for one in rounds] for name, rounds in found.items()
    }
    fixed = [name for name in rates if name.startswith("fixed K=") and "," not in name]
    pooled = {
        name: sum(one["tokens"] for one in rounds) / sum(one["wall"] for one in rounds)
        for name, rounds in found.items()
    }
    best = max(fixed or rates, key=lambda name: pooled[name])
    lines = []
    for name, rounds in found.items():
        ratios = [a / b for a, b in zip(rates[name], rates[best], strict=True)]
        emitted, drafted, steps = (
            sum(one[key] for one in rounds) for key in ("emitted", "drafted", "steps")
        )
        lines.append(
            {
                "policy": name, "tokens_per_second": pooled[name], "base": best,
                "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
                "pooled_ratio": pooled[name] / pooled[best],
                "block_efficiency": emitted / max(steps, 1),
                "drafted_per_token": drafted / max(emitted, 1),
            }
        )  # fmt: skip
    return lines


def show(lines: Sequence[dict[str, Any]], title: str) -> None:
    """The table."""
    table = Table(
        "policy", "tokens/s", f"to {lines[0]['base']}", "rounds", "block eff.", "drafted/token",
        box=SIMPLE, title=title,
    )  # fmt: skip
    for line in lines:
        table.add_row(
            line["policy"], f"{line['tokens_per_second']:.1f}", f"x{line['pooled_ratio']:.3f}",
            f"{line['lowest']:.3f}..{line['highest']:.3f}", f"{line['block_efficiency']:.3f}",
            f"{line['drafted_per_token']:.2f}",
        )  # fmt: skip
    _CONSOLE.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 2 for bad input."""
    given = parser().parse_args(arguments)
    try:
        found = run(given)
    except (DatasetError, ModelError) as error:
        print(f"length_engine.py: {error}", file=sys.stderr)
        return 2
    lines = summary(found)
    show(lines, f"{given.concurrency} side by side, T = {given.temperature:g}")
    if given.json:
        options = {key: str(value) for key, value in vars(given).items()}
        held = {
            "provenance": provenance() | {"options": options}, "rows": lines, "rounds": found,
        }  # fmt: skip
        given.json.write_text(json.dumps(held, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
