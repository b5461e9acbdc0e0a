"""`specproof tune`: which options of STAND, and which K, suit the text of a trace?"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from proposers.replay.arguments import check_words

if TYPE_CHECKING:
    from proposers.replay.tuning import Search, Trial, Workload
    from proposers.replay.tuning_report import Contender, Verdict
    from theory.laws import Floats

LEAST_PROMPTS = 4
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def tune(
    trace: Annotated[Path, typer.Argument(help="A trace that `specproof record` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the JSON for --additional-config here.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time to search, such as 90s, 10m or 1h.  [default: 10m]")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Settings to try, instead of a time or beside it.")
    ] = None,
    rule: Annotated[str, typer.Option(help="block, token or match.")] = "block",
    draft_length: Annotated[
        int, typer.Option(min=1, max=128, help="K of the defaults that are compared with.")
    ] = 8,
    longest: Annotated[
        int, typer.Option(min=1, max=128, help="Largest K that may be chosen.")
    ] = 16,
    share: Annotated[
        str, typer.Option(help="The traffic: whose text shares a table: all, prompt or none.")
    ] = "all",
    order: Annotated[
        str, typer.Option(help="sequential, or lockstep: a prompt's answers side by side.")
    ] = "sequential",
    step_times: Annotated[
        Path | None,
        typer.Option(help="Seconds of a step with n drafted tokens: .npy, or lines n,seconds."),
    ] = None,
    token_price: Annotated[
        float | None,
        typer.Option(
            help="Without step times: time of one more drafted token, in decode steps; 0 asks for "
            "block efficiency.  [default: 0.065, measured on 2 cores]"
        ),
    ] = None,
    hold_out: Annotated[
        float, typer.Option(help="Part of the prompts that the search does not see.")
    ] = 0.4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search and the drafts.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Write a picture here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Search STAND's options and K on recorded answers, and write them for the engine.

    What they gain over the defaults is measured on prompts that the search never saw; intervals are
    of 95 %, clustered by prompt, differences paired by prompt. Ctrl-C keeps the best so far.
    """
    from proposers.replay.tuning_output import as_dict, show
    from theory.figures import check_picture, load_pyplot

    try:
        seconds = _seconds(budget, trials)
        _check(rule, share, order, hold_out, token_price, step_times)
        if out is not None and (not out.parent.is_dir() or out.is_dir()):
            raise ValueError(f"--out must be a file in a folder that exists; got {str(out)!r}")
        if plot is not None:
            check_picture(plot)
            load_pyplot()
        work, held_out = _workloads(
            trace, rule, max(longest, draft_length), share, order,
            _times(step_times, token_price, max(longest, draft_length)), hold_out, seed,
        )  # fmt: skip
        work = replace(work, longest=longest)
        found = _search(work, seconds, trials)
    except (ValueError, OSError) as error:
        typer.echo(f"specproof tune: {error}", err=True)
        raise typer.Exit(2) from None
    except ImportError as error:
        typer.echo(f"specproof tune: {error}; it comes with specproof's requirements", err=True)
        raise typer.Exit(1) from None
    if not any(trial.state == "complete" for trial in found.trials):
        typer.echo("specproof tune: interrupted before the defaults were replayed once", err=True)
        raise typer.Exit(130)
    best, config = found.best, _config(found.best.options, rule)
    if out is not None:  # before the verdict: who interrupts that too has the config
        _write(out, config)
    verdicts = _verdicts(held_out, found, draft_length)
    command = _command(config, best.draft_length)
    unit = "speed-up" if step_times is None else "tokens/s"
    if as_json:
        whole = as_dict(work, held_out, found, verdicts)
        paths = {"out": out, "plot": plot}
        typer.echo(
            json.dumps(
                {
                    "trace": str(trace),
                    **whole,
                    "unit": unit,
                    "token_price": None
                    if step_times is not None
                    else round(float(work.step_times[1] - 1), 12),
                    "additional_config": config,
                    "speculative_config": _speculative(best.draft_length),
                    "command": command,
                    **{name: None if path is None else str(path) for name, path in paths.items()},
                }
            )
        )
    else:
        show(work, held_out, found, verdicts, unit)
        typer.echo(command)
    if plot is not None:
        from proposers.replay.tuning_figure import draw

        draw(plot, found, verdicts[share], unit)
    for name, path in (("config", out), ("plot", plot)):
        if path is not None and not as_json:
            typer.echo(f"{name}: {path}")


def _seconds(budget: str | None, trials: int | None) -> float | None:
    """Seconds of a time like 90s, 10m or 1h; None where only the trials are limited."""
    if budget is None:
        return None if trials is not None else 600.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip(), re.ASCII)
    if match is None or not float(match[1]) > 0:
        raise ValueError(f"--budget must be a time above 0 such as 90s, 10m or 1h; got {budget!r}")
    return float(match[1]) * _UNITS[match[2]]


def _check(
    rule: str,
    share: str,
    order: str,
    hold_out: float,
    token_price: float | None,
    step_times: Path | None,
) -> None:
    from proposers.replay.profiling import Order, Share
    from proposers.replay.scoring import RULES

    check_words(
        ("--rule", rule, RULES),
        ("--share", share, get_args(Share)),
        ("--order", order, get_args(Order)),
    )
    if not 0 < hold_out < 1:
        raise ValueError(f"--hold-out must lie between 0 and 1; got {hold_out:g}")
    if token_price is not None and step_times is not None:
        raise ValueError("give --step-times or --token-price, not both: the times hold the price")
    if token_price is not None and not 0 <= token_price < float("inf"):
        raise ValueError(f"--token-price must be 0 or more; got {token_price:g}")


def _times(path: Path | None, token_price: float | None, longest: int) -> Floats:
    """T(n), long enough for the most that could be drafted; refused before the work otherwise."""
    from proposers.replay.tuning import TOKEN_PRICE, linear_times
    from theory.inputs import read_step_times

    if path is None:
        return linear_times(TOKEN_PRICE if token_price is None else token_price, longest)
    times = read_step_times(path)
    if times.size <= longest:
        raise ValueError(
            f"{path} ends at {times.size - 1} drafted tokens, but up to {longest} can be drafted "
            f"in a step: measure longer steps, or give --longest and --draft-length "
            f"{times.size - 1}"
        )
    return times


def _workloads(
    path: Path,
    rule: str,
    longest: int,
    share: str,
    order: str,
    times: Floats,
    hold_out: float,
    seed: int,
) -> tuple[Workload, Workload]:
    """The training prompts and the held-out ones."""
    from proposers.replay.profiling import Order, Share
    from proposers.replay.tuning import Workload
    from theory.trace_file import read
    from theory.trace_prompts import part_prompts, select_prompts

    recorded = read(path)
    if recorded.prompts < LEAST_PROMPTS:
        raise ValueError(
            f"{path} has {recorded.prompts} prompts; tuning holds some out to judge by, and needs "
            f"{LEAST_PROMPTS} or more: record more questions"
        )
    if not len(recorded) > recorded.answers:
        raise ValueError(f"{path} holds no token behind a first one: record longer answers")
    first, second = (
        Workload(
            trace=select_prompts(recorded, prompts), rule=rule, longest=longest, step_times=times,
            share=cast(Share, share), order=cast(Order, order), seed=seed,
        )
        for prompts in part_prompts(recorded, hold_out, seed)
    )  # fmt: skip
    return first, second


def _search(work: Workload, seconds: float | None, trials: int | None) -> Search:
    """The search, with a line of progress on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from proposers.replay.tuning import search

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("replaying the defaults", total=trials or seconds)
        best = float("-inf")

        def told(trial: Trial) -> None:
            nonlocal best
            if trial.state == "complete":
                best = max(best, trial.rate)
            progress.update(
                task, completed=trial.number + 1 if trials else trial.seconds,
                description=f"{trial.number + 1} settings, best {best:.4g}",
            )  # fmt: skip

        return search(work, seconds=seconds, trials=trials, told=told)


def _verdicts(held_out: Workload, found: Search, draft_length: int) -> dict[str, list[Verdict]]:
    """By traffic: the defaults, the defaults with their best K, the setting by hand, the found."""
    from proposers.replay.tuning_report import by_hand, judge, other_share, stand

    def contenders(work: Workload) -> list[Contender]:
        first, best = found.trials[0], found.best
        some = [stand(work, {}, draft_length, "defaults")]
        if first.draft_length != draft_length:
            some.append(stand(work, {}, first.draft_length, "defaults, K"))
        return [
            *some,
            by_hand(work),
            stand(work, best.options, best.draft_length, "found"),
        ]

    other = replace(held_out, share=other_share(held_out.share))
    return {work.share: judge(work, contenders(work)) for work in (held_out, other)}


def _config(options: Any, rule: str) -> dict[str, Any]:
    """What --additional-config takes."""
    return {"specproof": {"rule": rule, **options}}


def _speculative(draft_length: int) -> dict[str, Any]:
    """What --speculative-config takes."""
    from proposers.replay.drafters import DRAFTERS

    return {
        "method": "custom_class",
        "model": DRAFTERS["stand"].engine_class,
        "num_speculative_tokens": draft_length,
    }


def _command(config: dict[str, Any], draft_length: int) -> str:
    """The whole command line; MODEL stands for what the trace was recorded with."""
    return " \\\n  ".join(
        (
            "vllm serve MODEL",
            f"--speculative-config {shlex.quote(json.dumps(_speculative(draft_length)))}",
            f"--additional-config {shlex.quote(json.dumps(config))}",
        )
    )


def _write(path: Path, config: dict[str, Any]) -> None:
    """Whole or not at all; ends the command with a sentence where it cannot be written."""
    from theory.whole_file import whole

    try:
        with whole(path) as file:
            file.write(f"{json.dumps(config, indent=2)}\n".encode())
    except OSError as error:
        typer.echo(
            f"specproof tune: --out cannot be written: {error}; it would hold {json.dumps(config)}",
            err=True,
        )
        raise typer.Exit(1) from None
