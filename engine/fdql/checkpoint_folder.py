"""The `checkpoints` folder of a run: complete checkpoints in the order of their writing, and
`rows`, replay rows that several of them share. One writer, the trainer (or serial mode).

    checkpoints/000003-updates-771/   manifest.json and what changes all the time
    checkpoints/rows/000007           a range of rows; written once, never changed, deleted when no
                                      kept checkpoint names it
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fdql.checkpoint import (
    Arrays,
    CheckpointError,
    Manifest,
    Part,
    make_folders,
    read_manifest,
    remove_folder,
    save_checkpoint,
    save_tensors,
    sync_folder,
    verify_checkpoint,
)

ROWS = "rows"
_NEVER = -float("inf")  # return of a checkpoint before the first evaluation
_NAME = re.compile(r"(\d{6,})-updates-\d+")


class CheckpointFolder:
    """Checkpoints of one run, at `path`, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = path / ROWS

    def names(self) -> list[str]:
        """Complete checkpoints, oldest first. Whether they are sound says `newest`."""
        found = os.listdir(self.path) if self.path.is_dir() else []
        return sorted(n for n in found if _NAME.fullmatch(n))

    def newest(self, say: Callable[[str], None]) -> tuple[Path, Manifest] | None:
        """The newest checkpoint whose every file is as it was written; each that is not is said.
        None when there is no sound one.
        """
        for name in reversed(self.names()):
            try:
                return self.path / name, verify_checkpoint(self.path / name)
            except CheckpointError as error:
                say(f"checkpoint {name} is broken, the one before is taken: {error}")
        return None

    def write_rows(self, arrays: Arrays) -> tuple[str, Part]:
        """Write a range of rows under a name that no other ever had. Returns name and entry."""
        make_folders(self.rows)
        taken = [int(n) for n in os.listdir(self.rows) if n.isdecimal()]
        name = f"{max(taken, default=0) + 1:06d}"
        return name, save_tensors(self.rows / name, arrays, {})

    def write(
        self, updates: int, parts: Mapping[str, Arrays], facts: Mapping[str, Any],
        shared: Mapping[str, Part],
    ) -> Path:  # fmt: skip
        """Write a checkpoint. Raises OSError; then the ones before are as they were."""
        number = max((int(n.partition("-")[0]) for n in self.names()), default=0) + 1
        folder = self.path / f"{number:06d}-updates-{updates}"
        save_checkpoint(folder, parts, facts, shared)
        return folder

    def prune(self, keep: int) -> None:
        """Delete all checkpoints but the newest `keep` and the first with the best evaluation, then
        rows that none of those names, then what a killed writer left.
        """
        names = self.names()
        returns = [(self._best_return(name), name) for name in names]
        best = max((r for r, _ in returns), default=_NEVER)
        kept = {*names[-keep:], *[n for r, n in returns if r == best > _NEVER][:1]}
        for name in names:
            if name not in kept:
                remove_folder(self.path / name)
        used: set[str] = set()
        for name in self.names():
            try:
                used |= read_manifest(self.path / name).shared.keys()
            except CheckpointError:
                continue  # broken: nobody can load it
        for folder in (self.path, self.rows):
            for name in os.listdir(folder) if folder.is_dir() else []:
                path = folder / name
                if name.startswith(".") and path.is_dir():
                    remove_folder(path)
                elif name.startswith(".") or (folder == self.rows and name not in used):
                    os.unlink(path)
        if self.path.is_dir():
            sync_folder(self.path)

    def _best_return(self, name: str) -> float:
        try:
            value = read_manifest(self.path / name).facts.get("best_return")
        except CheckpointError:
            return _NEVER
        return float(value) if isinstance(value, int | float) else _NEVER
