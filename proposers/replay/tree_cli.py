"""`specproof tune-tree`: which tree of drafts suits the text of a trace?"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from proposers.replay.arguments import check_words, section

if TYPE_CHECKING:
    from proposers.replay.tree_chances import RankChances
    from proposers.replay.tree_limits import Limits
    from proposers.replay.tree_report import Verdict
    from proposers.shape import TreeShape
    from theory.traces import Trace

LEAST_PROMPTS = 4
MOST_BUDGET = 256
MOST_PATHS = 16  # proposers.path_stand.MAX_CANDIDATES, which costs numba to import


def tune_tree(
    trace: Annotated[Path, typer.Argument(help="A trace that `specproof record` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Write the shape here.")] = None,
    budget: Annotated[int, typer.Option(help="What the tree may cost, in --cost.")] = 16,
    cost: Annotated[
        str, typer.Option(help="nodes, or tokens: of the forward, leaf by leaf its depth + 1.")
    ] = "nodes",
    paths: Annotated[
        int, typer.Option(help="Most leaves; each is a row of the forward.")
    ] = MOST_PATHS,
    depth: Annotated[int, typer.Option(help="Most drafted tokens on a path.")] = 8,
    branching: Annotated[int, typer.Option(help="Most candidates of one node.")] = 8,
    method: Annotated[
        str | None,
        typer.Option(
            help="exact, greedy (STAND's) or sequoia.  [default: exact; greedy for top_plus_one]"
        ),
    ] = None,
    scheme: Annotated[
        str, typer.Option(help="Drawing of candidates: without_replacement or top_plus_one.")
    ] = "without_replacement",
    weigh: Annotated[
        str,
        typer.Option(help="Places that count: steps, where the tree's steps begin, or all places."),
    ] = "steps",
    drafter: Annotated[str, typer.Option(help="stand: the one that drafts by a shape.")] = "stand",
    options: Annotated[
        str | None, typer.Option(help="STAND's options, as JSON for --additional-config.")
    ] = None,
    share: Annotated[
        str, typer.Option(help="The traffic: whose text shares a table: all, prompt or none.")
    ] = "all",
    order: Annotated[
        str, typer.Option(help="sequential, or lockstep: a prompt's answers side by side.")
    ] = "sequential",
    hold_out: Annotated[
        float,
        typer.Option("--hold-out", "--held-out", help="Part of the prompts kept to judge by."),
    ] = 0.4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the parting and the draws.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the tree here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Find the tree of drafts that accepts most on recorded answers, and write it for the engine.

    What it is worth, against a chain and against branching at the root, is expected on prompts that
    the search never saw; intervals are of 95 %, clustered by prompt, differences paired by prompt.
    """
    from proposers.replay.tree_output import as_dict, command, configuration, show
    from theory.figures import check_picture, load_pyplot

    try:
        limits = _check(
            budget, cost, paths, depth, branching, method, scheme, weigh, drafter, share, order,
            hold_out,
        )  # fmt: skip
        given = {"min_survival": 0.0} | section(options)
        _check_out(out)
        if plot is not None:
            check_picture(plot)
            load_pyplot()
        training, held_out = _parts(trace, hold_out, seed)
        how = method or ("exact" if scheme == "without_replacement" else "greedy")
        seen, unseen = _chances(
            (training, held_out), given, depth, branching, scheme, share, order, seed
        )
        found, verdicts = _find((training, seen), (held_out, unseen), limits, how, weigh)
    except (ValueError, OSError) as error:
        typer.echo(f"specproof tune-tree: {error}", err=True)
        raise typer.Exit(2) from None
    about = {
        "trace": str(trace), "temperature": training.sampling.temperature, "scheme": scheme,
        "method": how, "weigh": weigh, "budget": budget, "cost": cost, "paths": paths,
        "options": given, "share": share, "order": order, "hold_out": hold_out, "seed": seed,
    }  # fmt: skip
    if out is not None:
        _write(out, found, about | {"held_out": verdicts[-1].as_dict()})
    config = configuration(out, scheme, given)
    if as_json:
        files = {"out": out, "plot": plot}
        typer.echo(
            json.dumps(
                as_dict(found, verdicts, training, held_out, about, config)
                | {name: None if path is None else str(path) for name, path in files.items()}
            )
        )
    else:
        show(verdicts, training, held_out, about)
        typer.echo(command(config, found.depth))
    if plot is not None:
        from proposers.replay.tree_chances import beginnings
        from proposers.replay.tree_figure import draw

        begun = beginnings(held_out.answer_begins, unseen.kept(found))
        draw(plot, found, replace(unseen, weights=begun))
    for name, path in (("shape", out), ("plot", plot)):
        if path is not None and not as_json:
            typer.echo(f"{name}: {path}")


def _check(
    budget: int,
    cost: str,
    paths: int,
    depth: int,
    branching: int,
    method: str | None,
    scheme: str,
    weigh: str,
    drafter: str,
    share: str,
    order: str,
    hold_out: float,
) -> Limits:
    """The limits; ValueError for the first argument that is not allowed."""
    from proposers.replay.profiling import Order, Share
    from proposers.replay.tree_counts import SCHEMES
    from proposers.replay.tree_limits import COSTS, Cost, Limits
    from proposers.replay.tree_search import METHODS
    from proposers.replay.tree_weighing import WEIGHINGS

    check_words(
        ("--cost", cost, COSTS),
        ("--method", method or METHODS[0], METHODS),
        ("--scheme", scheme, SCHEMES),
        ("--weigh", weigh, WEIGHINGS),
        ("--drafter", drafter, ("stand",)),
        ("--share", share, get_args(Share)),
        ("--order", order, get_args(Order)),
    )
    least = 1 if cost == "nodes" else 2
    for name, value, low, high in (
        ("--budget", budget, least, MOST_BUDGET),
        ("--paths", paths, 1, MOST_PATHS),
        ("--depth", depth, 1, 128),
        ("--branching", branching, 1, 16),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} must be a number from {low} to {high}; got {value}")
    if scheme == "top_plus_one" and method not in (None, "greedy"):
        raise ValueError(
            f"--method {method} needs chances that do not depend on the number of candidates, as "
            "--scheme without_replacement has them; for top_plus_one there is greedy"
        )
    if not 0 < hold_out < 1:
        raise ValueError(f"--hold-out must lie between 0 and 1; got {hold_out:g}")
    return Limits(budget, cast(Cost, cost), paths)


def _check_out(out: Path | None) -> None:
    """Refused before the work, not after it."""
    if out is None:
        return
    if not out.parent.is_dir() or out.is_dir():
        raise ValueError(f"--out must be a file in a folder that exists; got {str(out)!r}")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out must be in a folder that can be written to; got {str(out)!r}")


def _parts(path: Path, hold_out: float, seed: int) -> tuple[Trace, Trace]:
    """The training prompts and the held-out ones."""
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
        select_prompts(recorded, prompts) for prompts in part_prompts(recorded, hold_out, seed)
    )
    return first, second


def _chances(
    parts: tuple[Trace, Trace],
    options: dict[str, Any],
    depth: int,
    branching: int,
    scheme: str,
    share: str,
    order: str,
    seed: int,
) -> tuple[RankChances, RankChances]:
    """The chances of every rank on both parts, with a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import Progress

    from proposers.replay.drafters import make_drafter
    from proposers.replay.profiling import Order, Share, most_tokens
    from proposers.replay.tree_counts import Scheme, rank_chances

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("tokens", total=sum(map(len, parts)))
        first, second = (
            rank_chances(
                part,
                make_drafter(
                    "stand", options, draft_length=depth, seed=seed,
                    tokens=most_tokens(part, cast(Share, share)),
                ),
                depth=depth, branching=branching, scheme=cast(Scheme, scheme),
                share=cast(Share, share), order=cast(Order, order), seed=seed,
                advance=lambda tokens: progress.advance(task, tokens),
            )
            for part in parts
        )  # fmt: skip
    return first, second


def _find(
    seen: tuple[Trace, RankChances],
    unseen: tuple[Trace, RankChances],
    limits: Limits,
    method: str,
    weigh: str,
) -> tuple[TreeShape, list[Verdict]]:
    """The shape, and what others and it, in this order, are worth on the held-out prompts."""
    from proposers.replay.tree_report import best_root_branching, judge
    from proposers.replay.tree_search import Method
    from proposers.replay.tree_weighing import Weighing, fit_shape
    from proposers.shape import TreeShape

    found, weighed = fit_shape(
        seen[0].answer_begins, seen[1], limits, method=cast(Method, method),
        weighing=cast(Weighing, weigh),
    )  # fmt: skip
    others = [TreeShape.root_branching(1, found.depth)]
    if found.paths <= weighed.branching:  # more children than that were not counted
        others.append(TreeShape.root_branching(found.paths, found.depth))
    within = best_root_branching(weighed, limits)
    if within is not None:
        others.append(within)
    named = {f"{each.width} x {each.depth}": each for each in others}
    return found, judge(*unseen, [*named.items(), ("found", found)])


def _write(path: Path, shape: TreeShape, about: dict[str, Any]) -> None:
    """Whole or not at all; ends the command with a sentence where it cannot be written."""
    try:
        shape.write(path, about)
    except OSError as error:
        nodes = json.dumps([list(node) for node in shape.nodes])
        typer.echo(
            f"specproof tune-tree: --out cannot be written: {error}; it would hold {nodes}",
            err=True,
        )
        raise typer.Exit(1) from None
