"""`specproof simulate`: what would this drafter, rule and length have done on recorded text?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from proposers.replay.arguments import check_words, section

if TYPE_CHECKING:
    from proposers.replay.report import Line
    from proposers.replay.simulation import Setting
    from theory.laws import Floats
    from theory.traces import Trace


def simulate(
    trace: Annotated[Path, typer.Argument(help="A trace that `specproof record` wrote.")],
    drafter: Annotated[
        str, typer.Option(help="Drafters, separated by commas; differences are to the first.")
    ] = "stand,prompt_lookup",
    rule: Annotated[
        str | None,
        typer.Option(help="Verification rule; block, or what fits the drafts, unless given."),
    ] = None,
    draft_length: Annotated[str, typer.Option(help="Most tokens of a path, K.")] = "8",
    candidates: Annotated[str, typer.Option(help="Paths drafted in each step, k.")] = "1",
    drafts: Annotated[
        str | None, typer.Option(help="iid, without_replacement or top_plus_one, for k > 1.")
    ] = None,
    share: Annotated[str, typer.Option(help="Who shares a table: all, prompt or none.")] = "all",
    order: Annotated[
        str, typer.Option(help="sequential, or lockstep: a prompt's answers side by side.")
    ] = "sequential",
    step_times: Annotated[
        Path | None,
        typer.Option(help="Seconds of a step with n drafted tokens: .npy, or lines n,seconds."),
    ] = None,
    options: Annotated[
        str | None, typer.Option(help="JSON as for --additional-config, or its specproof section.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drafts that are drawn.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Write a picture here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Expected block efficiency of drafters on recorded answers, without an engine.

    Exact given the text, but for what is learned behind refused drafts (docs/replay.md).
    Intervals are of 95 %, clustered by prompt; differences are paired by prompt.
    """
    from proposers.replay.report import compare
    from proposers.replay.simulation import resolve
    from theory.figures import check_picture, load_pyplot
    from theory.trace_file import read

    try:
        if plot is not None:
            check_picture(plot)
        settings = resolve(
            _names(drafter, "--drafter"),
            _integers(draft_length, "--draft-length", 128),
            _integers(candidates, "--candidates", 64),
            rule or section(options).get("rule"),
            drafts,
        )
        recorded = read(trace)
        if not len(recorded):
            raise ValueError(f"{trace} holds no tokens: record some answers first")
        times = _times(step_times, settings)
        scored = _simulate(recorded, settings, share, order, times, options, seed)
    except (ValueError, OSError) as error:
        typer.echo(f"specproof simulate: {error}", err=True)
        raise typer.Exit(2) from None
    except ImportError as error:
        typer.echo(f"specproof simulate: {error}", err=True)
        raise typer.Exit(1) from None
    lines = compare(scored)
    if plot is not None:
        from proposers.replay.figure import draw

        load_pyplot()
        draw(plot, lines, _origins(recorded, settings, share, order, options, seed))
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "trace": str(trace),
                    "temperature": recorded.sampling.temperature,
                    "prompts": recorded.prompts,
                    "answers": recorded.answers,
                    "tokens": len(recorded),
                    "refused_rows": None if recorded.refused is None else len(recorded.refused),
                    "share": share,
                    "order": order,
                    "interval": "95 %, ratio linearised, clustered by prompt",
                    "lines": [line.as_dict() for line in lines],
                    "plot": None if plot is None else str(plot),
                }
            )
        )
        return
    _print(recorded, lines, share, order)
    if plot is not None:
        typer.echo(f"plot: {plot}")


def _simulate(
    trace: Trace,
    settings: list[Setting],
    share: str,
    order: str,
    times: Floats | None,
    options: str | None,
    seed: int,
) -> list[Any]:
    """(setting, score) of every setting, with a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import Progress

    from proposers.replay.profiling import Order, Share
    from proposers.replay.simulation import simulate, walks

    check_words(("--share", share, get_args(Share)), ("--order", order, get_args(Order)))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("tokens", total=walks(settings) * len(trace))
        return list(
            simulate(
                trace,
                settings,
                options=section(options),
                share=cast(Share, share),
                order=cast(Order, order),
                step_times=times,
                seed=seed,
                advance=lambda tokens: progress.advance(task, tokens),
            )
        )


def _origins(
    trace: Trace, settings: list[Setting], share: str, order: str, options: str | None, seed: int
) -> Any:
    """STAND's matched orders and counts, if it is among the drafters."""
    from proposers.replay.drafters import make_drafter
    from proposers.replay.origins import origins
    from proposers.replay.profiling import Order, Share, most_tokens

    longest = max((s.draft_length for s in settings if s.drafter == "stand"), default=None)
    if longest is None:
        return None
    shown = most_tokens(trace, cast(Share, share))
    make = make_drafter("stand", section(options), draft_length=longest, seed=seed, tokens=shown)
    return origins(
        trace, make, draft_length=longest, share=cast(Share, share), order=cast(Order, order)
    )


def _times(path: Path | None, settings: list[Setting]) -> Floats | None:
    """T(n), long enough for the most that could be drafted; refused before the work otherwise."""
    from theory.inputs import read_step_times

    if path is None:
        return None
    times = read_step_times(path)
    most = max(setting.draft_length * setting.candidates for setting in settings)
    if times.size <= most:
        raise ValueError(
            f"{path} ends at {times.size - 1} drafted tokens, but up to {most} can be drafted in a "
            "step: measure longer steps, or draft less"
        )
    return times


def _names(text: str, option: str) -> list[str]:
    from proposers.replay.drafters import DRAFTERS

    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in DRAFTERS:
            raise ValueError(f"{option} must be some of {', '.join(DRAFTERS)}; got {name!r}")
    return names


def _integers(text: str, option: str, most: int) -> list[int]:
    found = []
    for part in text.split(","):
        word = part.strip()
        if not (word.isascii() and word.isdigit()) or not 1 <= int(word) <= most:
            raise ValueError(
                f"{option} must be numbers from 1 to {most}, separated by commas; got {part!r}"
            )
        found.append(int(word))
    return sorted(set(found))


def _print(trace: Trace, lines: list[Line], share: str, order: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    columns = {
        "rule": [line.setting.rule for line in lines],
        "K": [str(line.setting.draft_length) for line in lines],
        "k": [str(line.setting.candidates) for line in lines],
    }
    common = [f"{name} = {v[0]}" for name, v in columns.items() if len(set(v)) == 1]
    varied = {name: values for name, values in columns.items() if len(set(values)) > 1}
    view = Table(
        title=f"{trace.answers} answers to {trace.prompts} prompts, {len(trace):,} tokens, "
        f"T = {trace.sampling.temperature:g}\n"
        + ", ".join([*common, f"table: {share}, {order}", "± 95 % by prompt"]),
        box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False,
    )  # fmt: skip
    view.add_column("drafter", no_wrap=True)
    for name in varied:
        view.add_column(name, justify="left" if name == "rule" else "right", no_wrap=True)
    for name in ("tokens/step", "to first", "drafted", "wasted"):
        view.add_column(name, justify="right", no_wrap=True)
    if any(line.rate for line in lines):
        view.add_column("tokens/s", justify="right", no_wrap=True)
    for place, line in enumerate(lines):
        cells = [
            line.setting.drafter,
            *(values[place] for values in varied.values()),
            _plus_minus(line.block_efficiency, 3),
            "" if line.gain is None else _plus_minus(line.gain, 3, signed=True),
            f"{line.drafted:.2f}",
            f"{line.wasted:.2f}",
        ]
        if line.rate is not None:
            cells.append(_plus_minus(line.rate, 1 if line.rate.value < 100 else 0))
        view.add_row(*cells)
    console = Console()
    console.print(view)
    accepted = Table(title="% accepted of the drafts at each position", box=SIMPLE_HEAD,
                     padding=(0, 0, 0, 1), pad_edge=False)  # fmt: skip
    accepted.add_column("drafter, rule, K, k", no_wrap=True)
    longest = min(max(line.setting.draft_length for line in lines), 12)
    for place in range(longest):
        accepted.add_column(str(place + 1), justify="right")
    for line in lines:
        s = line.setting
        shares = line.score.acceptance[:longest]
        accepted.add_row(
            f"{s.drafter}, {s.rule}, {s.draft_length}, {s.candidates}",
            *("" if share != share else f"{100 * share:.0f}" for share in shares),
        )
    console.print(accepted)
    console.print(
        "Exact given this text, but for what is learned behind refused drafts: "
        + (
            "this trace holds no such rows, so a table that learns from them usually does a little "
            "better in an engine."
            if trace.refused is None
            else f"shown are the {len(trace.refused):,} rows of the recorded engine's drafts."
        )
    )


def _plus_minus(interval: Any, digits: int, signed: bool = False) -> str:
    value = f"{interval.value:{'+' if signed else ''}.{digits}f}"
    if interval.low is None:
        return value
    return f"{value} ± {interval.high - interval.value:.{digits}f}"
