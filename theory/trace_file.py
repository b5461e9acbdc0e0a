"""Trace files: one .npz without pickles, a JSON header among its arrays (docs/traces.md)."""

from __future__ import annotations

import json
import lzma
import math
import struct
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from theory import refused
from theory.refused import RefusedRows
from theory.traces import Sampling, Trace
from theory.whole_file import whole

FORMAT = "specproof-trace"
VERSION = 2
_ARRAYS: dict[str, tuple[Any, int]] = {
    "prompt_tokens": (np.int32, 1),
    "prompt_begins": (np.int64, 1),
    "categories": (np.str_, 1),
    "questions": (np.str_, 1),
    "answer_prompts": (np.int64, 1),
    "answer_begins": (np.int64, 1),
    "tokens": (np.int32, 1),
    "ids": (np.int32, 2),
    "log_masses": (np.float32, 2),
    "emitted_log_masses": (np.float32, 1),
}
_DERIVED = ("emitted_p", "kept")
_TAILS = "tail_log_weights"
"""A trace may lack it: its recorder was given no more than it kept."""
_REFUSED: dict[str, tuple[Any, int]] = {
    "refused_starts": (np.int64, 1),
    "refused_after": (np.int64, 1),
    "refused_begins": (np.int64, 1),
    "refused_drafts": (np.int32, 1),
    "refused_ids": (np.int32, 2),
    "refused_log_masses": (np.float32, 2),
}
"""A trace has all of them or none: its recorder saw the rows behind refused drafts, or not."""
_DAMAGE = (
    *(ValueError, KeyError, EOFError, TypeError, SyntaxError, RuntimeError, MemoryError),
    *(OverflowError, BadZipFile, zlib.error, struct.error, lzma.LZMAError),
)
"""What zipfile and numpy raise on bytes that are not as they were written."""


class TraceError(ValueError):
    """A file that is no trace, or a damaged or newer one, in one sentence."""


def write(path: Path, trace: Trace) -> None:
    """Write a trace; the file appears whole or not at all.

    Raises ValueError for a trace that could not be read again.
    """
    problem = inconsistency(trace)
    if problem:
        raise ValueError(f"this trace cannot be written: {problem}")
    header = {
        "format": FORMAT,
        "version": VERSION,
        "vocabulary": trace.vocabulary,
        "temperature": trace.sampling.temperature,
        "top_k": trace.sampling.top_k,
        "top_p": trace.sampling.top_p,
        "max_tokens": trace.max_tokens,
        "tokenizer": trace.tokenizer,
        "provenance": trace.provenance,
    }
    named: dict[str, Any] = {
        name: np.asarray(getattr(trace, name), kind) for name, (kind, _) in _ARRAYS.items()
    }
    if trace.tail_log_weights is not None:
        named[_TAILS] = np.asarray(trace.tail_log_weights, np.float32)
    if trace.refused is not None:
        for name, (kind, _) in _REFUSED.items():
            named[name] = np.asarray(getattr(trace.refused, name.removeprefix("refused_")), kind)
    named["emitted_p"] = trace.processed.emitted.astype(np.float32)
    named["kept"] = trace.processed.kept.astype(np.float32)
    named["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with whole(path) as file:
        np.savez_compressed(file, allow_pickle=False, **named)


def read(path: Path) -> Trace:
    """The trace in a file.

    Raises
    ------
    TraceError
        When the file cannot be read, is damaged, of another kind, or of another version.
    """
    try:
        with path.open("rb") as file:
            foreign = file.read(2) != b"PK"
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None
    if foreign:
        raise TraceError(f"{path} is no trace: it is no .npz file")
    try:
        header, arrays = _load(path)
    except (OSError, *_DAMAGE) as error:
        raise TraceError(f"{path} is damaged: {_line(error)}") from None
    if header is None or header.get("format") != FORMAT:
        raise TraceError(f"{path} is no trace: it is a .npz file of something else")
    version = header.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        advice = "update specproof" if newer else "record it again"
        raise TraceError(
            f"{path} is a trace of version {version}, and this specproof reads version {VERSION}: "
            f"{advice}"
        )
    try:
        trace = Trace(
            vocabulary=_whole(header, "vocabulary"),
            sampling=Sampling(
                _number(header, "temperature"), _whole(header, "top_k"), _number(header, "top_p")
            ),
            max_tokens=_whole(header, "max_tokens"),
            tokenizer=str(header["tokenizer"]),
            provenance=dict(header["provenance"]),
            **arrays,
        )
        problem = inconsistency(trace)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"its header lacks or bends {error}"
    if problem:
        raise TraceError(f"{path} is damaged: {problem}")
    return trace


def _load(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Header and arrays; no header for another kind of .npz file, no arrays for another version.

    The checksums come first: what numpy reads after that is what was written.
    """
    with ZipFile(path) as archive:
        bad = archive.testzip()
        if bad is not None:
            raise ValueError(f"the checksum of {bad} is wrong")
        if archive.comment:
            raise ValueError("there is a comment behind its end")
    with np.load(path, allow_pickle=False) as held:
        if "header" not in held.files:
            missing = set(_ARRAYS) - set(held.files)
            if len(missing) < len(_ARRAYS):
                raise ValueError("it has no header")
            return None, {}
        text = held["header"]
        header = json.loads(text.tobytes().decode()) if text.dtype == np.uint8 else None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            return None, {}
        if header.get("version") != VERSION:
            return header, {}
        optional = {_TAILS: (np.float32, 2)} if _TAILS in held.files else {}
        if not set(_REFUSED).isdisjoint(held.files):
            optional |= _REFUSED
        kinds = _ARRAYS | optional
        if set(held.files) != {"header", *kinds, *_DERIVED}:
            raise ValueError(f"it holds {', '.join(held.files)}")
        arrays: dict[str, Any] = {}
        for name, (kind, dimensions) in kinds.items():
            array = held[name]
            if array.dtype != kind and not (kind is np.str_ and array.dtype.kind == "U"):
                raise ValueError(f"{name} is {array.dtype}, not {np.dtype(kind)}")
            if array.ndim != dimensions:
                raise ValueError(f"{name} has {array.ndim} dimensions, not {dimensions}")
            arrays[name] = array
    if "refused_starts" in arrays:
        arrays["refused"] = RefusedRows(*(arrays.pop(name) for name in _REFUSED))
    return header, arrays


def inconsistency(trace: Trace) -> str | None:
    """What is wrong with the values of a trace, in words; None when nothing is."""
    return (
        _wrong_parameters(trace)
        or _wrong_shapes(trace)
        or _wrong_tokens(trace)
        or _wrong_laws(trace)
        or (
            None
            if trace.refused is None
            else refused.inconsistency(trace.refused, trace.answer_begins, trace.vocabulary)
        )
    )


def _wrong_parameters(trace: Trace) -> str | None:
    sampling = trace.sampling
    if not (0 <= sampling.temperature < math.inf and sampling.top_k >= 0 < sampling.top_p <= 1):
        return f"no tokens can be sampled with {sampling}"
    if trace.vocabulary < 1 or trace.max_tokens < 1:
        return f"vocabulary is {trace.vocabulary} and max_tokens {trace.max_tokens}"
    return None


def _wrong_shapes(trace: Trace) -> str | None:
    n, prompts, answers = len(trace), trace.prompts, trace.answers
    if prompts < 0 or trace.ids.shape[1] < 1:
        return "prompt_begins or the heads are empty"
    shapes = {
        "categories": (prompts,),
        "questions": (prompts,),
        "answer_begins": (answers + 1,),
        "ids": (n, trace.ids.shape[1]),
        "log_masses": trace.ids.shape,
        "emitted_log_masses": (n,),
    }
    if trace.tail_log_weights is not None:
        shapes[_TAILS] = (n, 2)
    for name, shape in shapes.items():
        if getattr(trace, name).shape != shape:
            return f"{name} has shape {getattr(trace, name).shape}, not {shape}"
    for name, total, shortest in (
        ("prompt_begins", trace.prompt_tokens.shape[0], 1),
        ("answer_begins", n, 0),
    ):
        begins = getattr(trace, name)
        if begins[0] != 0 or begins[-1] != total or np.any(np.diff(begins) < shortest):
            return f"{name} does not rise from 0 to {total}"
    if answers and np.diff(trace.answer_begins).max() > trace.max_tokens:
        return f"an answer is longer than max_tokens, {trace.max_tokens}"
    return None


def _wrong_tokens(trace: Trace) -> str | None:
    array = trace.answer_prompts
    if array.size and not 0 <= array.min() <= array.max() < trace.prompts:
        return f"answer_prompts points outside 0..{trace.prompts - 1}"
    for name, least in (("prompt_tokens", 0), ("tokens", 0), ("ids", -1)):
        array = getattr(trace, name)
        if array.size and not (array.min() >= least and array.max() < trace.vocabulary):
            return f"{name} holds tokens outside the vocabulary of {trace.vocabulary}"
    return None


def _wrong_laws(trace: Trace) -> str | None:
    """Laws are sorted log probabilities of at most mass 1, padded with -1 and -inf together."""
    head, own = trace.log_masses, trace.emitted_log_masses
    if np.isnan(head).any() or np.any((trace.ids < 0) & ~np.isneginf(head)):
        return "log_masses stand where there is no token, or are no numbers"
    if np.any(head[:, 1:] > head[:, :-1]):
        return "log_masses are not sorted"
    if np.any(np.exp(head, dtype=np.float64).sum(axis=1) > 1.01) or not np.all(own <= 0):
        return "log_masses or emitted_log_masses are no log probabilities"
    tails = trace.tail_log_weights
    if tails is not None and not np.all((tails[:, 0] <= tails[:, 1]) & (tails[:, 1] < np.inf)):
        return "tail_log_weights are no bounds"
    return None


def _whole(header: dict[str, Any], name: str) -> int:
    value = header[name]
    if type(value) is not int:
        raise ValueError(name)
    return value


def _number(header: dict[str, Any], name: str) -> float:
    value = header[name]
    if type(value) not in (int, float):
        raise ValueError(name)
    return float(value)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
