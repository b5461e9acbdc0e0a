"""`specproof bounds`: how far is each rule from the best possible, for these p and q?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

if TYPE_CHECKING:
    from theory.inputs import Row
    from theory.report import Bound, Spread

Recorded = Callable[
    [Path, str, "str | None", int, Callable[[float], None]], "tuple[list[Row], str]"
]
"""(trace file, drafter, its options as JSON, most rows, told the share that is done) -> rows, and
a sentence that says which they are."""
_recorded: list[Recorded] = []


def register_recorded(rows: Recorded) -> None:
    """Say how rows come out of a recorded trace: that takes a drafter, which theory has not."""
    _recorded[:] = [rows]


def bounds(
    p: Annotated[Path | None, typer.Option("--p", help="Target law: .npy, .npz or .csv.")] = None,
    q: Annotated[Path | None, typer.Option("--q", help="Draft law, the same formats.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Of `specproof record` (.npz), or rows (specproof-trace/1)."),
    ] = None,
    drafter: Annotated[
        str | None, typer.Option(help="Whose q, along a recorded .npz; stand unless given.")
    ] = None,
    options: Annotated[
        str | None, typer.Option(metavar="JSON", help="The drafter's, as in --additional-config.")
    ] = None,
    most: Annotated[
        int, typer.Option("--most", min=1, help="Rows drawn from a recorded .npz, at most.")
    ] = 1000,
    k: Annotated[str, typer.Option("--k", help="Numbers of candidates.")] = "1,2,4,8",
    drafts: Annotated[
        str, typer.Option("--drafts", help="Any of iid,without_replacement,top_plus_one, or all.")
    ] = "all",
    rules: Annotated[str, typer.Option("--rules", help="Rules by name, or all.")] = "all",
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a picture here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """The optimal acceptance for p and q, each rule's acceptance, and the gap between them.

    A rule's gap is to the optimum for the drafts it uses. Several rows are summarised as mean and
    quantiles. Monte Carlo values (rrs_without_replacement on wide q) carry their standard error.
    """
    from theory.acceptance import RULES, Rule
    from theory.figures import check_picture
    from theory.optimum import Drafts
    from theory.report import bounds as report

    try:
        if plot is not None:
            check_picture(plot)
        counts = list(dict.fromkeys(_integer(text) for text in k.split(",")))
        schemes = _names(drafts, get_args(Drafts), "--drafts")
        chosen = _names(rules, RULES, "--rules")
        floor, table = report(
            _rows(p, q, trace, (drafter, options, most)),
            counts,
            cast(list[Drafts], schemes),
            cast(list[Rule], chosen),
        )
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"specproof bounds: {error}", err=True)
        raise typer.Exit(2) from None
    if plot is not None:
        draw(plot, floor, table)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "one_minus_tv": vars(floor),
                    "bounds": [line.as_dict() for line in table],
                    "plot": None if plot is None else str(plot),
                }
            )
        )
    else:
        _print(floor, table, plot)


def draw(path: Path, floor: Spread, table: list[Bound]) -> None:
    """Acceptance against k: the optima above, the rules, and 1 - TV as the floor."""
    from theory.figures import load_pyplot, save_picture

    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    colours = dict(zip(("iid", "without_replacement", "top_plus_one"), ("C0", "C1", "C2")))  # noqa: B905
    styles = ("--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
    markers = "sv^Dx"
    for drafts in dict.fromkeys(line.drafts for line in table):
        names = dict.fromkeys(line.rule for line in table if line.drafts == drafts)
        for number, rule in enumerate(names):
            here = [line for line in table if line.drafts == drafts and line.rule == rule]
            axes.plot(
                [line.k for line in here],
                [line.acceptance.mean for line in here],
                color=colours[drafts],
                linewidth=2.5 if rule is None else 1.2,
                linestyle="-" if rule is None else styles[(number - 1) % len(styles)],
                marker="o" if rule is None else markers[(number - 1) % len(markers)],
                markerfacecolor=colours[drafts] if rule is None else "none",
                label=f"optimum, {drafts}" if rule is None else rule,
            )
    axes.axhline(floor.mean, color="grey", linestyle=":", label="1 - TV")
    axes.set(xlabel="candidates k", ylabel="acceptance (mean over rows)")
    axes.set_xticks(sorted({line.k for line in table}))
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_picture(figure, path)
    pyplot.close(figure)


def _rows(
    p: Path | None,
    q: Path | None,
    trace: Path | None,
    drafting: tuple[str | None, str | None, int],
) -> Iterator[Row]:
    """Rows of the inputs, with a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import Progress

    from theory.inputs import pairs, read_laws, read_trace

    drafter, options, most = drafting
    if (trace is None) == (p is None and q is None) or (p is None) != (q is None):
        raise ValueError("give --p and --q, or --trace")
    recorded = trace is not None and trace.suffix == ".npz"
    if not recorded and (drafter is not None or options is not None):
        raise ValueError("--drafter and --options go with a recorded --trace, a .npz file")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        if trace is not None and recorded:
            if not _recorded:
                raise ValueError(f"{trace} needs a drafter: use the command `specproof bounds`")
            task = progress.add_task("tokens", total=1.0)
            rows, what = _recorded[0](
                trace, drafter or "stand", options, most, lambda done: progress.advance(task, done)
            )
            progress.console.print(what, highlight=False, soft_wrap=True)
            yield from progress.track(rows, description="rows")
        elif trace is not None:
            size = trace.stat().st_size
            task = progress.add_task("rows", total=size)
            yield from read_trace(trace, lambda read: progress.advance(task, read))
        elif p is not None and q is not None:
            both = pairs(read_laws(p, "p"), read_laws(q, "q"))
            yield from progress.track(both, description="rows")


def _print(floor: Spread, table: list[Bound], plot: Path | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    rows = max(line.rows for line in table)
    view = Table(
        title=f"{rows} row{'s' if rows > 1 else ''}, 1 - TV = {floor.mean:.4f}; "
        "bold: the optimum for these drafts",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    view.add_column("k", justify="right", min_width=2)
    view.add_column("drafts, rule", no_wrap=True)
    for name in ("accept", "gap", "share"):
        view.add_column(name, justify="right", no_wrap=True)
    if rows > 1:
        for name in ("10 %", "50 %", "90 %"):
            view.add_column(name, justify="right", no_wrap=True)
    last = None
    for line in table:
        if last is not None and line.k != last:
            view.add_section()
        last = line.k
        noise = f" ± {line.standard_error:.4f}" if line.standard_error else ""
        share = line.acceptance.mean / line.optimum if line.optimum > 0 else 1.0
        rule = line.rule is not None
        fewer = f" ({line.rows} rows)" if line.rows < rows else ""
        cells = [
            "" if rule else str(line.k),
            f"  {line.rule}" if rule else f"{line.drafts}{fewer}",
            f"{line.acceptance.mean:.4f}{noise}",
            f"{round(line.gap, 4) + 0.0:.4f}" if rule else "",
            f"{share:.0%}" if rule else "",
        ]
        if rows > 1:
            seen = line.acceptance
            cells += [f"{seen.q10:.4f}", f"{seen.median:.4f}", f"{seen.q90:.4f}"]
        view.add_row(*cells, style="" if rule else "bold")
    console = Console()
    console.print(view)
    if plot is not None:
        console.print(f"plot: {plot}")


def _names(text: str, allowed: tuple[str, ...], option: str) -> list[str]:
    names = list(allowed) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in allowed:
            raise ValueError(f"{option} must be all or some of {', '.join(allowed)}; got {name!r}")
    return list(dict.fromkeys(names))


def _integer(text: str) -> int:
    if not (text.strip().isascii() and text.strip().isdigit()) or int(text) < 1:
        raise ValueError(f"--k must be numbers of at least 1, separated by commas; got {text!r}")
    return int(text)
