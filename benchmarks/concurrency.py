"""Speed against requests in flight, every method beside plain decoding on a machine that drifts.

    python benchmarks/concurrency.py --dataset FILE.jsonl --json OUT [--plot OUT.png] \\
        [--methods none,ngram,suffix,fixed,stand] [--concurrency 1,4,16,32] [--temperature 0,0.7]
    python benchmarks/concurrency.py --adversarial --json OUT

All servers are started once, and those whose turn it is not stand still (``frozen_servers.py``).
At every point (temperature, concurrency) the methods take turns ``--rounds`` times, in another
order each time; in a round each gets the same questions in the same order. A ratio is the median
over rounds of a method's tokens/s over the baseline's in the same round, tokens/s being those of
the time in which all C requests were in flight (``slices.py``).

Nothing restarts between points: tables and suffix trees go on learning, equally for all, and vLLM
caches prompts. A data set smaller than the run comes round again (``times_asked`` in the result),
so its later answers are the more predictable; ``--adversarial`` never repeats a prompt: half of
them are noise, half alternate between repetition and noise every 50 tokens.
"""

import argparse
import importlib.util
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import methods
from arguments import (
    BriefParser,
    OutputError,
    at_least,
    json_object,
    make_folder,
    names,
    numbers,
    temperatures,
)
from concurrency_report import Cell, cells, draw, tables
from frozen_servers import FrozenServers
from methods import Method, MethodError
from rich.console import Console
from slices import Slice, VocabularyError, adversarial, requests_of, run_slice, words_of

from theory.figures import check_picture
from vllm_plugin import spec_bench
from vllm_plugin.load import Question, Workload
from vllm_plugin.measurement import MeasurementError
from vllm_plugin.models import ModelError
from vllm_plugin.provenance import provenance
from vllm_plugin.server import ServerError, ServerOptions, model_folder, vllm_server
from vllm_plugin.spec_bench import DatasetError

_CONSOLE = Console(stderr=True, highlight=False)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = BriefParser(prog="concurrency.py", description=(__doc__ or "").splitlines()[0])
    add = made.add_argument
    whole = at_least(1)
    traffic = made.add_mutually_exclusive_group(required=True)
    traffic.add_argument("--dataset", type=Path, help="questions in Spec-Bench's JSON lines")
    traffic.add_argument("--adversarial", action="store_true", help="prompts that mislead drafters")
    add("--categories", type=names, default=[], help="only these categories or tasks of --dataset")
    add("--methods", type=names, default=["none", "ngram", "suffix", "fixed", "stand"])
    add("--concurrency", type=numbers, default=[1, 4, 16, 32], help="requests in flight, a,b,c")
    add("--temperature", type=temperatures, default=[0.0, 0.7], help="a,b,c")
    add("--rounds", type=whole, default=3, help="turns of every method at every point")
    add("--max-tokens", type=whole, default=64, help="of an answer, which may end before")
    add("--slice-tokens", type=whole, default=240, help="least tokens of a turn, if none end early")
    add("--waves", type=at_least(2), default=2, help="least requests of a turn for each in flight")
    add("--seed", type=int, default=0, help="chooses and orders the questions, nothing else")
    add("--json", type=Path, required=True, metavar="OUT", help="where the result goes")
    add("--plot", type=Path, metavar="OUT.png", help="where the picture goes")
    add("--model", default="smollm2", help="name of a packaged model, or a folder")
    add("--max-model-len", type=whole, default=4096)
    add("--kv-cache-gib", type=whole, default=1, help="of each server; all are alive at once")
    add("--num-speculative-tokens", type=whole, default=8, help="draft length of every method")
    add("--additional-config", type=json_object, help="vLLM's --additional-config, for ours")
    add("--ngram-config", type=json_object, default=methods.ngram_config(1, 4, 4))
    add("--suffix-config", type=json_object, help="changes to suffix's tuned settings")
    return made


@dataclass(frozen=True)
class Plan:
    """What is measured, checked: nothing in it can be refused any more."""

    options: argparse.Namespace
    methods: list[Method]
    folder: Path
    stream: Iterator[Question]

    @property
    def baseline(self) -> str:
        """Plain decoding, or the first method where that is not measured."""
        known = [method.name for method in self.methods]
        return "none" if "none" in known else known[0]

    @property
    def heading(self) -> str:
        """What the traffic is called."""
        return "adversarial" if self.options.adversarial else str(self.options.dataset.stem)

    @property
    def points(self) -> list[tuple[float, int]]:
        """(temperature, concurrency) in the order of measuring."""
        sizes = sorted(set(self.options.concurrency))
        return list(itertools.product(dict.fromkeys(self.options.temperature), sizes))

    def workload(self, temperature: float, concurrency: int) -> Workload:
        """A slice at this point, of the next questions."""
        given = self.options
        count = requests_of(concurrency, given.max_tokens, given.slice_tokens, given.waves)
        return Workload(
            questions=tuple(itertools.islice(self.stream, count)),
            concurrency=concurrency,
            temperature=temperature,
            max_tokens=given.max_tokens,
        )


def prepare(options: argparse.Namespace) -> Plan:
    """Check everything that can be checked before a server starts."""
    methods.check(options.methods)
    make_folder(options.json)
    if options.plot is not None:
        check_picture(options.plot)
        if importlib.util.find_spec("matplotlib") is None:
            raise OutputError("--plot needs matplotlib: pip install matplotlib.")
    questions: list[Question] = []
    if options.dataset is not None:
        known = spec_bench.restrict(spec_bench.read(options.dataset), options.categories)
        questions = spec_bench.arrange(known, options.seed)
    elif options.categories:
        raise DatasetError("--categories chooses among the questions of --dataset; leave it out.")
    folder = model_folder(options.model)
    planned = methods.plan(
        options.methods,
        options.num_speculative_tokens,
        additional=options.additional_config,
        ngram={"method": "ngram", **options.ngram_config},
        suffix=options.suffix_config,
    )
    stream = (
        itertools.cycle(questions) if questions else adversarial(words_of(folder), options.seed)
    )
    return Plan(options, planned, folder, stream)


def start(plan: Plan, servers: FrozenServers) -> dict[str, list[str]]:
    """Start a server for each method; returns their commands."""
    commands = {}
    for method in plan.methods:
        settings = ServerOptions(
            model=str(plan.folder),
            speculative_config=method.speculative_config,
            additional_config=method.additional_config,
            max_model_len=plan.options.max_model_len,
            max_num_seqs=max(plan.options.concurrency),
            kv_cache_gib=plan.options.kv_cache_gib,
        )
        server = vllm_server(settings, name=f"vllm serve ({method.name})", console=_CONSOLE)
        servers.start(method.name, server)
        commands[method.name] = server.command
    return commands


def measure_point(
    plan: Plan,
    servers: FrozenServers,
    temperature: float,
    concurrency: int,
    asked: Counter[str],
    *,
    warm: bool,
) -> list[Cell]:
    """All rounds of all methods at one point; counts in ``asked`` how often a question came.

    Servers that are not ``warm`` at this temperature are warmed up before their first turn.
    """
    slices: dict[str, list[Slice]] = {method.name: [] for method in plan.methods}
    order = list(slices)
    for number in range(plan.options.rounds):
        workload = plan.workload(temperature, concurrency)
        asked.update(one.identity for one in workload.questions)
        first = number % len(order)
        for name in order[first:] + order[:first]:
            with servers.thawed(name) as server:
                try:
                    made = run_slice(
                        server.url,
                        ServerOptions.served_name,
                        workload,
                        name,
                        warm=warm or number > 0,
                    )
                except MeasurementError as error:
                    where = f"{name}'s log is {server.log_path}"
                    raise MeasurementError(f"{error}; {where}") from None
            slices[name].append(made)
            _CONSOLE.print(
                f"T = {temperature:g}, {concurrency} in flight, round {number + 1}, {name}: "
                f"{made.tokens:.0f} tokens in {made.seconds:.1f} s of {made.measured.seconds:.1f}, "
                f"{made.speed:.1f} tokens/s",
                soft_wrap=True,
            )
    return cells(temperature, concurrency, slices, plan.baseline)


def run(plan: Plan) -> list[Cell]:
    """Measure every point; the result is written after each, so that none is lost later."""
    options, origin = plan.options, provenance()
    found: list[Cell] = []
    asked: Counter[str] = Counter()
    began = time.monotonic()
    with FrozenServers() as servers:
        origin |= {
            "dataset": None if options.dataset is None else {
                "path": str(options.dataset), "sha256": spec_bench.checksum(options.dataset),
            },
            "options": {
                key: str(value) if isinstance(value, Path) else value
                for key, value in vars(options).items()
            },
            "model_folder": str(plan.folder),
            "configs": {method.name: method.as_json() for method in plan.methods},
            "server_commands": start(plan, servers),
            "start_seconds": time.monotonic() - began,
        }  # fmt: skip
        for temperature, concurrency in plan.points:
            warm = any(one.temperature == temperature for one in found)
            found += measure_point(plan, servers, temperature, concurrency, asked, warm=warm)
            origin |= {
                "memory_gib": servers.memory_gib(),
                "times_asked": {"questions": len(asked), "most": max(asked.values())},
                "seconds": time.monotonic() - began,
            }
            result = {
                "provenance": origin,
                "results": [{"method": one.method, **one.as_json(plan.baseline)} for one in found],
            }
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    memory = ", ".join(f"{name} {size:.2f}" for name, size in origin["memory_gib"].items())
    _CONSOLE.print(f"{origin['seconds']:.0f} s in all; GiB of memory: {memory}", soft_wrap=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 2 for bad input, 1 when a server or a request failed."""
    options = parser().parse_args(arguments)
    try:
        plan = prepare(options)
    except (DatasetError, MethodError, OutputError, ModelError, VocabularyError) as error:
        print(f"concurrency.py: {error}", file=sys.stderr)
        return 2
    except ValueError as error:  # of check_picture, which puts no full stop
        print(f"concurrency.py: {error}.", file=sys.stderr)
        return 2
    try:
        found = run(plan)
    except (ServerError, MeasurementError) as error:
        print(f"concurrency.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("concurrency.py: interrupted; --json holds the finished points", file=sys.stderr)
        return 130
    Console().print(tables(found, plan.baseline, plan.heading))
    if options.plot is not None:
        draw(options.plot, found, plan.baseline, plan.heading)
    return 0


if __name__ == "__main__":
    sys.exit(main())
