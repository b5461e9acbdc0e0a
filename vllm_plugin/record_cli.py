"""`specproof record`: answers of a model, and the law of each of their tokens, for a replay."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from theory.traces import Trace
    from vllm_plugin.record import Plan
    from vllm_plugin.server import ServerProcess

INTERRUPTED = 130


def record(
    dataset: Annotated[Path, typer.Option(help="Questions in Spec-Bench's JSON lines.")],
    out: Annotated[Path, typer.Option(help="The trace; FILE.partial/ beside it holds the rest.")],
    model: Annotated[
        str | None, typer.Option(help="A packaged model or a model folder, served for this.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Record from this running vLLM server.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question.")] = 4,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    top_k: Annotated[int, typer.Option(min=0, help="0 cuts nothing.")] = 0,
    top_p: Annotated[float, typer.Option(help="Above 0; 1 cuts nothing.")] = 1.0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of questions, spread over the tasks.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Orders the questions, nothing else.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions in flight.")] = 1,
    speculative_config: Annotated[
        str | None, typer.Option(metavar="JSON", help="vLLM's own option, for the served model.")
    ] = None,
    additional_config: Annotated[
        str | None, typer.Option(metavar="JSON", help="vLLM's own option, for the served model.")
    ] = None,
    max_model_len: Annotated[int, typer.Option(min=8, help="Of the served model.")] = 4096,
    dtype: Annotated[str, typer.Option(help="Arithmetic of the served model.")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Record answers with the target's law at every token, for `simulate`, `tune` and `bounds`.

    The first turn of each question is asked; its answers follow one another. Stopped or broken off,
    the same command goes on where it ended, and the trace holds what was finished. docs/traces.md
    describes the file.
    """
    from rich.console import Console

    from vllm_plugin.models import ModelError
    from vllm_plugin.record_server import RecordError, ServerLost
    from vllm_plugin.record_session import Session
    from vllm_plugin.row_log import logged
    from vllm_plugin.server import ServerError
    from vllm_plugin.spec_bench import DatasetError

    stage = Console(stderr=True, highlight=False)
    try:
        served = _served(model, url, speculative_config, additional_config)
        plan = _plan(
            dataset, limit, seed, samples, (temperature, top_k, top_p), max_tokens, concurrency,
            served,
        )  # fmt: skip
        _check_out(out)
    except (RecordError, DatasetError) as error:
        raise _fail(str(error), 2) from None
    session = Session(plan, out, stage)
    ended: BaseException | None = None
    server: ServerProcess | None = None
    try:
        with (
            logged(served["speculative_config"]) as rows,
            _server(model, served, max_model_len, dtype, concurrency, stage) as server,
        ):
            asyncio.run(session.run(url or server.url if server else str(url), rows))
    except (ModelError, RecordError, ServerError, OSError, KeyboardInterrupt) as error:
        ended = error
    try:
        trace = session.finish()
    except OSError as error:
        raise _fail(f"{out} cannot be written ({error}); what is finished is kept", 1) from None
    if ended is None and trace is not None and trace.provenance["complete"]:
        _show(trace, out, as_json)
        return
    code = INTERRUPTED if isinstance(ended, KeyboardInterrupt) else 1
    log = f"; its log is {server.log_path}" if server and server.log_path else ""
    if session.journal is None:
        wrong = isinstance(ended, (ModelError, RecordError)) and not isinstance(ended, ServerLost)
        raise _fail(f"{_why(ended)}{log}; nothing was asked", 2 if wrong else code)
    raise _fail(f"{_why(ended)}{log}; {_left(trace, out, len(plan.questions))}", code)


def _plan(
    dataset: Path,
    limit: int | None,
    seed: int,
    samples: int,
    sampling: tuple[float, int, float],
    max_tokens: int,
    concurrency: int,
    served: dict[str, Any],
) -> Plan:
    from theory.traces import Sampling
    from vllm_plugin import spec_bench
    from vllm_plugin.record import Plan
    from vllm_plugin.record_server import RecordError

    temperature, top_k, top_p = sampling
    if not 0 < top_p <= 1:
        raise RecordError(f"--top-p is {top_p:g}; it must lie above 0 and not above 1")
    questions = spec_bench.arrange(spec_bench.read(dataset), seed)
    if limit is not None and limit > len(questions):
        raise RecordError(f"--limit is {limit}, but {dataset} holds {len(questions)} questions")
    return Plan(
        questions=tuple(questions[:limit]),
        samples=samples,
        sampling=Sampling(temperature, top_k, top_p),
        max_tokens=max_tokens,
        concurrency=concurrency,
        settings={"dataset_sha256": spec_bench.checksum(dataset), **served},
    )


def _served(
    model: str | None, url: str | None, speculative: str | None, additional: str | None
) -> dict[str, Any]:
    """The two JSON options of vLLM's; refused beside --url."""
    from vllm_plugin.record_server import RecordError

    if (model is None) == (url is None):
        raise RecordError("give --model to serve one, or --url for a running server")
    if url is not None and (speculative or additional):
        raise RecordError(
            "--speculative-config and --additional-config start a server; with --url they belong "
            "to the command that started that one"
        )
    found = {}
    for name, text in (("speculative_config", speculative), ("additional_config", additional)):
        option = f"--{name.replace('_', '-')}"
        try:
            found[name] = None if text is None else json.loads(text)
        except ValueError as error:
            raise RecordError(f"{option} is no JSON: {error}; given was {text}") from None
        if not isinstance(found[name], (dict, type(None))):
            raise RecordError(f"{option} must be a JSON object; given was {text}")
    return found


def _check_out(out: Path) -> None:
    """Say before minutes of recording, not after, that nothing can be written."""
    from vllm_plugin.record_journal import refuse_complete
    from vllm_plugin.record_server import RecordError

    folder = out.absolute().parent
    if out.suffix != ".npz":
        raise RecordError(f"--out must end in .npz; got {out}")
    if not folder.is_dir() or not os.access(folder, os.W_OK) or out.is_dir():
        raise RecordError(f"--out {out} cannot be written: {folder} is no folder to write into")
    refuse_complete(out)


@contextmanager
def _server(
    model: str | None,
    served: dict[str, Any],
    max_model_len: int,
    dtype: str,
    concurrency: int,
    stage: Console,
) -> Iterator[ServerProcess | None]:
    """A child that serves the model for the length of the block; None without a model."""
    from vllm_plugin.record_server import MOST_HEADS
    from vllm_plugin.server import ServerOptions, model_folder, vllm_server

    if model is None:
        yield None
        return
    options = ServerOptions(
        model=str(model_folder(model)),
        speculative_config=served["speculative_config"],
        additional_config=served["additional_config"],
        max_model_len=max_model_len,
        max_num_seqs=concurrency,
        dtype=dtype,
        extra=("--max-logprobs", str(MOST_HEADS), "--logprobs-mode", "raw_logprobs"),
    )
    with vllm_server(options, console=stage) as server:
        yield server


def _why(ended: BaseException | None) -> str:
    if isinstance(ended, KeyboardInterrupt):
        return "interrupted"
    return "some of the finished questions were damaged" if ended is None else str(ended)


def _left(trace: Trace | None, out: Path, asked: int) -> str:
    command = shlex.join(["specproof", *sys.argv[1:]])
    done = 0 if trace is None else trace.prompts
    kept = f"{done} of {asked} questions are finished" + (f" and in {out}" if done else "")
    return f"{kept}; go on with: {command}"


def _show(trace: Trace, out: Path, as_json: bool) -> None:
    held = trace.processed
    counters = trace.provenance.get("counters") or {}
    found: dict[str, Any] = {
        "out": str(out),
        "questions": trace.prompts,
        "answers": trace.answers,
        "tokens": len(trace),
        "temperature": trace.sampling.temperature,
        "entries": trace.ids.shape[1],
        "kept_mass": float(held.kept.mean()),
        "counters": counters or None,
    }
    if as_json:
        typer.echo(json.dumps(found))
        return
    efficiency = counters.get("block_efficiency")
    drafted = counters.get("draft_tokens")
    typer.echo(
        f"{out}: {trace.answers} answers to {trace.prompts} questions, {len(trace):,} tokens, "
        f"{found['kept_mass']:.1%} of each law kept on average"
    )
    if efficiency is None:
        typer.echo("the server shows no counters, so the trace does not say what it drafted")
    elif drafted:
        typer.echo(
            f"the engine delivered {efficiency:.3f} tokens a decode step and accepted "
            f"{counters['accepted_tokens']:,} of {drafted:,} drafted tokens"
        )
    counted = counters.get("generation_tokens", len(trace))
    if counted != len(trace):
        typer.echo(
            f"the server counted {counted:,} tokens meanwhile: others used it, or a sitting with "
            "several questions in flight broke off, so its numbers are not of exactly these answers"
        )


def _fail(message: str, code: int) -> typer.Exit:
    typer.echo(f"specproof record: {message}", err=True)
    return typer.Exit(code)
