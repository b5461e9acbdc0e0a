"""Files the command line reads: laws, recorded rows (traces) and step-time curves.

Trace format "specproof-trace/1": JSON lines. First line {"format": "specproof-trace/1",
"vocabulary": V}; then one row a line, {"p": [[tokens], [probabilities]], "q": [[...], [...]]}: the
target and draft law of one node, non-zero entries only, each summing to 1 within 1e-6. Other keys
of a row (request, depth, ...) are allowed and ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from theory.laws import Floats, as_law, as_pair

TRACE_FORMAT = "specproof-trace/1"
Row = tuple[Floats, Floats]


def read_laws(path: Path, name: str) -> Floats:
    """Laws of shape (..., V) from .npy, .npz (the array called `name`, or the only one) or .csv.

    A .csv holds one law a line. Raises ValueError for other suffixes and for what is no law.
    """
    if path.suffix == ".npy":
        return as_law(np.load(path, allow_pickle=False), str(path))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            key = name if name in arrays.files else arrays.files[0] if len(arrays) == 1 else None
            if key is None:
                raise ValueError(
                    f"{path} holds {arrays.files}; one of them must be called {name!r}"
                )
            return as_law(arrays[key], f"{path}[{key}]")
    if path.suffix == ".csv":
        values = np.loadtxt(path, delimiter=",", ndmin=2)
        return as_law(values[0] if len(values) == 1 else values, str(path))
    raise ValueError(f"{path} must end in .npy, .npz or .csv; got {path.suffix!r}")


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
        except (ValueError, KeyError, TypeError):
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
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise ValueError(f"{path}, line {number}: {error!r}") from error


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

    Raises ValueError for times that are not positive and for a curve that does not start at n = 0.
    """
    values = (
        np.load(path, allow_pickle=False)
        if path.suffix == ".npy"
        else np.loadtxt(path, delimiter=",", ndmin=1)
    ).astype(np.float64)
    if values.ndim == 2 and values.shape[1] == 2:
        n, times = values[np.argsort(values[:, 0])].T
        if n[0] != 0:
            raise ValueError(f"{path} must measure n = 0 (plain decoding); it starts at n = {n[0]}")
        values = np.interp(np.arange(int(n[-1]) + 1), n, times)
    if values.ndim != 1 or not np.all(np.isfinite(values)) or values.min() <= 0:
        raise ValueError(f"{path} must hold positive times, one a line, or lines n,time")
    return values


def _sparse_row(p: list[list[float]], q: list[list[float]], vocabulary: int) -> Row:
    tokens = np.union1d(p[0], q[0]).astype(np.int64)
    if tokens.size and not 0 <= tokens[0] <= tokens[-1] < vocabulary:
        raise ValueError(f"tokens must lie in 0..{vocabulary - 1}")
    laws = []
    for name, (members, masses) in (("p", p), ("q", q)):
        law = np.zeros(tokens.size)
        np.add.at(law, np.searchsorted(tokens, members), masses)
        laws.append(as_law(law, name))
    return laws[0], laws[1]


def _compact(p: Floats, q: Floats) -> Row:
    used = (p > 0) | (q > 0)
    return p[used], q[used]
