"""Arrays to files and back, atomically, checked. Knows nobody; never unpickles, never evaluates
text.

A file appears under its name complete or not at all: it is written beside it under a temporary
name, flushed to the disk, then renamed. Arrays are kept as safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError, safe_open

PIECE = 1 << 20  # bytes of one write
Arrays = Mapping[str, NDArray[Any]]
Told = Callable[[int], None]  # of bytes that were just written

_NAMES = {
    "float64": "F64", "int64": "I64", "uint64": "U64", "float32": "F32", "int32": "I32",
    "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip


class CheckpointError(RuntimeError):
    """A file that is missing, damaged or of another format: which, and what is wrong."""


@dataclass(frozen=True, slots=True)
class Part:
    """What was written into one file."""

    nbytes: int
    sha256: str


def sync_folder(path: Path) -> None:
    """Flush a folder's names to the disk, where the system can."""
    if os.name != "posix":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folders(path: Path) -> None:
    """Create a folder and those above it, flushed to the disk."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        os.mkdir(folder)
        sync_folder(folder.parent)


def silent(_: int) -> None:
    """Tell nobody."""


def create(path: Path, pieces: Iterable[memoryview | bytes], told: Told = silent) -> Part:
    """Create a file, flushed to the disk. It must not be there, and is not complete before the
    return.
    """
    digest, size = hashlib.sha256(), 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    fd = os.open(path, flags, 0o644)
    try:
        for piece in pieces:
            view = memoryview(piece)
            for at in range(0, len(view), PIECE):
                part = view[at : at + PIECE]
                digest.update(part)
                size += len(part)
                while part:
                    wrote = os.write(fd, part)
                    told(wrote)
                    part = part[wrote:]
        os.fsync(fd)
    finally:
        os.close(fd)
    return Part(size, digest.hexdigest())


def temporary(path: Path) -> Path:
    """A name beside it for what is not complete."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}"


def _replace(path: Path, pieces: Iterable[memoryview | bytes], told: Told = silent) -> Part:
    work = temporary(path)
    try:
        part = create(work, pieces, told)
        os.replace(work, path)
    except BaseException:
        if os.path.lexists(work):
            os.unlink(work)
        raise
    sync_folder(path.parent)
    return part


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: it holds its old content or all of `data`."""
    _replace(path, [data])


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())


def safetensors(arrays: Arrays, facts: Mapping[str, Any]) -> list[memoryview | bytes]:
    """The bytes of a safetensors file, piece by piece: no second copy of large arrays."""
    contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    ordered = sorted(contiguous.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": {"facts": json.dumps(facts)}}
    at = 0
    for name, array in ordered:
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = [a.reshape(-1).view(np.uint8).data for _, a in ordered if a.nbytes]
    return [struct.pack("<Q", len(text)), text, *data]


def save_tensors(path: Path, arrays: Arrays, facts: Mapping[str, Any], told: Told = silent) -> Part:
    """Write one safetensors file atomically, `facts` as JSON in its metadata."""
    return _replace(path, safetensors(arrays, facts), told)


class Tensors:
    """A safetensors file of ours, opened: arrays are read when asked for. A context manager.

    facts  what it was saved with
    Raises CheckpointError for whatever is missing, damaged or not what was asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            file: Any = safe_open(path, framework="numpy")  # checks the sizes in the header
            facts = json.loads((file.metadata() or {})["facts"])
            self._file, self.names = file, list(file.keys())
        except FileNotFoundError:
            raise CheckpointError(f"{path}: there is no such file") from None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path}: damaged or not written by fdql ({error})") from None
        if not isinstance(facts, dict):
            raise CheckpointError(f"{path}: damaged, its facts are not a table")
        self.facts: dict[str, Any] = facts

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__(None, None, None)

    def read(
        self, name: str, dtype: DTypeLike | None = None, shape: tuple[int, ...] | None = None,
        start: int = 0, stop: int | None = None,
    ) -> NDArray[Any]:  # fmt: skip
        """One array, or its rows start..stop; its declared type and shape are looked at before it
        is allocated, where they are given.
        """
        try:
            part = self._file.get_slice(name)
            kind, dims = part.get_dtype(), tuple(part.get_shape())
            wanted = kind if dtype is None else _NAMES[np.dtype(dtype).name]
            asked = dims if shape is None else shape
            if (kind, dims) != (wanted, asked):
                raise CheckpointError(
                    f"{self.path}: {name} is {kind} {dims}, and {wanted} {asked} is needed"
                )
            whole = start == 0 and stop in (None, *dims[:1])
            array: NDArray[Any] = self._file.get_tensor(name) if whole else part[start:stop]
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path}: {name} cannot be read ({error})") from None
        return array


def load_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what save_tensors wrote. Raises CheckpointError."""
    with Tensors(path) as file:
        return {name: file.read(name) for name in file.names}, file.facts
