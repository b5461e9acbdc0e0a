"""How fast a real server answers, method by method: the same questions over loopback for each.

    python benchmarks/serving.py --dataset FILE.jsonl --limit 24 --samples 8 --temperature 0.7 \\
        --methods none,ngram,suffix,stand --concurrency 1 --max-tokens 256 --seed 1 --json OUT

Every method gets a fresh server, the same requests in the same order and a warm-up that shares no
text with them. With ``--rounds R`` the methods take turns R times, and a ratio is the median over
rounds of ratios within a round, so that a machine that is slow for a while slows both sides.
vLLM's own CPU engine is wrong at temperature > 0 under any speculation; specproof's repair is
active for every method here, the rivals included.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import methods
from arguments import (
    BriefParser,
    OutputError,
    at_least,
    json_object,
    make_folder,
    names,
    temperature,
)
from methods import Method, MethodError
from rich.console import Console
from rich.progress import Progress

from vllm_plugin import spec_bench
from vllm_plugin.load import Question, Workload, measure
from vllm_plugin.measurement import Measurement, MeasurementError, pooled, speed_ratios, table
from vllm_plugin.models import ModelError
from vllm_plugin.provenance import provenance
from vllm_plugin.server import ServerError, ServerOptions, model_folder, vllm_server
from vllm_plugin.spec_bench import DatasetError

_CALIBRATION_TOKENS = 128
_CONSOLE = Console(stderr=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = BriefParser(prog="serving.py", description=(__doc__ or "").splitlines()[0])
    add = made.add_argument
    whole = at_least(1)
    add("--dataset", type=Path, required=True, help="questions in Spec-Bench's JSON lines")
    add("--limit", type=whole, help="number of questions, spread over the tasks (default: all)")
    add("--categories", type=names, default=[], help="only these categories or tasks, a,b,c")
    add("--methods", type=names, default=["none", "stand"], help=",".join(methods.METHODS))
    add("--temperature", type=temperature, default=0.7)
    add("--samples", type=whole, default=1, help="answers to each question, one after another")
    add("--concurrency", type=whole, default=1, help="questions in flight")
    add("--max-tokens", type=whole, default=256)
    add("--all-turns", action="store_true", help="hold whole conversations, not the first turn")
    add("--seed", type=int, default=0, help="chooses and orders the questions, nothing else")
    add("--rounds", type=whole, default=1, help="how often the methods take turns")
    add("--json", type=Path, required=True, metavar="OUT", help="where the result goes")
    add("--model", default="smollm2", help="name of a packaged model, or a folder")
    add("--max-model-len", type=whole, default=4096)
    add("--num-speculative-tokens", type=whole, default=8, help="draft length of every method")
    add("--additional-config", type=json_object, help="vLLM's --additional-config, for our methods")
    add("--ngram-config", type=json_object, help="ngram's settings, instead of calibrating them")
    add("--suffix-config", type=json_object, help="changes to suffix's tuned settings")
    add("--calibration-questions", type=whole, default=6, help="for ngram; never those measured")
    return made


def choose(options: argparse.Namespace) -> tuple[list[Question], list[Question]]:
    """The questions to measure, and others to calibrate ngram on (none when that is not needed).

    Raises
    ------
    DatasetError
        When the data set is bad, or too small for both.
    """
    known = spec_bench.restrict(spec_bench.read(options.dataset), options.categories)
    ordered = spec_bench.arrange(known, options.seed)
    count = options.limit or len(ordered)
    if count > len(ordered):
        raise DatasetError(
            f"--limit {count} asks for more than the {len(ordered)} questions that there are."
        )
    if "ngram" not in options.methods or options.ngram_config is not None:
        return ordered[:count], []
    spare = ordered[count : count + options.calibration_questions]
    if not spare:
        raise DatasetError(
            f"--limit leaves none of the {len(ordered)} questions to calibrate ngram on; "
            "lower it or give --ngram-config."
        )
    return ordered[:count], spare


class Bench:
    """Servers, one at a time, for one model and one command line."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.preloaded: dict[str, bool] = {}
        self.commands: dict[str, list[str]] = {}

    def run(self, method: Method, workload: Workload, title: str) -> Measurement:
        """Start this method's server, ask everything, end the server."""
        settings = ServerOptions(
            model=str(self.folder),
            speculative_config=method.speculative_config,
            additional_config=method.additional_config,
            max_model_len=self.options.max_model_len,
            max_num_seqs=workload.concurrency,
        )
        with vllm_server(settings, name=f"vllm serve ({title})", console=_CONSOLE) as server:
            self.preloaded[method.name] = server.has_loaded("libiomp5")
            self.commands[method.name] = server.command
            with Progress(
                console=_CONSOLE, transient=True, disable=not _CONSOLE.is_terminal
            ) as progress:
                bar = progress.add_task(title, total=workload.requests)
                measured, _ = measure(
                    server.url,
                    settings.served_name,
                    workload,
                    method.name,
                    lambda answer: progress.advance(bar),
                )
        _CONSOLE.print(
            f"{title}: {measured.tokens} tokens in {measured.seconds:.1f} s, "
            f"{measured.tokens_per_second:.1f} tokens/s",
            highlight=False,
        )
        return measured


def workload_of(options: argparse.Namespace, questions: Sequence[Question]) -> Workload:
    """The requests that the command line describes."""
    return Workload(
        questions=tuple(questions),
        samples=options.samples,
        concurrency=options.concurrency,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        all_turns=options.all_turns,
    )


def calibrated(
    bench: Bench, spare: Sequence[Question], workload: Workload
) -> tuple[dict[str, Any], dict[str, Any]]:
    """ngram's fastest settings on ``spare``, and the trials for the provenance."""
    trial = replace(
        workload,
        questions=tuple(spare),
        samples=1,  # prompt look-up keeps nothing from one sample to the next
        max_tokens=min(workload.max_tokens, _CALIBRATION_TOKENS),
    )

    def speed(config: Mapping[str, Any]) -> float:
        numbers = [value for value in config.values() if isinstance(value, int)]
        title = f"ngram trial {'/'.join(map(str, numbers))}"
        return bench.run(Method("ngram", config), trial, title).tokens_per_second

    best, trials = methods.calibrate_ngram(bench.options.num_speculative_tokens, speed)
    return best, {"questions": [one.identity for one in spare], "trials": trials}


def report(
    rounds: Mapping[str, Sequence[Measurement]], baseline: str, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON document: sums over rounds per method, each round, and the ratios of speed."""
    results = []
    for runs in rounds.values():
        ratios = speed_ratios(runs, rounds[baseline])
        results.append(
            {
                **pooled(runs).as_json(),
                "speed_ratio": {
                    "baseline": baseline,
                    "median": statistics.median(ratios),
                    "rounds": ratios,
                },
                "rounds": [run.as_json() for run in runs],
            }
        )
    return {"provenance": dict(origin), "results": results}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything after the command line; the result is written to ``--json`` by the caller."""
    methods.check(options.methods)
    questions, spare = choose(options)
    make_folder(options.json)
    folder = model_folder(options.model)
    origin = provenance()
    bench, workload = Bench(options, folder), workload_of(options, questions)
    ngram, trials = options.ngram_config, None
    if spare:
        ngram, trials = calibrated(bench, spare, workload)
    elif ngram is not None:
        ngram = {"method": "ngram", **ngram}
    planned = methods.plan(
        options.methods,
        options.num_speculative_tokens,
        additional=options.additional_config,
        ngram=ngram,
        suffix=options.suffix_config,
    )
    rounds: dict[str, list[Measurement]] = {method.name: [] for method in planned}
    for number in range(options.rounds):
        for method in planned:
            title = method.name if options.rounds == 1 else f"{method.name}, round {number + 1}"
            rounds[method.name].append(bench.run(method, workload, title))
    baseline = "none" if "none" in rounds else planned[0].name
    origin |= {
        "dataset": {
            "path": str(options.dataset),
            "sha256": spec_bench.checksum(options.dataset),
            "questions": [one.identity for one in questions],
        },
        "options": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(options).items()
        },
        "model_folder": str(folder),
        "configs": {method.name: method.as_json() for method in planned},
        "server_commands": bench.commands,
        "ngram_calibration": trials,
        "openmp_preloaded": bench.preloaded,
    }
    heading = f"{len(questions)} questions x {options.samples}, T = {options.temperature:g}"
    Console().print(table(rounds, baseline, f"{heading}, concurrency {options.concurrency}"))
    return report(rounds, baseline, origin)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 2 for bad input, 1 when a server or a request failed."""
    options = parser().parse_args(arguments)
    try:
        result = run(options)
    except (DatasetError, MethodError, OutputError, ModelError) as error:
        print(f"serving.py: {error}", file=sys.stderr)
        return 2
    except (ServerError, MeasurementError) as error:
        print(f"serving.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("serving.py: interrupted", file=sys.stderr)
        return 130
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
