"""`specproof audit`: is this engine lossless? Exit code 0 lossless, 1 refuted, 2 undecided.

Anything else is no verdict: 64 for a call that cannot be carried out, 69 for an engine that does
not start or stops answering, 130 after Ctrl-C.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from rich.console import Console

    from theory.audit_statistics import SequentialAudit
    from vllm_plugin.audit_report import AuditReport
    from vllm_plugin.server import ServerOptions, ServerProcess

EXIT = {"lossless": 0, "refuted": 1, "undecided": 2}
USAGE = 64
UNAVAILABLE = 69
_HEADS = 128  # log probabilities a position: what the audit's own server grants


class AuditCommand(TyperCommand):
    """A command whose usage errors do not read as the verdict "undecided"."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse, and give an error of the command line its own exit code."""
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:
            # UsageError, of click or of the copy of click inside newer typers, which has no name.
            if getattr(error, "exit_code", None) == EXIT["undecided"]:
                vars(error)["exit_code"] = USAGE
            raise


def audit(
    model: Annotated[
        str | None, typer.Option(help="A packaged model or a model folder, served for the audit.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="URL", help="Audit this running vLLM server instead.")
    ] = None,
    speculative_config: Annotated[
        str | None, typer.Option(metavar="JSON", help="vLLM's own option, for the served model.")
    ] = None,
    additional_config: Annotated[
        str | None, typer.Option(metavar="JSON", help="vLLM's own option, for the served model.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts, one a line: text or a JSON array of token ids.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the sampled texts, above 0.")] = 0.7,
    budget: Annotated[
        float, typer.Option(help="Probability that a right engine is refuted, at most.")
    ] = 1e-6,
    resolution: Annotated[
        float, typer.Option(help="Mean deviation that 'lossless' excludes with confidence 95 %.")
    ] = 0.02,
    seconds: Annotated[float, typer.Option(help="Time limit, the engine's start not counted.")] = (
        240.0
    ),
    length: Annotated[int, typer.Option(help="Tokens of a sampled text.")] = 48,
    samples: Annotated[int, typer.Option(help="Texts of each prompt in the first round.")] = 4,
    dtype: Annotated[str, typer.Option(help="Arithmetic of the served model.")] = "float32",
    tolerance: Annotated[
        float | None, typer.Option(help="Numerical tolerance in TV; measured when left out.")
    ] = None,
    without_plugins: Annotated[
        bool, typer.Option("--without-plugins", help="Serve with VLLM_PLUGINS=none: stock vLLM.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (PNG) here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Test whether an engine's speculation keeps its law: lossless, refuted or undecided.

    Exit code 0 lossless, 1 refuted, 2 undecided; 64 for a wrong call, 69 for an engine that does
    not answer. See docs/audit.md for what is tested and what a verdict means.
    """
    from rich.console import Console

    from vllm_plugin.audit import audit_target, check_settings
    from vllm_plugin.audit_prompts import read_prompts
    from vllm_plugin.audit_report import draw
    from vllm_plugin.audit_server import ServerTarget
    from vllm_plugin.audit_target import AuditError, EngineFailure
    from vllm_plugin.models import ModelError
    from vllm_plugin.server import ServerError

    stage = Console(stderr=True, highlight=False)
    served = (speculative_config, additional_config)
    try:
        if against is not None and (any(served) or without_plugins):
            raise AuditError(
                "--speculative-config, --additional-config and --without-plugins start an engine; "
                "with --against they belong to the command that started that server"
            )
        if (model is None) == (against is None):
            raise AuditError("give --model to start an engine, or --against URL for a running one")
        check_settings(temperature, budget, resolution, seconds, samples, tolerance)
        if plot is not None:
            _check_plot(plot)
        asked = None if prompts is None else read_prompts(prompts)
        with _server(model, served, dtype, without_plugins, stage) as server:
            url = against or server.url
            name = against or f"{model} {speculative_config or 'without speculation'}"
            try:
                with closing(ServerTarget(url)) as target, _progress(stage, seconds) as on_round:
                    report = audit_target(
                        target,
                        name + (", no plugins" if without_plugins else ""),
                        prompts=asked,
                        temperature=temperature,
                        budget=budget,
                        resolution=resolution,
                        seconds=seconds,
                        tolerance=tolerance,
                        length=length,
                        samples=samples,
                        start_seconds=0.0 if against else server.start_seconds,
                        on_round=on_round,
                    )
            except EngineFailure as error:
                tail = "" if against else f"; its log ends:\n{server.log_tail()}"
                raise EngineFailure(f"{error}{tail}") from None
    except (EngineFailure, ServerError) as error:
        raise _fail(str(error), UNAVAILABLE) from None
    except (AuditError, ModelError) as error:
        raise _fail(str(error), USAGE) from None
    if plot is not None:
        draw(plot, report)
    _show(report, plot, as_json)
    raise typer.Exit(EXIT[report.verdict])


def _show(report: AuditReport, plot: Path | None, as_json: bool) -> None:
    picture = None if plot is None else str(plot)
    if as_json:
        typer.echo(json.dumps(report.as_json() | {"plot": picture}))
        return
    typer.echo(str(report))
    if picture is not None:
        typer.echo(f"  plot: {picture}")


def _check_plot(path: Path) -> None:
    """Say before minutes of audit, not after, that there will be no picture."""
    from vllm_plugin.audit_target import AuditError

    if importlib.util.find_spec("matplotlib") is None:
        raise AuditError("--plot needs matplotlib: pip install matplotlib")
    if not path.absolute().parent.is_dir():
        raise AuditError(f"--plot: the folder {path.absolute().parent} does not exist")


def _object(text: str | None, option: str) -> dict[str, Any] | None:
    """The JSON object of an option of vLLM's."""
    from vllm_plugin.audit_target import AuditError

    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise AuditError(f"{option} is no JSON: {error}; given was {text}") from None
    if not isinstance(value, dict):
        raise AuditError(f"{option} must be a JSON object; given was {text}")
    return value


@contextmanager
def _server(
    model: str | None,
    served: tuple[str | None, str | None],
    dtype: str,
    without_plugins: bool,
    stage: Console,
) -> Iterator[ServerProcess | Any]:
    """A child that serves the model for the length of the block; None without a model."""
    from vllm_plugin.server import ServerOptions, ServerProcess, model_folder, serve_command

    speculation = _object(served[0], "--speculative-config")
    additional = _object(served[1], "--additional-config")
    if model is None:
        yield None
        return
    options = ServerOptions(
        model=str(model_folder(model)),
        speculative_config=speculation,
        additional_config=additional,
        max_model_len=1024,
        max_num_seqs=64,
        dtype=dtype,
        extra=("--max-logprobs", str(_HEADS), "--logprobs-mode", "processed_logprobs"),
    )
    process = ServerProcess(
        lambda port: [*serve_command(options.model), *options.arguments(port)],
        environment=_environment(options, without_plugins),
        name="vllm serve",
        console=stage,
    )
    with process as server:
        yield server


def _environment(options: ServerOptions, without_plugins: bool) -> dict[str, str]:
    environment = options.environment(os.environ)
    if without_plugins:
        environment["VLLM_PLUGINS"] = "none"  # vLLM's own switch: no plugin has this name
    return environment


@contextmanager
def _progress(stage: Console, seconds: float) -> Iterator[Any]:
    """A bar over the time limit, with the evidence so far."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, console=stage) as progress:
        bar = progress.add_task("first round", total=seconds)

        def on_round(statistics: SequentialAudit, elapsed: float) -> None:
            evidence = statistics.log_evidence / math.log(10)
            text = (
                f"{statistics.tested:,} tokens, evidence 10^{evidence:.1f} of "
                f"10^{statistics.threshold / math.log(10):.1f}, bound {statistics.tv_bound:.3f} "
                f"for {statistics.resolution:g}"
            )
            progress.update(bar, completed=min(elapsed, seconds), description=text)

        yield on_round


def _fail(message: str, code: int) -> typer.Exit:
    typer.echo(f"specproof audit: {message}", err=True)
    return typer.Exit(code)
