"""Does a replay say what an engine does? Both, for vLLM's ngram and suffix and for STAND.

    python benchmarks/replay.py --dataset FILE.jsonl --limit 12 --samples 4 --temperature 0.7 \\
        --max-tokens 128 --traces FOLDER --json OUT

For every method a server drafts with it while its answers are recorded; its own counters give the
block efficiency that it had, and the replay of the same answers, with the same drafter and
settings, the one to be expected. Given the text an engine's steps are still random; by how much
(one standard deviation) follows from the replay too, and is printed beside the gap.

STAND learns from the rows behind refused drafts too; the engine of this plugin logs them, and the
trace holds them (docs/traces.md). In `stand_from_text` (text_only.py) it does not learn from them,
and its trace does not hold them: what is left of a gap there has other reasons.
"""

import argparse
import asyncio
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import methods
from arguments import BriefParser, at_least, temperature
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from proposers.replay import make_drafter, profile, score
from proposers.replay.luck import step_moments
from theory.trace_file import TraceError, read
from theory.traces import Sampling, Trace
from vllm_plugin import spec_bench
from vllm_plugin.models import ModelError
from vllm_plugin.provenance import provenance
from vllm_plugin.record import Plan
from vllm_plugin.record_journal import counters_of
from vllm_plugin.record_server import MOST_HEADS, RecordError
from vllm_plugin.record_session import Session
from vllm_plugin.row_log import logged
from vllm_plugin.server import (
    ServerError,
    ServerOptions,
    model_folder,
    plugin_speculation,
    vllm_server,
)
from vllm_plugin.spec_bench import DatasetError

_CONSOLE = Console(stderr=True, highlight=False)
LIMIT = 3.0
"""Largest gap in percent that is not in need of an explanation."""


@dataclass(frozen=True)
class Pair:
    """One method in the engine and in the replay, with the same settings."""

    speculative_config: Mapping[str, Any]
    drafter: str
    options: Mapping[str, Any]
    rule: str


def pairs(tokens: int) -> dict[str, Pair]:
    """The methods; vLLM's stock rules judge point masses, where token and block rule are one."""
    return {
        "ngram": Pair(
            methods.ngram_config(2, 4, tokens),
            "prompt_lookup",
            {"shortest_match": 2, "longest_match": 4, "occurrence": "earliest"},
            "token",
        ),
        "suffix": Pair(
            {"method": "suffix", "num_speculative_tokens": tokens}, "suffix", {}, "token"
        ),
        "stand": Pair(plugin_speculation(tokens), "stand", {}, "block"),
        "stand_from_text": Pair(
            plugin_speculation(tokens, "text_only.StandFromText"), "stand", {}, "block"
        ),
    }


@dataclass(frozen=True)
class Result:
    """Tokens per decode step by the engine's counters and by the replay, and drafted tokens."""

    method: str
    tokens: int
    engine: float
    replay: float
    luck: float
    engine_drafted: float
    replay_drafted: float

    @property
    def gap(self) -> float:
        """Replay against engine, in percent of the engine."""
        return 100 * (self.replay / self.engine - 1)

    def as_json(self) -> dict[str, Any]:
        """Everything, for the report."""
        return {**vars(self), "gap_percent": self.gap, "sigmas": self.gap / max(self.luck, 1e-9)}


def compare(method: str, pair: Pair, trace: Trace, tokens: int) -> Result:
    """The trace's own counters beside the replay of its answers."""
    counted = counters_of(trace.provenance)
    if counted is None or counted.block_efficiency is None:
        raise RecordError(f"the trace of {method} holds no counters of decode steps")
    if counted.generation_tokens != len(trace):
        raise RecordError(
            f"the server counted {counted.generation_tokens} tokens while the trace of {method} "
            f"got {len(trace)}: an interrupted recording, or somebody else's requests"
        )
    made = profile(
        trace, make_drafter(pair.drafter, pair.options, draft_length=tokens), draft_length=tokens
    )
    found = score(made, trace, rule=pair.rule, draft_length=tokens)
    means, variances = step_moments(made, trace, rule=pair.rule, draft_length=tokens)
    return Result(
        method=method,
        tokens=len(trace),
        engine=counted.block_efficiency,
        replay=found.block_efficiency,
        luck=100 * math.sqrt(variances.sum()) / means.sum(),
        engine_drafted=counted.draft_tokens / counted.decode_steps,
        replay_drafted=float(found.drafted.sum() / found.steps.sum()),
    )


def recorded(options: argparse.Namespace, folder: Path, method: str, pair: Pair) -> Trace:
    """The trace of a method: read where it is complete, recorded or gone on with otherwise."""
    name = f"{method}-{options.limit}x{options.samples}x{options.max_tokens}"
    out = options.traces / f"{name}-t{options.temperature:g}-k{options.draft_length}.npz"
    if out.exists() and not out.with_name(out.name + ".partial").exists():
        return read(out)
    questions = spec_bench.arrange(spec_bench.read(options.dataset), options.seed)
    if options.limit > len(questions):
        raise DatasetError(f"--limit is {options.limit}, the data set has {len(questions)}")
    plan = Plan(
        questions=tuple(questions[: options.limit]),
        samples=options.samples,
        sampling=Sampling(options.temperature),
        max_tokens=options.max_tokens,
        settings={
            "dataset_sha256": spec_bench.checksum(options.dataset),
            "speculative_config": dict(pair.speculative_config),
        },
    )
    session = Session(plan, out, _CONSOLE)
    server = ServerOptions(
        model=str(folder),
        speculative_config=pair.speculative_config,
        max_model_len=4096,
        max_num_seqs=1,
        extra=("--max-logprobs", str(MOST_HEADS)),
    )
    trace = None
    try:
        with (
            logged(pair.speculative_config) as rows,
            vllm_server(server, name=f"vllm serve ({method})", console=_CONSOLE) as running,
        ):
            asyncio.run(session.run(running.url, rows))
    finally:
        trace = session.finish()
    if trace is None or not trace.provenance["complete"]:
        raise RecordError(f"{out} is not complete: run this again")
    return trace


def show(results: Sequence[Result]) -> Table:
    """The table that is printed."""
    table = Table(box=SIMPLE, title="tokens per decode step, engine against replay of its answers")
    for name in ("method", "tokens", "engine", "replay", "gap %", "luck %", "drafted", "replayed"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for one in results:
        table.add_row(
            one.method, f"{one.tokens:,}", f"{one.engine:.3f}", f"{one.replay:.3f}",
            f"{one.gap:+.1f}", f"± {one.luck:.1f}", f"{one.engine_drafted:.2f}",
            f"{one.replay_drafted:.2f}",
        )  # fmt: skip
    return table


def draw(path: Path, results: Sequence[Result]) -> None:
    """Engine and replay side by side; the whisker is the engine's luck, twice each way."""
    from theory.figures import load_pyplot, save_picture

    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    places = range(len(results))
    axes.bar([x - 0.2 for x in places], [one.engine for one in results], 0.4, label="engine")
    axes.bar(
        [x + 0.2 for x in places],
        [one.replay for one in results],
        0.4,
        yerr=[2 * one.luck / 100 * one.replay for one in results],
        capsize=4,
        label="replay, ± 2 σ of one run",
    )
    axes.set_xticks(list(places), [one.method for one in results])
    axes.axhline(1.0, color="grey", linestyle=":")
    axes.set(ylabel="tokens per decode step")
    axes.legend()
    save_picture(figure, path)
    pyplot.close(figure)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = BriefParser(prog="replay.py", description=(__doc__ or "").splitlines()[0])
    add = made.add_argument
    whole = at_least(1)
    add("--dataset", type=Path, required=True, help="questions in Spec-Bench's JSON lines")
    add("--limit", type=whole, default=12, help="number of questions, spread over the tasks")
    add("--samples", type=whole, default=4, help="answers to each question, one after another")
    add("--temperature", type=temperature, default=0.7)
    add("--max-tokens", type=whole, default=128)
    add("--draft-length", type=whole, default=8, help="K of every method")
    add("--methods", default=",".join(pairs(1)), help=",".join(pairs(1)))
    add("--seed", type=int, default=7, help="orders the questions")
    add("--model", default="smollm2", help="name of a packaged model, or a folder")
    add("--traces", type=Path, default=Path("out/replay"), help="folder for the traces")
    add("--json", type=Path, required=True, metavar="OUT", help="where the result goes")
    add("--plot", type=Path, help="write a picture here")
    return made


def run(options: argparse.Namespace) -> list[Result]:
    """Record what is missing, and compare."""
    known = pairs(options.draft_length)
    chosen = [name.strip() for name in options.methods.split(",")]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise DatasetError(f"--methods: {unknown[0]!r} is none of {', '.join(known)}")
    if "suffix" in chosen:
        methods.check(["suffix"])
    here = str(Path(__file__).resolve().parent)  # where the engine finds text_only
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    options.traces.mkdir(parents=True, exist_ok=True)
    folder = model_folder(options.model)
    return [
        compare(name, known[name], recorded(options, folder, name, known[name]),
                options.draft_length)
        for name in chosen
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 2 for bad input, 1 when a server failed, 3 for an unexplained gap."""
    options = parser().parse_args(arguments)
    try:
        results = run(options)
    except (DatasetError, ModelError, TraceError, methods.MethodError) as error:
        print(f"replay.py: {error}", file=sys.stderr)
        return 2
    except (ServerError, RecordError) as error:
        print(f"replay.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("replay.py: interrupted; the same command goes on", file=sys.stderr)
        return 130
    Console().print(show(results))
    words = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    report = {
        "provenance": provenance() | {"options": words},
        "results": [one.as_json() for one in results],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        draw(options.plot, results)
    wide = [one for one in results if abs(one.gap) > max(LIMIT, 2 * one.luck)]
    for one in wide:
        print(f"replay.py: {one.method} differs by {one.gap:+.1f} %", file=sys.stderr)
    return 3 if wide else 0


if __name__ == "__main__":
    sys.exit(main())
