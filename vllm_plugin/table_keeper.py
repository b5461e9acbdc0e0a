"""A STAND table between two lives of a server: read at the start, saved in between and at the end.

Lives in the process of the model runner. Saving goes through ``proposers.table_store``, in a thread
of its own while requests are served: the engine waits for the copy of one slice at most.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from proposers import StandDrafter, StandTable
from proposers.table_file import Identity, TableFileError
from proposers.table_store import BREATH, load, save
from vllm_plugin import __version__, hooks, metrics, warm_start
from vllm_plugin.config import ConfigurationError, Options

_LAST_PATIENCE = 5.0  # seconds that the last save waits for another server's
_keepers: weakref.WeakSet[TableKeeper] = weakref.WeakSet()


class TableKeeper:
    """Reads a table's file, if there is one, and saves the table into it.

    Parameters
    ----------
    table
        An empty table.
    path
        Its file; a missing one means a cold start.
    identity
        What the file must have been written for.
    minutes
        Time between two saves; 0 saves only in :meth:`close`.
    about
        What the header shall say besides.

    Raises
    ------
    ConfigurationError
        When the file is not this table's, in one sentence.
    """

    def __init__(
        self,
        table: StandTable,
        path: Path,
        identity: Identity,
        *,
        minutes: float,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.table, self.path, self.identity = table, path, identity
        self._about = dict(about or {})
        self._seconds = minutes * 60
        self._ending = threading.Event()
        self._saving = threading.Lock()
        if path.exists():
            self._load()
        else:
            metrics.log().info("specproof: no table at %s yet, so this is a cold start", path)
        self._saved = self._ticks()
        _keepers.add(self)
        self._thread: threading.Thread | None = None
        if self._seconds:
            self._thread = threading.Thread(
                target=self._save_now_and_then, name="specproof-table", daemon=True
            )
            self._thread.start()

    def save(self, *, at_the_end: bool = False) -> bool:
        """Save the table if it learned anything since the last time; says whether it was saved.

        What goes wrong is logged and counted, and leaves the old file: an engine does not end for
        want of a warm start.
        """
        with self._saving:
            ticks = self._ticks()
            if ticks == self._saved:
                return False
            now = datetime.now(UTC).isoformat(timespec="seconds")
            about = self._about | {"saved": now, "at_the_end": at_the_end}
            began = time.perf_counter()
            try:
                contexts = save(
                    self.table, self.path, self.identity,
                    about=about,
                    patience=_LAST_PATIENCE if at_the_end else 0.0,
                    breath=0.0 if at_the_end else BREATH,
                )  # fmt: skip
            except OSError as error:
                metrics.log().warning("specproof: table not saved to %s: %s", self.path, error)
                metrics.count("table_saves", "failed")
                return False
            self._saved = ticks
            metrics.count("table_saves", "saved")
            metrics.log().info(
                "specproof: table of %d contexts saved to %s in %.1f s",
                contexts, self.path, time.perf_counter() - began,
            )  # fmt: skip
            return True

    def close(self) -> None:
        """Save for the last time; safe to repeat."""
        if not self._ending.is_set():
            self._ending.set()
            self.save(at_the_end=True)

    def _ticks(self) -> int:
        return int(self.table.arrays.clock[0])

    def _load(self) -> None:
        try:
            taken, found = load(self.table, self.path, self.identity)
        except TableFileError as error:
            raise ConfigurationError(f"specproof refuses to start: {error}") from None
        metrics.log().info(
            "specproof: warm start with %d of %d contexts of %s", taken, found, self.path
        )

    def _save_now_and_then(self) -> None:
        while not self._ending.wait(self._seconds):
            self.save()


def keep(drafter: Any, options: Options, vllm_config: Any) -> TableKeeper | None:
    """The keeper of a drafter's table in this engine; None when no file was asked for."""
    path = warm_start.table_path(options)
    if path is None:
        return None
    drafters = (drafter, *getattr(drafter, "members", ()))
    table = next((d.table for d in drafters if isinstance(d, StandDrafter)), None)
    if table is None:
        raise ConfigurationError(f"table_path is {path}, but this drafter keeps no STAND table")
    keeper = TableKeeper(
        table,
        path,
        warm_start.identity(vllm_config.model_config, options),
        minutes=options.table_save_minutes,
        about={"model": vllm_config.model_config.model, "specproof": __version__},
    )
    hooks.install(hooks.RUNNER_SHUTDOWN, _saving_first)
    # Only where the engine core runs in the runner's process (one GPU) is the loop there to hook.
    if hooks.loaded(hooks.ENGINE_SHUTDOWN):
        hooks.install(hooks.ENGINE_SHUTDOWN, _saving_before_the_end)
    return keeper


def _saving_first(stock: Any) -> Any:
    @functools.wraps(stock)
    def shutdown(self: Any) -> None:
        keeper = getattr(getattr(self, "drafter", None), "keeper", None)
        if isinstance(keeper, TableKeeper):
            keeper.close()
        stock(self)

    return shutdown


def _saving_before_the_end(stock: Any) -> Any:
    @functools.wraps(stock)
    def _handle_shutdown(self: Any) -> bool:
        goes_on: bool = stock(self)
        if not goes_on:
            for keeper in list(_keepers):
                keeper.close()
        return goes_on

    return _handle_shutdown
