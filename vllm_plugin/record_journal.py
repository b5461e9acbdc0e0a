"""What a recording has finished so far, in a folder beside its output, so that it can go on.

``trace.npz.partial/`` holds ``settings.json``, a ``sitting-N.json`` for every time the command ran,
and one trace file for each finished question. Every file appears whole or not at all, so neither a
dying server, nor a killed command, nor a full disk loses more than the questions in flight.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from theory.trace_file import TraceError, read, write
from theory.traces import Trace
from theory.whole_file import whole
from vllm_plugin.record_server import RecordError
from vllm_plugin.scrape import Counters

_SETTINGS = "settings.json"
_LOCK = "lock"


class Journal:
    """The folder of one recording, held by one process at a time.

    Raises
    ------
    RecordError
        In one sentence, when the folder belongs to a recording with other settings, is in use, or
        cannot be written; and when the output exists without a folder, so that it is complete.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.out = out
        self.folder = _folder(out)
        self.settings = json.loads(json.dumps(settings))
        refuse_complete(out)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / _LOCK).open("w")
        except OSError as error:
            raise RecordError(f"{self.folder} cannot be written: {error.strerror}") from None
        try:
            self._claim()
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Let another process go on with the folder; one without any answer is removed."""
        if not self.finished() and not list(self.folder.glob("question-*")):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def finished(self) -> dict[int, Path]:
        """The questions, by their place, whose answers are all here."""
        found = {}
        for path in self.folder.glob("question-*.npz"):
            number = path.stem.removeprefix("question-")
            if number.isdecimal():
                found[int(number)] = path
        return dict(sorted(found.items()))

    def begin(self, origin: Mapping[str, Any]) -> int:
        """Note that a sitting begins: when, by which command, on which server; its number."""
        number = len(list(self.folder.glob("sitting-*.json")))
        _write_json(self.folder / f"sitting-{number}.json", origin)
        return number

    def keep(self, number: int, trace: Trace) -> None:
        """Keep all answers to one question, with the sitting and counters in its provenance."""
        write(self.folder / f"question-{number:06d}.npz", trace)

    def assemble(self, asked: int) -> Trace | None:
        """One trace of all finished questions, in their order; None when there is none.

        A damaged file is set aside, and its question asked again by the next sitting.
        """
        parts = []
        for path in self.finished().values():
            try:
                parts.append(read(path))
            except TraceError:
                path.replace(path.with_suffix(".damaged"))
        if not parts:
            return None
        return Trace.joined(parts, self._provenance(parts, asked))

    def remove(self) -> None:
        """The recording is complete and written: the folder has done its work."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _claim(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecordError(
                f"another specproof record is writing {self.out}: wait for it, or choose another "
                "--out"
            ) from None
        path = self.folder / _SETTINGS
        if not path.exists():
            _write_json(path, self.settings)
            return
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            held = None
        if held == self.settings:
            return
        if not isinstance(held, dict):
            held = {}
        raise RecordError(
            f"{self.folder} was begun with other settings ({_differences(held, self.settings)}): "
            "repeat them to go on, delete the folder to begin anew, or choose another --out"
        )

    def _provenance(self, parts: list[Trace], asked: int) -> dict[str, Any]:
        sittings = []
        for number in range(len(list(self.folder.glob("sitting-*.json")))):
            mine = [one for one in parts if one.provenance.get("sitting") == number]
            if not mine:
                continue
            origin = json.loads((self.folder / f"sitting-{number}.json").read_text("utf-8"))
            sittings.append(
                origin
                | {
                    "questions": len(mine),
                    "tokens": sum(map(len, mine)),
                    "counters": _counted([one.provenance.get("counters") for one in mine]),
                }
            )
        return {
            "settings": self.settings,
            "asked_questions": asked,
            "complete": len(parts) == asked,
            "counters": _counted([one.provenance.get("counters") for one in parts]),
            "sittings": sittings,
        }


def refuse_complete(out: Path) -> None:
    """Raise RecordError when the output is there without a folder: nothing is left to do."""
    if out.exists() and not _folder(out).exists():
        raise RecordError(
            f"{out} exists and is complete: delete it to record it again, or choose another --out"
        )


def _folder(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def counters_of(provenance: Mapping[str, Any]) -> Counters | None:
    """The server's counters over a recording, from the provenance of its trace."""
    held = provenance.get("counters")
    if not isinstance(held, Mapping):
        return None
    known = {key: held[key] for key in Counters.__dataclass_fields__ if key in held}
    if "accepted_per_position" in known:
        known["accepted_per_position"] = tuple(known["accepted_per_position"])
    return Counters(**known)


def _counted(parts: list[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The sum of the counters that are known, with what they say; None when none is."""
    known = [one for part in parts if (one := counters_of({"counters": part})) is not None]
    if not known:
        return None
    total = Counters()
    for one in known:
        total = total + one
    return {**asdict(total), "block_efficiency": total.block_efficiency}


def _differences(held: dict[str, Any], given: dict[str, Any]) -> str:
    return "; ".join(
        f"{key} was {_short(held.get(key))} and is now {_short(given.get(key))}"
        for key in given | held
        if held.get(key) != given.get(key)
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with whole(path) as file:
        file.write(json.dumps(value, indent=1).encode())
