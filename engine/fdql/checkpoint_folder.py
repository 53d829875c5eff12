"""The `checkpoints` folder of a run: complete checkpoints in the order of their writing, and
`rows`, replay rows that several of them share. One writer, the trainer (or serial mode); who lets a
run go on sets aside what is broken, before there is a writer and when nothing can be refused.

    checkpoints/000003-updates-771/   manifest.json and what changes all the time
    checkpoints/rows/000007           a range of rows; written once, never changed, deleted when no
                                      kept checkpoint names it
    broken-*, there and in rows       set aside; deleted when the next checkpoint is written
    *.unreadable, there and in rows   set aside by the user, as an error message says; they stay
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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

BROKEN, UNREADABLE = "broken-", ".unreadable"
_NEVER = -float("inf")  # return of a checkpoint before the first evaluation
_NAME = re.compile(r"(\d{6,})-updates-\d+")
_ROWS = re.compile(r"\d{6,}")
# What a killed writer left, and what was set aside: complete names are never like these.
_LEFT = re.compile(rf"\.({_NAME.pattern}|{_ROWS.pattern})\.[0-9a-f]{{8}}|{BROKEN}\d{{6,}}.*")


class CannotGoOn(ConfigError):
    """This run cannot go on, with these settings or at all."""


class Found(NamedTuple):
    """A checkpoint that loads; `broken` is to be set aside before a run goes on from it."""

    folder: Path
    manifest: Manifest
    broken: list[Path]


def set_aside(path: Path) -> None:
    """Rename what is broken. Raises CannotGoOn."""
    try:
        if path.exists():
            os.rename(path, path.parent / (BROKEN + path.name))
    except OSError as error:
        raise CannotGoOn(
            f"{path} is broken and cannot be set aside ({error.strerror}); rm -r {path} works"
        ) from None


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _highest(path: Path, pattern: re.Pattern[str]) -> int:
    """The highest number that a name there has or had, 0 without one."""
    names = (n.removeprefix(BROKEN).removesuffix(UNREADABLE) for n in _listdir(path))
    return max((_number(n) for n in names if pattern.fullmatch(n)), default=0)


class CheckpointFolder:
    """Checkpoints of one run, at `path`, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = path / ROWS
        self._given = 0  # number of the range written last
        self._own = 0  # number of the first range written here; 0: none was
        self._known: dict[str, Manifest] = {}  # as far as prune needs it: read, or written here

    def names(self) -> list[str]:
        """Complete checkpoints, oldest first. Whether they are sound says `newest`."""
        return sorted((n for n in _listdir(self.path) if _NAME.fullmatch(n)), key=_number)

    def newest(self, say: Callable[[str], None]) -> Found | None:
        """The newest checkpoint that loads, None when there is none. What is broken is said: later
        checkpoints, and rows of this one, which loads once they are set aside.

        Raises CannotGoOn when a file cannot be read, or the newest is of another format: an older
        checkpoint would then be taken although nothing is wrong with that one.
        """
        broken: list[Path] = []
        for name in reversed(self.names()):
            folder = self.path / name
            try:
                manifest = verify_checkpoint(folder)
                rows = broken_rows(folder, manifest)
                if rows and len(rows) == len(manifest.shared):
                    raise CheckpointError(f"{folder}: {next(iter(rows.values()))}")
            except UnreadableError as error:
                path = error.path if error.path.parent == self.rows else folder
                raise CannotGoOn(
                    f"checkpoint {name}: {error}; make it readable, or go on without "
                    f"{'these rows' if path == error.path else 'it'}: mv {path} {path}{UNREADABLE}"
                ) from None
            except FormatError as error:
                raise CannotGoOn(
                    f"checkpoint {name}: {error}; the version of fdql that wrote it goes on with it"
                ) from None
            except CheckpointError as error:
                say(f"checkpoint {name} is broken, the one before is taken: {error}")
                broken.append(folder)
                continue
            for fault in rows.values():
                say(f"checkpoint {name} goes on without some rows of the replay: {fault}")
            return Found(folder, manifest, [*broken, *(self.rows / file for file in rows)])
        return None

    def write_rows(self, arrays: Arrays, told: Told = silent) -> tuple[str, Part]:
        """Write a range of rows under a name that no other ever had. Returns name and entry."""
        make_folders(self.rows)
        self._given = max(self._given, _highest(self.rows, _ROWS)) + 1
        self._own = self._own or self._given
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
        folder = self.path / f"{_highest(self.path, _NAME) + 1:06d}-updates-{updates}"
        # Before: what comes after its rename may fail, and then it is there.
        self._known[folder.name] = Manifest(dict(facts), {}, dict(shared), str(folder))
        save_checkpoint(folder, parts, facts, shared, told)
        return folder

    def prune(self, keep: int, used: Iterable[str]) -> set[str]:
        """Delete all checkpoints but the newest `keep` and the first with the best evaluation, then
        rows that none of those names and that are not `used`, then what a killed writer left and
        what was set aside; no file that is not ours.

        Returns the rows that the kept checkpoints name. Raises OSError when something could not be
        deleted, and UnreadableError for a checkpoint whose manifest could not be read: it stays,
        and so do the rows that it may name, those from before the first that was written here. The
        rest is deleted then too.
        """
        failure: OSError | UnreadableError | None = None
        manifests: dict[str, Manifest | None] = {}
        for name in self.names():
            try:
                manifests[name] = self._known.get(name) or self._manifest(name)
            except UnreadableError as error:
                failure = failure or error
        returns = [(_return_of(manifest), name) for name, manifest in manifests.items()]
        best = max((r for r, _ in returns), default=_NEVER)
        names = list(manifests)
        kept = {*names[-keep:], *[n for r, n in returns if r == best > _NEVER][:1]}
        self._known = {name: m for name in kept if (m := manifests[name])}
        named = {row for manifest in self._known.values() for row in manifest.shared}
        rows = [n for n in _listdir(self.rows) if _ROWS.fullmatch(n)]
        stays = named | set(used)
        if failure:
            stays |= {n for n in rows if self._own == 0 or int(n) < self._own}
        gone = [self.path / n for n in names if n not in kept]
        gone += [self.rows / n for n in rows]
        gone += [p / n for p in (self.path, self.rows) for n in _listdir(p) if _LEFT.fullmatch(n)]
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
    return value if isinstance(value, float) and math.isfinite(value) else _NEVER
