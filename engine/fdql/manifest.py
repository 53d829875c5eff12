"""One checkpoint: a folder of safetensors files with a manifest of what it is made of, also of
files in `rows` beside it that it shares with others. checkpoint_folder.py has all of a run.

The folder appears under its name complete or not at all. The manifest holds size and SHA-256 of
every file, and a SHA-256 of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdql.checkpoint import (
    PIECE,
    Arrays,
    CheckpointError,
    Part,
    Told,
    create,
    make_folders,
    safetensors,
    silent,
    sync_folder,
    temporary,
)

# 1: the learner's state alone; 2: the manifest had no checksum of its own; 3: that did not cover
# this number, and a lane had one reward sum.
FORMAT = 5
MANIFEST = "manifest.json"
ROWS = "rows"


class UnreadableError(CheckpointError):
    """A file that is there and cannot be read, for want of a permission or by a fault of the disk:
    whether it is damaged is not known.
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: cannot be read ({why})")
        self.path = path


class FormatError(CheckpointError):
    """A checkpoint of another version of fdql."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is made of.

    facts   counters, versions and whatever else is not an array
    parts   file in the checkpoint's folder -> size and checksum
    shared  the same of files in `rows` beside the checkpoints
    where   its folder, for what is said of it
    """

    facts: dict[str, Any]
    parts: dict[str, Part]
    shared: dict[str, Part]
    where: str = "checkpoint"


def save_checkpoint(
    folder: Path, parts: Mapping[str, Arrays], facts: Mapping[str, Any],
    shared: Mapping[str, Part] | None = None, told: Told = silent,
) -> None:  # fmt: skip
    """Write a checkpoint folder atomically, one safetensors file for each of `parts`. Raises
    FileExistsError when the folder is there already.
    """
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists; checkpoints are never overwritten")
    make_folders(folder.parent)
    work = temporary(folder)
    os.mkdir(work)
    try:
        listed = {}
        for name, arrays in parts.items():
            file = f"{name}.safetensors"
            listed[file] = create(work / file, safetensors(arrays, {}), told)
        content = {"facts": dict(facts), "files": _listed(listed), "shared": _listed(shared or {})}
        manifest = {"format": FORMAT, "sha256": _digest(content), **content}
        create(work / MANIFEST, [(json.dumps(manifest, indent=1) + "\n").encode()])
        sync_folder(work)
        os.rename(work, folder)
    except BaseException:
        if os.path.lexists(work):
            remove_folder(work)
        raise
    sync_folder(folder.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder of files, its manifest first: half of it is never taken for a checkpoint."""
    names = sorted(os.listdir(path), key=lambda name: name != MANIFEST)
    for name in names:
        os.unlink(path / name)
    os.rmdir(path)


def _listed(parts: Mapping[str, Part]) -> dict[str, Any]:
    return {name: {"bytes": p.nbytes, "sha256": p.sha256} for name, p in parts.items()}


def _digest(content: Mapping[str, Any]) -> str:
    """Of the text that format and content are as JSON: the same before it was written and after."""
    return hashlib.sha256(json.dumps({"format": FORMAT} | dict(content)).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone. Raises CheckpointError, UnreadableError, FormatError: of another format
    is one whose checksum is not what this format's would be. One that fits has a damaged number.
    """
    damaged = f"{folder}: its manifest is missing or damaged"
    try:
        values = json.loads(_read(folder / MANIFEST).decode())
        content = {key: values.get(key) for key in ("facts", "files", "shared")}
        fits = _digest(content) == values.get("sha256")
        if values["format"] != FORMAT:
            if fits:
                raise CheckpointError(f"{damaged} (its format is another, its content is not)")
            raise FormatError(
                f"{folder}: format {values['format']!r}, this version reads format {FORMAT}"
            )
        if not fits:
            raise CheckpointError(f"{damaged} (its checksum is another)")
        files, shared = (
            {str(k): Part(int(v["bytes"]), str(v["sha256"])) for k, v in values[key].items()}
            for key in ("files", "shared")
        )
    except (
        ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{damaged} ({error})") from None
    if not isinstance(content["facts"], dict):
        raise CheckpointError(damaged)
    for name in (*files, *shared):
        if Path(name).name != name:
            raise CheckpointError(f"{folder}: its manifest names a file elsewhere, {name!r}")
    return Manifest(content["facts"], files, shared, str(folder))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _told(path, error) from None


def _told(path: Path, error: OSError) -> CheckpointError:
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return CheckpointError(f"{path}: missing ({error.strerror})")
    return UnreadableError(path, str(error.strerror))


def verify(path: Path, part: Part) -> None:
    """CheckpointError unless the file has the size and the checksum that a manifest says;
    UnreadableError when that cannot be known.
    """
    try:
        if path.stat().st_size != part.nbytes:
            raise CheckpointError(f"{path}: not the {part.nbytes} bytes that the manifest says")
        digest = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except OSError as error:
        raise _told(path, error) from None
    if digest.hexdigest() != part.sha256:
        raise CheckpointError(f"{path}: its checksum is not the manifest's")


def verify_checkpoint(folder: Path) -> Manifest:
    """Read every file of a checkpoint's own and compare it with the manifest; not the rows, without
    some of which it still loads. Raises CheckpointError, UnreadableError, FormatError.
    """
    manifest = read_manifest(folder)
    for name, part in manifest.parts.items():
        verify(folder / name, part)
    return manifest


def broken_rows(folder: Path, manifest: Manifest) -> dict[str, CheckpointError]:
    """Files of rows that are not as the checkpoint's manifest says, and what is wrong. Raises
    UnreadableError.
    """
    found = {}
    for name, part in manifest.shared.items():
        try:
            verify(folder.parent / ROWS / name, part)
        except UnreadableError:
            raise
        except CheckpointError as error:
            found[name] = error
    return found
