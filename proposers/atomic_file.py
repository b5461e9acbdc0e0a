"""A file that is replaced as a whole, by one writer at a time."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

_BUFFER = 1 << 20


@contextlib.contextmanager
def replacing(path: Path, *, patience: float) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of ``path`` when the block ends without an error.

    It is a temporary file of the same folder, flushed to the disk, then renamed: whoever reads
    ``path``, at any moment and after any crash, finds the old file or the new one. Writers take
    turns by a lock on ``<path>.lock``, which the kernel releases when its holder dies; the last one
    wins, whole. What killed writers left in the folder is removed by the next one. The file can be
    read by its owner only. A link keeps pointing to the file that is replaced.

    Parameters
    ----------
    patience
        Seconds to wait for another writer.

    Raises
    ------
    TimeoutError
        When another writer does not end within ``patience``.
    OSError
        When the folder or the disk refuses; the old file is then untouched.
    """
    path = path.resolve()
    lock = FileLock(f"{path}.lock", timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise TimeoutError(f"another server has been writing {path} for {patience:g} s") from None
    try:
        with _partial(path) as file:
            yield file
    finally:
        lock.release()


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[BinaryIO]:
    prefix, suffix = f".{path.name}.", ".partial"
    for left in path.parent.iterdir():
        if left.name.startswith(prefix) and left.name.endswith(suffix):
            left.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb", buffering=_BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename too
    finally:
        os.close(folder)
