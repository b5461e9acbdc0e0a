"""Files the command line reads: laws, recorded rows (traces) and step-time curves.

Trace format "specproof-trace/1": JSON lines. First line {"format": "specproof-trace/1",
"vocabulary": V}; then one row a line, {"p": [[tokens], [probabilities]], "q": [[...], [...]]}: the
target and draft law of one node, non-zero entries only, each summing to 1 within 1e-6. Other keys
of a row (request, depth, ...) are allowed and ignored.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from theory.laws import Floats, as_floats, as_law, as_pair

TRACE_FORMAT = "specproof-trace/1"
Row = tuple[Floats, Floats]
MAX_DRAFTS = 100_000
"""Largest n of a step-time curve."""


def read_laws(path: Path, name: str) -> Floats:
    """Laws of shape (..., V) from .npy, .npz (the array called `name`, or the only one) or .csv.

    A .csv holds one law a line. Raises ValueError, naming the path, for other suffixes, for files
    that cannot be read and for what is no law.
    """
    if path.suffix not in (".npy", ".npz", ".csv"):
        raise ValueError(f"{path} must end in .npy, .npz or .csv; got {path.suffix!r}")
    values = _numbers(path, name)
    if not values.size:
        raise ValueError(f"{path} holds no numbers; it must hold laws of shape (..., V)")
    if path.suffix == ".csv" and len(values) == 1:
        values = values[0]
    return as_law(values, str(path) if path.suffix != ".npz" else f"{path}[{name}]")


def pairs(p: Floats, q: Floats) -> list[Row]:
    """Rows (p, q) of broadcast laws, each cut to the tokens that either of them can emit."""
    target, draft = as_pair(p, q)
    size = target.shape[-1]
    return [_compact(a, b) for a, b in zip(target.reshape(-1, size), draft.reshape(-1, size))]  # noqa: B905


def read_trace(path: Path, advance: Callable[[int], None] = lambda n: None) -> Iterator[Row]:
    """Rows of a trace, lazily; `advance` is told the bytes read, for a progress bar.

    Raises ValueError naming the line for another format, tokens outside the vocabulary or bad laws.
    """
    with path.open("rb") as lines:
        header = next(lines, b"")
        advance(len(header))
        try:
            head = json.loads(header)
            known = head["format"] == TRACE_FORMAT
            vocabulary = int(head["vocabulary"])
        except (ValueError, KeyError, TypeError, OverflowError):
            known = False
        if not known:
            raise ValueError(
                f"{path} must begin with a line like "
                f'{{"format": "{TRACE_FORMAT}", "vocabulary": 32000}}; see theory/inputs.py'
            )
        for number, line in enumerate(lines, start=2):
            advance(len(line))
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                yield _sparse_row(row["p"], row["q"], vocabulary)
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise ValueError(
                    f'{path}, line {number} must be like {{"p": [[tokens], [probabilities]], "q": '
                    f"[[tokens], [probabilities]]}}; {type(error).__name__}: {error}"
                ) from error


def write_trace(path: Path, rows: list[Row], vocabulary: int) -> None:
    """Write dense rows (p, q) of shape (V,) as a trace."""
    with path.open("w") as lines:
        lines.write(json.dumps({"format": TRACE_FORMAT, "vocabulary": vocabulary}) + "\n")
        for pair in rows:
            entry = {}
            for name, law in zip("pq", pair, strict=True):
                tokens = np.flatnonzero(law)
                entry[name] = [tokens.tolist(), law[tokens].tolist()]
            lines.write(json.dumps(entry) + "\n")


def read_step_times(path: Path) -> Floats:
    """T(0), T(1), ... from .npy, or text with one time a line, or lines "n,time" to interpolate.

    Raises ValueError for what cannot be read, for times that are not positive, and for a curve
    whose n are not different whole numbers from 0 to `MAX_DRAFTS`.
    """
    values = _numbers(path, "step_times")
    if 1 in values.shape:
        values = values.ravel()
    if values.ndim == 2 and values.shape[1] == 2:
        n, times = values[np.argsort(values[:, 0])].T
        whole = np.all(np.isfinite(n)) and np.all(n == np.floor(n)) and np.all(np.diff(n) > 0)
        if not whole or n[0] != 0 or n[-1] > MAX_DRAFTS:
            raise ValueError(
                f"{path} must measure n = 0 (plain decoding) and more, different whole numbers up "
                f"to {MAX_DRAFTS}; got n = {', '.join(f'{x:g}' for x in n[:8])}"
            )
        values = np.interp(np.arange(int(n[-1]) + 1), n, times)
    if values.ndim != 1 or not values.size or not np.all((values > 0) & (values < np.inf)):
        raise ValueError(
            f"{path} must hold positive times, one a line, or lines n,time; got shape "
            f"{values.shape}" + (f", smallest {values.min():g}" if values.size else "")
        )
    return values


def _numbers(path: Path, name: str) -> Floats:
    """The array of a .npy or .npz (`name`, or the only one), or a 2-d array of text with commas."""
    try:
        if path.suffix not in (".npy", ".npz"):
            with warnings.catch_warnings():  # an empty file is said to be one by the caller
                warnings.simplefilter("ignore", UserWarning)
                return np.loadtxt(path, delimiter=",", ndmin=2)
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                return as_floats(loaded)
            key = name if name in loaded.files else loaded.files[0] if len(loaded) == 1 else None
            if key is not None:
                return as_floats(loaded[key])
            held = loaded.files
    except (ValueError, TypeError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read as numbers in .npy, .npz or text with commas: {error}"
        ) from error
    raise ValueError(f"{path} holds {held}; one of them must be called {name!r}")


def _sparse_row(p: list[list[float]], q: list[list[float]], vocabulary: int) -> Row:
    for name, (members, masses) in (("p", p), ("q", q)):
        if len(members) != len(masses):
            raise ValueError(f"{name} has {len(members)} tokens and {len(masses)} probabilities")
        if not all(isinstance(token, int) and 0 <= token < vocabulary for token in members):
            raise ValueError(f"{name}: tokens must be integers in 0..{vocabulary - 1}")
    tokens = np.union1d(p[0], q[0]).astype(np.int64)
    laws = []
    for name, (members, masses) in (("p", p), ("q", q)):
        law = np.zeros(tokens.size)
        np.add.at(law, np.searchsorted(tokens, members), masses)
        laws.append(as_law(law, name))
    return laws[0], laws[1]


def _compact(p: Floats, q: Floats) -> Row:
    used = (p > 0) | (q > 0)
    return p[used], q[used]
