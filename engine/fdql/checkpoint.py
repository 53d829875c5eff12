"""Arrays to files and back, atomically, checked. Knows nobody; never unpickles, never evaluates
text.

A file or folder appears under its name complete or not at all: it is written beside it under a
temporary name, flushed to the disk, then renamed. A checkpoint is a folder of safetensors and a
manifest with the size and SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

FORMAT = 1
Arrays = Mapping[str, NDArray[Any]]


class CheckpointError(RuntimeError):
    """A file that is missing, damaged or of another format: which, and what is wrong."""


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: it holds its old content or all of `data`."""
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if os.name == "posix":
        _sync(path.parent)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())


def save_tensors(path: Path, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Write one safetensors file atomically, `facts` as JSON in its metadata."""
    contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    write_bytes(path, to_safetensors(contiguous, metadata={"facts": json.dumps(facts)}))


def load_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what save_tensors wrote. Raises CheckpointError."""
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged or not written by fdql ({error})") from None
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path}: damaged, its facts are not a table")
    return arrays, facts


def save_checkpoint(folder: Path, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Write a checkpoint folder atomically. Raises FileExistsError when the folder is there
    already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; checkpoints are never overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_tensors(work / "learner.safetensors", arrays, {})
        files = {}
        for part in sorted(work.iterdir()):
            data = part.read_bytes()
            files[part.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        write_json(work / "manifest.json", {"format": FORMAT, "facts": dict(facts), "files": files})
        os.rename(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if os.name == "posix":
        _sync(folder.parent)


def load_checkpoint(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a checkpoint folder, sizes and checksums verified. Raises CheckpointError."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        files, facts, form = manifest["files"], manifest["facts"], manifest["format"]
        listed = {str(k): (int(v["bytes"]), str(v["sha256"])) for k, v in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: its manifest is missing or damaged ({error})") from None
    if form != FORMAT:
        raise CheckpointError(f"{folder}: format {form!r}, this version reads format {FORMAT}")
    if not isinstance(facts, dict):
        raise CheckpointError(f"{folder}: its manifest is damaged")
    arrays: dict[str, NDArray[Any]] = {}
    for name, (size, digest) in listed.items():
        part = folder / name
        if Path(name).name != name or not part.is_file() or part.stat().st_size != size:
            raise CheckpointError(
                f"{part}: missing, or not the {size} bytes that the manifest says"
            )
        if hashlib.sha256(part.read_bytes()).hexdigest() != digest:
            raise CheckpointError(f"{part}: its checksum is not the manifest's")
        arrays |= load_tensors(part)[0]
    return arrays, facts
