"""Trace files: one .npz without pickles, a JSON header among its arrays (docs/traces.md)."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from theory.traces import Sampling, Trace

FORMAT = "specproof-trace"
VERSION = 2
_ARRAYS = {
    "prompt_tokens": np.int32,
    "prompt_begins": np.int64,
    "categories": np.str_,
    "questions": np.str_,
    "answer_prompts": np.int64,
    "answer_begins": np.int64,
    "tokens": np.int32,
    "ids": np.int32,
    "log_masses": np.float32,
    "emitted_log_masses": np.float32,
}
_DERIVED = {"emitted_p": np.float32, "kept": np.float32}


class TraceError(ValueError):
    """A file that is no trace, or a damaged or newer one, in one sentence."""


def write(path: Path, trace: Trace) -> None:
    """Write a trace; the file appears whole or not at all."""
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
    arrays: dict[str, NDArray[Any]] = {name: getattr(trace, name) for name in _ARRAYS}
    arrays |= {"emitted_p": trace.processed.emitted, "kept": trace.processed.kept}
    kinds = _ARRAYS | _DERIVED
    named: dict[str, Any] = {name: np.asarray(array, kinds[name]) for name, array in arrays.items()}
    named["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **named)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> Trace:
    """The trace in a file.

    Raises
    ------
    TraceError
        When the file cannot be read, is damaged, of another kind, or of a newer version.
    """
    try:
        header, arrays = _load(path)
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise TraceError(f"{path} is no trace, or is damaged: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise TraceError(f"{path} is no trace of specproof (its header says {header!r:.80})")
    if header.get("version") != VERSION:
        raise TraceError(
            f"{path} is a trace of version {header.get('version')}; this specproof reads version "
            f"{VERSION}: record it again, or use the release that wrote it"
        )
    try:
        trace = Trace(
            vocabulary=int(header["vocabulary"]),
            sampling=Sampling(
                float(header["temperature"]), int(header["top_k"]), float(header["top_p"])
            ),
            max_tokens=int(header["max_tokens"]),
            tokenizer=str(header["tokenizer"]),
            provenance=dict(header["provenance"]),
            **arrays,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(f"{path} is damaged: its header lacks or bends {error}") from None
    problem = inconsistency(trace)
    if problem:
        raise TraceError(f"{path} is damaged: {problem}")
    return trace


def _load(path: Path) -> tuple[Any, dict[str, Any]]:
    with path.open("rb") as file:
        if not file.read(2) == b"PK":
            raise ValueError("it is not a .npz file")
    with np.load(path, allow_pickle=False) as held:
        header = json.loads(held["header"].tobytes().decode())
        if not isinstance(header, dict) or header.get("version") != VERSION:
            return header, {}
        arrays = {}
        for name, kind in _ARRAYS.items():
            array = held[name]
            if array.dtype != kind and not (kind is np.str_ and array.dtype.kind == "U"):
                raise ValueError(f"{name} is {array.dtype}, not {np.dtype(kind)}")
            arrays[name] = array
    with ZipFile(path) as archive:
        bad = archive.testzip()
        if bad is not None:
            raise ValueError(f"the checksum of {bad} is wrong")
    return header, arrays


def inconsistency(trace: Trace) -> str | None:
    """What is wrong with the arrays of a trace, in words; None when nothing is."""
    n, prompts, answers = len(trace), trace.prompts, trace.answers
    shapes = {
        "prompt_begins": (prompts + 1,),
        "categories": (prompts,),
        "questions": (prompts,),
        "answer_begins": (answers + 1,),
        "ids": (n, trace.ids.shape[-1]),
        "log_masses": trace.ids.shape,
        "emitted_log_masses": (n,),
    }
    for name, shape in shapes.items():
        if getattr(trace, name).shape != shape:
            return f"{name} has shape {getattr(trace, name).shape}, not {shape}"
    for name, total in (("prompt_begins", trace.prompt_tokens.shape[0]), ("answer_begins", n)):
        begins = getattr(trace, name)
        if begins[0] != 0 or begins[-1] != total or np.any(np.diff(begins) < 0):
            return f"{name} does not rise from 0 to {total}"
    for name, limit in (("answer_prompts", prompts),):
        array = getattr(trace, name)
        if array.size and not (array.min() >= 0 and array.max() < limit):
            return f"{name} points outside 0..{limit - 1}"
    for name, least in (("prompt_tokens", 0), ("tokens", 0), ("ids", -1)):
        array = getattr(trace, name)
        if array.size and not (array.min() >= least and array.max() < trace.vocabulary):
            return f"{name} holds tokens outside the vocabulary of {trace.vocabulary}"
    head = trace.log_masses
    if np.isnan(head).any() or (head.size and head.max() > 1e-3):
        return "log_masses are no log probabilities"
    own = trace.emitted_log_masses
    if np.isnan(own).any() or (own.size and own.max() > 1e-3):
        return "emitted_log_masses are no log probabilities"
    return None
