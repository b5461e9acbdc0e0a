"""`specproof profile`: how long a step takes, by the number of tokens in it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from proposers.length.step_times import StepTimes
    from vllm_plugin.profile import Plan, Point, Recording


def profile(
    model: Annotated[str, typer.Option(help="A packaged model or a model folder.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the curve here, JSON that an engine can start from.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw steps and curve: .png, .pdf or .svg.")
    ] = None,
    requests: Annotated[str, typer.Option(help="Requests in flight, a,b,c.")] = "1,4",
    draft_length: Annotated[
        int, typer.Option(help="Most drafts of a request in a step; 35 makes 36 tokens.")
    ] = 35,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each kind.")] = 16,
    context: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.7,
    dtype: Annotated[str, typer.Option(help="Arithmetic of the model.")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Measure what a decode step costs, with 1, 2, ... tokens of each request in it.

    A server of its own drafts by script: random tokens, every length as often. What is measured is
    this machine as busy as it is now; docs/length.md says how the curve is used.
    """
    from rich.console import Console

    from vllm_plugin.models import ModelError
    from vllm_plugin.profile import Plan, ProfileError, fitted, measure, points
    from vllm_plugin.server import ServerError, model_folder

    stage = Console(stderr=True, highlight=False)
    try:
        plan = Plan(_numbers(requests), draft_length, rounds, context, temperature)
        _check_paths(out, plot)
        folder = model_folder(model)
        _check_length(folder, plan)
    except (ValueError, ProfileError, ModelError) as error:
        raise _fail(str(error), 2) from None

    def told(now: int) -> None:
        what = "1 request" if now == 1 else f"{now} requests"
        stage.print(f"{what}: {plan.steps} steps of up to {now * (1 + draft_length)} tokens")

    try:
        recording = measure(folder, plan, dtype=dtype, console=stage, told=told)
    except (ServerError, ProfileError) as error:
        raise _fail(str(error), 1) from None
    times = fitted(recording.steps)
    shown = points(recording.steps, plan)
    if out is not None:
        _write(out, times, _about(model, dtype, plan, recording))
    if plot is not None:
        from vllm_plugin.profile_figure import draw

        draw(plot, recording, times, shown, model)
    if as_json:
        found = _about(model, dtype, plan, recording) | {
            "points": [_as_json(point, times) for point in shown],
            "steps": len(recording.steps),
            "out": None if out is None else str(out),
            "plot": None if plot is None else str(plot),
        }
        typer.echo(json.dumps(found))
        return
    _show(recording, times, shown)
    for name, path in (("curve", out), ("plot", plot)):
        if path is not None:
            typer.echo(f"{name}: {path}")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        raise ValueError(f"--requests must be numbers such as 1,4; got {text!r}") from None


def _check_paths(out: Path | None, plot: Path | None) -> None:
    """Say before minutes of measuring, not after, that nothing can be written."""
    from theory.figures import check_picture

    if out is not None and (out.suffix != ".json" or not out.absolute().parent.is_dir()):
        raise ValueError(f"--out must be a .json file in a folder that exists; got {str(out)!r}")
    if plot is not None:
        check_picture(plot)
        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError("--plot needs matplotlib: pip install matplotlib")


def _check_length(folder: Path, plan: Plan) -> None:
    """Refuse texts that the model has no positions for, before it is loaded."""
    config = json.loads((folder / "config.json").read_bytes())
    most = config.get("max_position_embeddings")
    if isinstance(most, int) and plan.longest_text > most:
        raise ValueError(
            f"a request would grow to {plan.longest_text} tokens, but the model ends at {most}; "
            f"give a smaller --context or fewer --rounds"
        )


def _about(model: str, dtype: str, plan: Plan, recording: Recording) -> dict[str, Any]:
    from vllm_plugin.provenance import provenance

    return {
        "hardware": recording.hardware,
        "model": model,
        "dtype": dtype,
        "requests": list(plan.requests),
        "draft_length": plan.draft_length,
        "context": plan.context,
        "provenance": provenance(),
    }


def _write(out: Path, times: StepTimes, about: dict[str, Any]) -> None:
    try:
        times.save(out, about)
    except OSError as error:
        raise _fail(f"--out cannot be written: {error}", 1) from None


def _as_json(point: Point, times: StepTimes) -> dict[str, Any]:
    return {
        "requests": point.requests,
        "tokens": point.tokens,
        "steps": point.steps,
        "median_ms": 1000 * point.seconds,
        "p10_ms": 1000 * point.low,
        "p90_ms": 1000 * point.high,
        "fitted_ms": 1000 * float(times.seconds(point.tokens)),
        "marginal_ms": 1000 * float(times.marginal(point.tokens)),
    }


def _show(recording: Recording, times: StepTimes, shown: list[Point]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    made = Table(box=SIMPLE, pad_edge=False)
    for head in ("requests", "tokens", "steps", "median ms", "p10", "p90", "T(n)", "T(n+1)-T(n)"):
        made.add_column(head, justify="right", no_wrap=True)
    before = shown[0].requests if shown else 0
    for point in shown:
        if point.requests != before:
            made.add_section()
        before = point.requests
        line = _as_json(point, times)
        made.add_row(
            str(point.requests), str(point.tokens), str(point.steps), f"{line['median_ms']:.1f}",
            f"{line['p10_ms']:.1f}", f"{line['p90_ms']:.1f}", f"{line['fitted_ms']:.1f}",
            f"{line['marginal_ms']:.2f}",
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(made)
    console.print(f"{len(recording.steps)} decode steps on {recording.hardware}", soft_wrap=True)


def _fail(message: str, code: int) -> typer.Exit:
    typer.echo(f"specproof profile: {message}", err=True)
    return typer.Exit(code)
