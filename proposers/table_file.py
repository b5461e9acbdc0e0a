"""The file of a STAND table: checked blocks of contexts, written whole or not at all.

Layout, little-endian (docs/tables.md):

- 16 bytes of magic, version (u32), length of the header (u32), the header (JSON, UTF-8), checksum;
- blocks: n > 0 (u32), then for n contexts ``keys`` (u64), ``used`` (u32), ``counts``, ``kept``
  (f32), ``ids`` (i32, n x E), ``probabilities`` (f32, n x E), checksum;
- the end: n = 0 (u32), all contexts (u64), checksum; nothing follows.

Every checksum (u32) is the CRC-32 of all that stands before it but the checksums, so a lost, moved
or doubled block is found like a changed byte. CRC-32 reads 200 MiB in 0.1 s on the machine of
docs/tables.md, BLAKE2b in 0.46 s; what is guarded against is damage, not forgery.

This module must not import numba: files are checked before a model is loaded, in processes that
may not have loaded it (``vllm_plugin/config.py`` says why).
"""

import contextlib
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from proposers.atomic_file import replacing

MAGIC = b"specproof table\n"
VERSION = 1
MAX_BLOCK = 1 << 16
_MAX_HEADER = 1 << 16
_BUFFER = 1 << 20
_COUNT = struct.Struct("<I")
_TOTAL = struct.Struct("<Q")


class TableFileError(ValueError):
    """A file that cannot serve as this table's; its text is one sentence."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What must agree between a file and the table that it is read into.

    ``tokenizer`` is a fingerprint of the vocabulary, or empty where none is known: then
    ``vocabulary``, the number of tokens, is all that can be compared.
    """

    order: int
    entries: int
    vocabulary: int
    tokenizer: str


class Contexts(NamedTuple):
    """n contexts with their E entries, fields as in :class:`proposers.table.TableArrays`."""

    keys: NDArray[Any]  # (n,) uint64
    used: NDArray[Any]  # (n,) uint32
    counts: NDArray[Any]  # (n,) float32
    kept: NDArray[Any]  # (n,) float32
    ids: NDArray[Any]  # (n, E) int32
    probabilities: NDArray[Any]  # (n, E) float32


_KINDS = ("<u8", "<u4", "<f4", "<f4", "<i4", "<f4")  # of Contexts, in its order


class _Sums:
    """Reads or writes pieces of a file and keeps the checksum of all of them."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sum = 0

    def write(self, data: Any) -> None:
        self.sum = zlib.crc32(data, self.sum)
        self.file.write(data)

    def seal(self) -> None:
        self.file.write(_COUNT.pack(self.sum))

    def read(self, length: int) -> bytes:
        data = self.file.read(length)
        if len(data) < length:
            raise ValueError("it ends too early")
        self.sum = zlib.crc32(data, self.sum)
        return data

    def verify(self) -> None:
        expected = self.sum
        data = self.file.read(_COUNT.size)
        if len(data) < _COUNT.size:
            raise ValueError("it ends too early")
        if _COUNT.unpack(data)[0] != expected:
            raise ValueError("a checksum is wrong")


class TableReader:
    """An open table file; a context manager.

    Parameters
    ----------
    path
        The file.
    identity
        What it must have been written for; None leaves that to the caller, who finds it in
        ``self.identity``.

    Raises
    ------
    TableFileError
        When the file cannot be read, is no table, damaged, of another version or another identity.
    """

    def __init__(self, path: Path, identity: Identity | None = None) -> None:
        self.path = path
        self.about: Mapping[str, Any] = {}
        try:
            self._file: BinaryIO = path.open("rb", buffering=_BUFFER)
        except OSError as error:
            raise TableFileError(f"{path} cannot be read: {error.strerror or error}") from None
        try:
            with self._sentences():
                self._begin()
            if identity is not None:
                self._compare(identity)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._file.close()

    def blocks(self, *, again: bool = False) -> Iterator[Contexts]:
        """All contexts, in blocks of at most ``MAX_BLOCK``, each checked before it is given out.

        The whole file has been checked when this ends. ``again`` is for a second reading of the
        same open file: it compares the checksums only.
        """
        with self._sentences():
            yield from self._blocks(again)

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except TableFileError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise TableFileError(f"{self.path} cannot be read: {reason}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise TableFileError(
                f"{self.path} is damaged: {error}; delete it for a cold start, or name another file"
            ) from None

    def _begin(self) -> None:
        sums = _Sums(self._file)
        if self._file.read(len(MAGIC)) != MAGIC:
            raise TableFileError(f"{self.path} is no table of specproof; name another file")
        sums.sum = zlib.crc32(MAGIC)
        (version,) = _COUNT.unpack(sums.read(_COUNT.size))
        if version != VERSION:
            raise TableFileError(
                f"{self.path} is a table of version {version}, but this specproof reads version "
                f"{VERSION}; name another file, or use the release that wrote it"
            )
        (length,) = _COUNT.unpack(sums.read(_COUNT.size))
        if length > _MAX_HEADER:
            raise ValueError(f"its header has {length} bytes")
        text = sums.read(length)
        sums.verify()
        header = json.loads(text)
        self.identity = Identity(**header["identity"])
        self.about = dict(header["about"])
        self._first_block = self._file.tell()
        self._header_sum = sums.sum

    def _compare(self, wanted: Identity) -> None:
        for name, option in (("order", "order"), ("entries", "entries"), ("vocabulary", None)):
            found, here = getattr(self.identity, name), getattr(wanted, name)
            if found != here:
                raise TableFileError(
                    f"{self.path} was written with {name} {found}, but {name} is {here} here; "
                    + (f"set {option} to {found} or " if option else "")
                    + "name another file"
                )
        if self.identity.tokenizer and wanted.tokenizer not in ("", self.identity.tokenizer):
            raise TableFileError(
                f"{self.path} was written for another tokenizer (fingerprint "
                f"{self.identity.tokenizer:.12}, here {wanted.tokenizer:.12}); name another file"
            )

    def _blocks(self, again: bool) -> Iterator[Contexts]:
        self._file.seek(self._first_block)
        sums, total = _Sums(self._file), 0
        sums.sum = self._header_sum
        while n := _COUNT.unpack(sums.read(_COUNT.size))[0]:
            if n > MAX_BLOCK:
                raise ValueError(f"a block has {n} contexts")
            block = self._block(sums, n)
            sums.verify()
            wrong = None if again else inconsistency(block, self.identity.vocabulary)
            if wrong:
                raise ValueError(wrong)
            total += n
            yield block
        (announced,) = _TOTAL.unpack(sums.read(_TOTAL.size))
        sums.verify()
        if announced != total:
            raise ValueError(f"it announces {announced} contexts and has {total}")
        if self._file.read(1):
            raise ValueError("something follows its end")

    def _block(self, sums: _Sums, n: int) -> Contexts:
        arrays = []
        for name, kind in zip(Contexts._fields, _KINDS, strict=True):
            shape = (n, self.identity.entries) if name in ("ids", "probabilities") else (n,)
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            arrays.append(np.frombuffer(sums.read(size), kind).reshape(shape))
        return Contexts(*arrays)


def inconsistency(block: Contexts, vocabulary: int) -> str | None:
    """What is wrong with contexts whose bytes are right, in words; None when nothing is.

    A law of a table is drawn from and verified as q, so its tokens must be distinct tokens of the
    vocabulary and its masses must be masses.
    """
    if not block.keys.all():
        return "a context has no key"
    if block.ids.min() < -1 or block.ids.max() >= vocabulary:
        return f"an entry lies outside the vocabulary of {vocabulary}"
    ordered = np.sort(block.ids, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        return "a law names a token twice"
    masses, kept = block.probabilities, block.kept
    if not (masses.min() >= 0 and masses.max() <= 1.001 and kept.min() >= 0 and kept.max() < 1.01):
        return "a law has masses outside 0..1"  # NaN fails these comparisons
    if not (block.counts.min() >= 0 and block.counts.max() < np.inf):
        return "a context's count is no count"
    return None


def check(path: Path, identity: Identity) -> int:
    """Read a whole file and return how many contexts it has.

    Raises
    ------
    TableFileError
        As :class:`TableReader`; one sentence that says what is wrong and what to do.
    """
    with TableReader(path, identity) as reader:
        return sum(block.keys.shape[0] for block in reader.blocks())


def write(
    path: Path,
    identity: Identity,
    blocks: Iterable[Contexts],
    *,
    about: Mapping[str, Any] | None = None,
    patience: float = 10.0,
) -> int:
    """Replace a table file as a whole and return how many contexts were written.

    Parameters
    ----------
    about
        What else the header should say (a model's name, a time); not compared on reading.
    patience
        Seconds to wait for another writer.

    Raises
    ------
    OSError
        As :func:`proposers.atomic_file.replacing`; the old file is then untouched.
    """
    with replacing(path, patience=patience) as file:
        return _write(file, identity, blocks, about or {})


def _write(
    file: BinaryIO,
    identity: Identity,
    blocks: Iterable[Contexts],
    about: Mapping[str, Any],
) -> int:
    header = json.dumps({"identity": asdict(identity), "about": dict(about)}).encode()
    sums = _Sums(file)
    sums.write(MAGIC + _COUNT.pack(VERSION) + _COUNT.pack(len(header)) + header)
    sums.seal()
    total = 0
    for block in blocks:
        n = block.keys.shape[0]
        if not 0 < n <= MAX_BLOCK:
            raise ValueError(f"a block has {n} contexts; it must have 1..{MAX_BLOCK}")
        sums.write(_COUNT.pack(n))
        for array, kind in zip(block, _KINDS, strict=True):
            sums.write(np.ascontiguousarray(array, kind).reshape(-1).view(np.uint8))
        sums.seal()
        total += n
    sums.write(_COUNT.pack(0) + _TOTAL.pack(total))
    sums.seal()
    return total
