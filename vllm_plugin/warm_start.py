"""The file of ``table_path``, before a model is loaded: may this server read and write it?

Runs in every process that makes an engine's configuration, so it must not import numba
(``config.py`` says why); what reads and writes tables while serving is ``table_keeper.py``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from proposers import table_file
from proposers.table_file import Identity, TableFileError
from vllm_plugin import hooks
from vllm_plugin.config import SECTION, ConfigurationError, Options

GRACE_SECONDS = 15.0  # 256 MiB take half a second; a busy disk may take its time
_KEY = f"--additional-config: {SECTION}.table_path"


def table_path(options: Options) -> Path | None:
    """The file that a server was given, or None."""
    return None if options.table_path is None else Path(options.table_path).expanduser()


def fingerprint(vocabulary: Mapping[str, int]) -> str:
    """The SHA-256 of a tokenizer's vocabulary: the same for equal tokens with equal ids."""
    entries = sorted((index, token) for token, index in vocabulary.items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def identity(model_config: Any, options: Options) -> Identity:
    """What the table of an engine with this configuration may be exchanged with.

    The tokenizer is vLLM's cached one; with ``skip_tokenizer_init`` there is none, and only the
    number of tokens is left to compare.
    """
    tokenizer = ""
    if not model_config.skip_tokenizer_init:
        from vllm.tokenizers.registry import cached_tokenizer_from_config

        tokenizer = fingerprint(cached_tokenizer_from_config(model_config).get_vocab())
    return Identity(
        order=options.order,
        entries=options.entries,
        vocabulary=model_config.get_vocab_size(),
        tokenizer=tokenizer,
    )


def refuse_without_table(proposer: str, options: Options) -> None:
    """Refuse a path that nothing would be read from or written to."""
    if options.table_path is None:
        return
    chooses = proposer == "vllm_plugin.Chooser" and "stand" in options.members
    if proposer != "vllm_plugin.Stand" and not chooses:
        raise ConfigurationError(
            f"{_KEY} has no effect with {proposer}, which keeps no STAND table here; "
            "drop it or name vllm_plugin.Stand, or vllm_plugin.Chooser with 'stand' among members"
        )
    wrong = next((found for hook in hooks.TABLES if (found := hooks.problem(hook))), None)
    if wrong:
        raise ConfigurationError(f"{_KEY} cannot be served, drop it: {wrong}")


def check(model_config: Any, options: Options) -> None:
    """Refuse a file that cannot be this engine's table, and a folder that cannot be written.

    Raises
    ------
    ConfigurationError
        One sentence that names the file, what is wrong and what to do.
    """
    path = table_path(options)
    if path is None:
        return
    try:
        exists = path.exists()
        if exists and not path.is_file():
            raise ConfigurationError(f"{_KEY} is {path}, which is no file; name a file")
        _try_to_write(path.resolve())
        if exists:
            table_file.check(path, identity(model_config, options))
    except TableFileError as error:
        raise ConfigurationError(f"{_KEY}: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        if isinstance(error, ConfigurationError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"{_KEY} is {str(path)!r}, but there: {reason}") from None


def _try_to_write(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigurationError(f"{_KEY} is {path}, but the folder {path.parent} does not exist")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".trial")
        os.close(handle)
        os.unlink(name)
        with FileLock(f"{path}.lock", timeout=0):
            pass
    except Timeout:
        return  # another server is saving: it can be written
    except OSError as error:
        raise ConfigurationError(
            f"{_KEY} is {path}, but the folder {path.parent} cannot be written: "
            f"{error.strerror or error}"
        ) from None


def wait_for_saving() -> None:
    """Give the engines of this process time to save before they are killed.

    ``vllm serve`` kills its engine process right after asking it to end, unless a
    ``--shutdown-timeout`` was given.
    """
    hooks.install(hooks.ENGINE_GRACE, _patient)


def _patient(stock: Any) -> Any:
    @functools.wraps(stock)
    def get_engine_process_shutdown_timeout(
        request_timeout: float | None, process_timeout: float | None
    ) -> float | None:
        seconds = stock(request_timeout, process_timeout)
        if request_timeout:  # the engine may answer requests until then, and must not any longer
            return seconds
        return GRACE_SECONDS if seconds is None else max(seconds, GRACE_SECONDS)

    return get_engine_process_shutdown_timeout
