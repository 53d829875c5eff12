"""Arrays to files and back, atomically, checked. Knows nobody; never unpickles, never evaluates
text.

A file or folder appears under its name complete or not at all: it is written beside it under a
temporary name, flushed to the disk, then renamed. Arrays are kept as safetensors. A checkpoint is a
folder of them with a manifest that holds size and SHA-256 of every file it is made of, also of
files that it shares with other checkpoints (checkpoint_folder.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError, safe_open

FORMAT = 2  # 1: the learner's state alone
MANIFEST = "manifest.json"
PIECE = 1 << 20  # bytes of one write
Arrays = Mapping[str, NDArray[Any]]

_NAMES = {
    "float64": "F64", "int64": "I64", "uint64": "U64", "float32": "F32", "int32": "I32",
    "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip


class CheckpointError(RuntimeError):
    """A file that is missing, damaged or of another format: which, and what is wrong."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a checkpoint as its manifest lists it."""

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


def remove_folder(path: Path) -> None:
    """Remove a folder of files, its manifest first: half of it is never taken for a checkpoint."""
    names = sorted(os.listdir(path), key=lambda name: name != MANIFEST)
    for name in names:
        os.unlink(path / name)
    os.rmdir(path)


def _write(path: Path, pieces: Iterable[memoryview | bytes]) -> Part:
    """Create a file, flushed to the disk."""
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
                    part = part[os.write(fd, part) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    return Part(size, digest.hexdigest())


def _replace(path: Path, pieces: Iterable[memoryview | bytes]) -> Part:
    work = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        part = _write(work, pieces)
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


def _safetensors(arrays: Arrays, facts: Mapping[str, Any]) -> list[memoryview | bytes]:
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


def save_tensors(path: Path, arrays: Arrays, facts: Mapping[str, Any]) -> Part:
    """Write one safetensors file atomically, `facts` as JSON in its metadata."""
    return _replace(path, _safetensors(arrays, facts))


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


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is made of.

    facts   counters, versions and whatever else is not an array
    parts   file in the checkpoint's folder -> size and checksum
    shared  the same of files in `rows` beside the checkpoints
    """

    facts: dict[str, Any]
    parts: dict[str, Part]
    shared: dict[str, Part]


def save_checkpoint(
    folder: Path, parts: Mapping[str, Arrays], facts: Mapping[str, Any],
    shared: Mapping[str, Part] | None = None,
) -> None:  # fmt: skip
    """Write a checkpoint folder atomically, one safetensors file for each of `parts`. Raises
    FileExistsError when the folder is there already.
    """
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists; checkpoints are never overwritten")
    make_folders(folder.parent)
    work = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    os.mkdir(work)
    try:
        listed = {}
        for name, arrays in parts.items():
            file = f"{name}.safetensors"
            listed[file] = _write(work / file, _safetensors(arrays, {}))
        manifest = {
            "format": FORMAT,
            "facts": dict(facts),
            "files": _listed(listed),
            "shared": _listed(shared or {}),
        }
        _write(work / MANIFEST, [(json.dumps(manifest, indent=1) + "\n").encode()])
        sync_folder(work)
        os.rename(work, folder)
    except BaseException:
        if os.path.lexists(work):
            remove_folder(work)
        raise
    sync_folder(folder.parent)


def make_folders(path: Path) -> None:
    """Create a folder and those above it, flushed to the disk."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        os.mkdir(folder)
        sync_folder(folder.parent)


def _listed(parts: Mapping[str, Part]) -> dict[str, Any]:
    return {name: {"bytes": p.nbytes, "sha256": p.sha256} for name, p in parts.items()}


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone. Raises CheckpointError."""
    try:
        values = json.loads((folder / MANIFEST).read_text())
        form, facts = values["format"], values["facts"]
        if form != FORMAT:
            raise CheckpointError(f"{folder}: format {form!r}, this version reads format {FORMAT}")
        files, shared = (
            {str(k): Part(int(v["bytes"]), str(v["sha256"])) for k, v in values[key].items()}
            for key in ("files", "shared")
        )
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{folder}: its manifest is missing or damaged ({error})") from None
    if not isinstance(facts, dict):
        raise CheckpointError(f"{folder}: its manifest is damaged")
    return Manifest(facts, files, shared)


def verify(path: Path, part: Part) -> None:
    """CheckpointError unless the file has the size and the checksum that a manifest says."""
    try:
        if path.stat().st_size != part.nbytes:
            raise CheckpointError(
                f"{path}: missing, or not the {part.nbytes} bytes that the manifest says"
            )
        digest = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except OSError as error:
        raise CheckpointError(f"{path}: missing or unreadable ({error.strerror})") from None
    if digest.hexdigest() != part.sha256:
        raise CheckpointError(f"{path}: its checksum is not the manifest's")


def verify_checkpoint(folder: Path) -> Manifest:
    """Read every file of a checkpoint and compare it with the manifest. Raises CheckpointError."""
    manifest = read_manifest(folder)
    rows = folder.parent / "rows"
    for place, parts in ((folder, manifest.parts), (rows, manifest.shared)):
        for name, part in parts.items():
            if Path(name).name != name:
                raise CheckpointError(f"{folder}: its manifest names a file elsewhere, {name!r}")
            verify(place / name, part)
    return manifest
