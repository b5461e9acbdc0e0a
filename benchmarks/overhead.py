"""What specproof itself costs in a step: milliseconds of ours by part, inside a real server.

    python benchmarks/overhead.py --dataset FILE.jsonl --concurrency 1,8 [--json OUT]

Every concurrency gets a fresh server with ``vllm_plugin.stopwatch`` on and the same kind of
requests. Only steps in which all requests verified drafts count. "ours" is all that specproof does
in a step beside what vLLM's sampler does for the same rows ("stock": temperature, top-k, top-p,
softmax): request bookkeeping, learning from the rows, the rule, and drafting; with several paths
a request also their layout before the forward and the winner's commit after it. "length" is the
decision about draft lengths with all that it learns from, a part of "learn" and "propose".
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arguments import BriefParser, at_least, numbers, temperature
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from vllm_plugin import spec_bench
from vllm_plugin.load import Workload, measure
from vllm_plugin.measurement import MeasurementError
from vllm_plugin.models import ModelError
from vllm_plugin.provenance import provenance
from vllm_plugin.server import (
    ServerError,
    ServerOptions,
    model_folder,
    plugin_speculation,
    vllm_server,
)
from vllm_plugin.stopwatch import ENVIRONMENT

LIMITS = {1: 1.0, 8: 2.5}  # milliseconds of ours in a step, by concurrency
_CONSOLE = Console(stderr=True)


def parser() -> argparse.ArgumentParser:
    """The command line: that of serving.py where the two ask for the same thing."""
    made = BriefParser(prog="overhead.py", description=(__doc__ or "").splitlines()[0])
    add, whole = made.add_argument, at_least(1)
    add("--dataset", type=Path, required=True, help="questions in Spec-Bench's JSON lines")
    add("--limit", type=whole, default=16, help="number of questions, spread over the tasks")
    add("--concurrency", type=numbers, default=[1, 8], help="requests in flight, a,b,c")
    add("--temperature", type=temperature, default=0.7)
    add("--max-tokens", type=whole, default=96)
    add("--num-speculative-tokens", type=whole, default=8)
    add("--length", choices=("threshold", "fixed"), default="fixed", help="the option of ours")
    add("--model", default="smollm2", help="name of a packaged model, or a folder")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="OUT", help="where the result goes")
    return made


def profile(options: argparse.Namespace, folder: Path, concurrency: int) -> dict[str, Any]:
    """Milliseconds by part over the steps of one server in which every request had drafts."""
    questions = spec_bench.arrange(spec_bench.read(options.dataset), options.seed)
    workload = Workload(
        questions=tuple(questions[: options.limit]),
        concurrency=concurrency,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
    )
    settings = ServerOptions(
        model=str(folder),
        speculative_config=plugin_speculation(options.num_speculative_tokens),
        additional_config={"specproof": {"length": options.length}},
        max_num_seqs=concurrency,
    )
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "steps.json")
        os.environ[ENVIRONMENT] = str(file)
        with vllm_server(settings, name=f"concurrency {concurrency}", console=_CONSOLE) as server:
            measure(server.url, settings.served_name, workload, "stand")
        steps = json.loads(file.read_text())["steps"] if file.exists() else []
    full = [one for one in steps if one["requests"] == concurrency]
    if not full:
        raise MeasurementError(
            f"no step verified drafts of {concurrency} requests; raise --limit or --max-tokens"
        )

    def part(*names: str) -> np.ndarray:
        return 1000 * np.array([sum(one.get(name, 0.0) for name in names) for one in full])

    stock = part("stock")
    parts = {
        "layout": part("layout"),
        "bookkeeping": part("bookkeeping"),
        "learn": part("learn"),
        "rule": part("verify") - part("stock in verify"),
        "commit": part("commit"),
        "propose": part("propose"),
        "length": part("length"),
        "ours": part("layout", "sample", "propose") - stock,
        "stock": stock,
    }
    return {
        "concurrency": concurrency,
        "steps": len(full),
        "rows": float(np.mean([one["rows"] for one in full])),
        **{
            name: {"p50": float(np.median(ms)), "mean": float(ms.mean())}
            for name, ms in parts.items()
        },
    }


def shown(results: Sequence[dict[str, Any]]) -> Table:
    """One column a concurrency, medians (means in brackets)."""
    made = Table(
        title="milliseconds a step: median (mean)", title_justify="left", box=SIMPLE, pad_edge=False
    )
    made.add_column("requests in flight")
    for one in results:
        made.add_column(str(one["concurrency"]), justify="right")
    made.add_row("steps", *(str(one["steps"]) for one in results))
    made.add_row("rows a step", *(f"{one['rows']:.1f}" for one in results))
    for name in (
        "layout", "bookkeeping", "learn", "rule", "commit", "propose", "length", "ours", "stock",
    ):  # fmt: skip
        ms = [one[name] for one in results]
        if not any(each["mean"] for each in ms):
            continue  # a part that only several paths have
        made.add_row(name, *(f"{each['p50']:.2f} ({each['mean']:.2f})" for each in ms))
    limits = [LIMITS.get(one["concurrency"]) for one in results]
    made.add_row("limit on ours", *("-" if limit is None else f"{limit:g}" for limit in limits))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 2 for bad input, 1 when a server or a request failed."""
    options = parser().parse_args(arguments)
    try:
        folder = model_folder(options.model)
        spec_bench.read(options.dataset)
        results = [profile(options, folder, c) for c in options.concurrency]
    except (ModelError, spec_bench.DatasetError) as error:
        print(f"overhead.py: {error}", file=sys.stderr)
        return 2
    except (ServerError, MeasurementError) as error:
        print(f"overhead.py: {error}", file=sys.stderr)
        return 1
    Console().print(shown(results))
    if options.json:
        origin = provenance() | {"options": {k: str(v) for k, v in vars(options).items()}}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"provenance": origin, "results": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
