"""The `checkpoints` folder of a run: complete checkpoints in the order of their writing, and
`rows`, replay rows that several of them share. One writer, the trainer (or serial mode); who lets a
run go on sets aside what is broken, before there is a writer.

    checkpoints/000003-updates-771/   manifest.json and what changes all the time
    checkpoints/rows/000007           a range of rows; written once, never changed, deleted when no
                                      kept checkpoint names it
    broken-*, there and in rows       set aside; deleted when the next checkpoint is written
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fdql.checkpoint import (
    Arrays,
    CheckpointError,
    Part,
    Told,
    make_folders,
    save_tensors,
    silent,
    sync_folder,
)
from fdql.config import ConfigError
from fdql.manifest import (
    ROWS,
    FormatError,
    Manifest,
    UnreadableError,
    broken_rows,
    read_manifest,
    remove_folder,
    save_checkpoint,
    verify_checkpoint,
)

BROKEN = "broken-"
_NEVER = -float("inf")  # return of a checkpoint before the first evaluation
_NAME = re.compile(r"(\d{6,})-updates-\d+")
_ROWS = re.compile(r"\d{6,}")
# What a killed writer left, and what was set aside: complete names are never like these.
_LEFT = re.compile(rf"\.({_NAME.pattern}|{_ROWS.pattern})\.[0-9a-f]{{8}}|{BROKEN}\d{{6,}}.*")


def _number(name: str) -> int:
    return int(name.partition("-")[0])


class CheckpointFolder:
    """Checkpoints of one run, at `path`, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = path / ROWS
        self._given = 0  # number of the range written last

    def names(self) -> list[str]:
        """Complete checkpoints, oldest first. Whether they are sound says `newest`."""
        return sorted((n for n in _listdir(self.path) if _NAME.fullmatch(n)), key=_number)

    def newest(self, say: Callable[[str], None]) -> tuple[Path, Manifest] | None:
        """The newest checkpoint that loads, None when there is none. What is broken is said and set
        aside: later checkpoints, and rows of this one, which loads without them.

        Raises ConfigError when a file cannot be read, or the newest is of another format: an older
        checkpoint would then be taken although nothing is wrong with that one.
        """
        broken: list[str] = []
        for name in reversed(self.names()):
            folder = self.path / name
            try:
                manifest = verify_checkpoint(folder)
                rows = broken_rows(folder, manifest)
                if rows and len(rows) == len(manifest.shared):
                    raise CheckpointError(f"{folder}: {next(iter(rows.values()))}")
            except UnreadableError as error:
                raise ConfigError(
                    f"checkpoint {name}: {error}; make it readable, or go on without it: "
                    f"mv {folder} {self.path / (BROKEN + name)}"
                ) from None
            except FormatError as error:
                raise ConfigError(
                    f"checkpoint {name}: {error}; the version of fdql that wrote it goes on with it"
                ) from None
            except CheckpointError as error:
                say(f"checkpoint {name} is broken, the one before is taken: {error}")
                broken.append(name)
                continue
            for file, fault in rows.items():
                say(f"checkpoint {name} goes on without some rows of the replay: {fault}")
                self._set_aside(self.rows / file)
            for each in broken:
                self._set_aside(self.path / each)
            return folder, manifest
        return None

    def _set_aside(self, path: Path) -> None:
        try:
            if path.exists():
                os.rename(path, path.parent / (BROKEN + path.name))
        except OSError as error:
            raise ConfigError(
                f"{path} is broken and cannot be set aside ({error.strerror}); rm -r {path} works"
            ) from None

    def write_rows(self, arrays: Arrays, told: Told = silent) -> tuple[str, Part]:
        """Write a range of rows under a name that no other ever had. Returns name and entry."""
        make_folders(self.rows)
        taken = (n.removeprefix(BROKEN) for n in _listdir(self.rows))
        self._given = max([self._given, *(int(n) for n in taken if _ROWS.fullmatch(n))]) + 1
        name = f"{self._given:06d}"
        return name, save_tensors(self.rows / name, arrays, {}, told)

    def has_rows(self, name: str, part: Part) -> bool:
        """True while the range's file is there in its whole size."""
        try:
            return os.stat(self.rows / name).st_size == part.nbytes
        except OSError:
            return False

    def drop_rows(self, name: str) -> None:
        """Delete a range that no checkpoint names. Raises OSError."""
        os.unlink(self.rows / name)

    def write(
        self, updates: int, parts: Mapping[str, Arrays], facts: Mapping[str, Any],
        shared: Mapping[str, Part], told: Told = silent,
    ) -> Path:  # fmt: skip
        """Write a checkpoint. Raises OSError; then the ones before are as they were."""
        taken = (n.removeprefix(BROKEN) for n in _listdir(self.path))
        number = max((_number(n) for n in taken if _NAME.fullmatch(n)), default=0) + 1
        folder = self.path / f"{number:06d}-updates-{updates}"
        save_checkpoint(folder, parts, facts, shared, told)
        return folder

    def prune(self, keep: int, used: Iterable[str]) -> set[str]:
        """Delete all checkpoints but the newest `keep` and the first with the best evaluation, then
        rows that none of those names and that are not `used`, then what a killed writer left and
        what was set aside; no file that is not ours.

        Returns the rows that the kept checkpoints name. Raises OSError when something could not be
        deleted, the rest is; and UnreadableError before anything is deleted.
        """
        names = self.names()
        manifests = {name: self._manifest(name) for name in names}
        returns = [(_return_of(manifest), name) for name, manifest in manifests.items()]
        best = max((r for r, _ in returns), default=_NEVER)
        kept = {*names[-keep:], *[n for r, n in returns if r == best > _NEVER][:1]}
        named = {row for name in kept if (m := manifests[name]) for row in m.shared}
        stays = named | set(used)
        gone = [self.path / n for n in names if n not in kept]
        gone += [self.rows / n for n in _listdir(self.rows) if _ROWS.fullmatch(n)]
        gone += [p / n for p in (self.path, self.rows) for n in _listdir(p) if _LEFT.fullmatch(n)]
        failure: OSError | None = None
        for path in gone:
            if path.parent == self.rows and path.name in stays:
                continue
            try:
                remove_folder(path) if path.is_dir() else os.unlink(path)
            except OSError as error:
                failure = failure or error
        if self.path.is_dir():
            sync_folder(self.path)
        if failure:
            raise failure
        return named

    def _manifest(self, name: str) -> Manifest | None:
        """None: broken, nobody can load it and its rows are not needed."""
        try:
            return read_manifest(self.path / name)
        except UnreadableError:
            raise
        except CheckpointError:
            return None


def _listdir(path: Path) -> list[str]:
    return os.listdir(path) if path.is_dir() else []


def _return_of(manifest: Manifest | None) -> float:
    value = manifest.facts.get("best_return") if manifest else None
    return float(value) if isinstance(value, int | float) else _NEVER
