"""`specproof stopping`: how many tokens to draft, for this acceptance and these costs?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from theory.laws import Floats


def stopping(
    acceptance: Annotated[
        str,
        typer.Option(help="Acceptance of draft 1, 2, ... given that all before were accepted."),
    ],
    draft_cost: Annotated[float, typer.Option(help="Cost of drafting a token.")] = 0.0,
    verify_cost: Annotated[
        float | None,
        typer.Option(help="Cost of a target forward, whatever it verifies; 1 if nothing is given."),
    ] = None,
    discard_cost: Annotated[float, typer.Option(help="Price of a discarded draft.")] = 0.0,
    step_times: Annotated[
        Path | None,
        typer.Option(help="Measured T(0), T(1), ...: .npy, one a line, or lines n,time."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """The optimal draft length, its threshold, and tokens per unit of cost against the length.

    Costs share one unit; with seconds, the rate is tokens/s. Give --verify-cost or --step-times.
    """
    from theory.figures import check_picture
    from theory.inputs import read_step_times
    from theory.stopping import (
        best_fixed_length,
        evaluate,
        fixed_length,
        profile_problem,
        refusal_threshold,
        solve,
    )

    try:
        if plot is not None:
            check_picture(plot)
        profile = [_number(text) for text in acceptance.split(",")]
        times = None if step_times is None else read_step_times(step_times)[: len(profile) + 1]
        if verify_cost is None and times is None:
            verify_cost = 1.0
        problem = profile_problem(
            profile,
            verify_cost=verify_cost,
            step_times=times,
            draft_cost=draft_cost,
            discard_cost=discard_cost,
        )
    except (ValueError, OSError) as error:
        typer.echo(f"specproof stopping: {error}", err=True)
        raise typer.Exit(2) from None
    best = solve(problem)
    length, _ = best_fixed_length(problem)
    each = [evaluate(problem, fixed_length(n)) for n in range(problem.longest + 1)]
    rates = [solution.tokens_per_cost for solution in each]
    threshold = refusal_threshold(problem, best.cost_per_token)
    if plot is not None:
        draw(plot, rates, length)
    if as_json:
        result = {
            "length": length,
            "tokens_per_cost": best.tokens_per_cost,
            "block_efficiency": best.tokens_per_step,
            "refusal_threshold": threshold.tolist(),
            "tokens_per_cost_by_length": rates,
            "plot": None if plot is None else str(plot),
        }
        typer.echo(json.dumps(result))
        return
    _print(problem.acceptance, rates, [s.tokens_per_step for s in each], length, threshold)
    if plot is not None:
        typer.echo(f"plot: {plot}")


def draw(path: Path, rates: list[float], best: int) -> None:
    """Tokens per unit of cost against draft length, the optimum marked."""
    from theory.figures import load_pyplot, save_picture

    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(range(len(rates)), rates, marker=".")
    axes.plot([best], [rates[best]], marker="o", color="C3", label=f"optimum: {best}")
    axes.axhline(rates[0], color="grey", linestyle=":", label="no speculation")
    axes.set(xlabel="draft length K", ylabel="tokens per unit of cost")
    axes.legend()
    save_picture(figure, path)
    pyplot.close(figure)


def _print(
    profile: Floats, rates: list[float], tokens: list[float], best: int, threshold: Floats
) -> None:
    from rich.console import Console
    from rich.table import Table

    view = Table()
    for name in ("K", "P(all accepted)", "stop above P(refusal)", "tokens a step", "tokens / cost"):
        view.add_column(name, justify="right")
    survival = 1.0
    for n, rate in enumerate(rates):
        survival *= profile[n - 1] if n else 1.0
        view.add_row(
            str(n),
            f"{survival:.4f}",
            f"{threshold[n - 1]:.4f}" if n else "",
            f"{tokens[n]:.4f}",
            f"{rate:.4f}" + (" <- optimum" if n == best else ""),
            style="bold" if n == best else "",
        )
    console = Console()
    console.print(view)
    console.print(
        f"draft {best} tokens: {rates[best]:.4f} tokens per unit of cost, "
        f"{rates[best] / rates[0]:.3f} times no speculation"
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--acceptance must be numbers in [0, 1], separated by commas; got {text!r}"
        ) from None
