"""Pictures of the command line: refused before the work when they cannot be written after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")


def check_picture(path: Path) -> None:
    """Raise ValueError unless `path` ends in .png, .pdf or .svg, in a folder that exists."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot must end in {', '.join(SUFFIXES)}; got {str(path)!r}")
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"--plot must be a file in a folder that exists; got {str(path)!r}")


def load_pyplot() -> Any:
    """matplotlib.pyplot without a display; ends the command where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        typer.echo("specproof: --plot needs matplotlib: pip install matplotlib", err=True)
        raise typer.Exit(1) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_picture(figure: Figure, path: Path) -> None:
    """Write the figure; ends the command with a sentence where the path cannot be written."""
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        typer.echo(f"specproof: --plot cannot be written: {error}", err=True)
        raise typer.Exit(1) from None
