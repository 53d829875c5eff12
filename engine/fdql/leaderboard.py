"""The best policies of a run by evaluated return: best/leaderboard.json, and one file for each.

Written by the evaluator (or serial mode); read by fdql.load, `fdql eval`, `fdql report`. A policy's
file is there before the index names it and goes only after the index no longer does, so whenever a
process is killed the index names complete files.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fdql.checkpoint import Arrays, CheckpointError, save_tensors, write_json

FORMAT = 1
PLACES = 10
INDEX = "leaderboard.json"
MOST = 1e300  # of any number in it: what is larger, or no number, is no score


@dataclass(frozen=True, slots=True)
class Entry:
    """One policy and its score.

    updates, env_steps   when it was published
    mean, std            of its evaluation's undiscounted returns
    low, high            95 % interval of the mean; None where one episode was played
    """

    updates: int
    env_steps: int
    mean: float
    std: float
    low: float | None
    high: float | None
    episodes: int

    @property
    def file(self) -> str:
        """Name of its file; derived, so that an index can name no other file."""
        return f"updates-{self.updates}.safetensors"

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            whole = f.name in ("updates", "env_steps", "episodes")
            if value is None and f.name in ("low", "high"):
                continue
            kinds = (int,) if whole else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or not -MOST < value < MOST:
                raise ValueError(f"{f.name} = {str(value)[:40]} is not a number")
            if whole and value < 0:
                raise ValueError(f"{f.name} = {value!r} is negative")


def read(folder: Path) -> list[Entry]:
    """The leaderboard in a run's best/, best first; empty where there is none.

    Raises CheckpointError when the index is damaged.
    """
    index = folder / INDEX
    try:
        values = json.loads(index.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise CheckpointError(
                f"{index}: format {values['format']!r}, this version reads format {FORMAT}"
            )
        names = {f.name for f in fields(Entry)}
        entries = [Entry(**{k: p[k] for k in names}) for p in values["policies"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index}: damaged or not written by fdql ({error!r})") from None
    return sorted(entries, key=_order)[:PLACES]


def _order(entry: Entry) -> tuple[float, int]:
    return -entry.mean, entry.updates


def _set_aside(folder: Path) -> Path:
    """Rename it to a name that nothing has."""
    aside, n = folder.with_name(f"{folder.name}-damaged"), 1
    while os.path.lexists(aside):
        n += 1
        aside = folder.with_name(f"{folder.name}-damaged-{n}")
    return folder.rename(aside)


class Leaderboard:
    """The writer's end; goes on from what the folder holds. A folder whose index is damaged is set
    aside beside it, told through `warn`, and an empty one begun.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder = folder
        try:
            self.entries = read(folder)
        except CheckpointError as error:
            self.entries = []
            aside = _set_aside(folder)
            warn(f"{error}; its policies are kept in {aside}, an empty leaderboard begins")

    def rank(self, mean: float, updates: int) -> int | None:
        """Rank from 1 that a policy of so many updates and this mean gets among those of fewer,
        None when it is not among the best. Of equal means the earlier one is better.

        Those of as many updates or more are from before a kill: the run, which went on from a
        checkpoint before them, makes them again.
        """
        better = sum(e.mean >= mean for e in self.entries if e.updates < updates)
        return better + 1 if better < PLACES and math.isfinite(mean) else None

    def offer(self, entry: Entry, arrays: Arrays, facts: Mapping[str, Any]) -> None:
        """Keep a policy if it is among the best. `arrays` and `facts` are what its file holds.

        Raises OSError when the disk does not take it; the leaderboard is then as it was. (Should it
        take the file and not the index, the policy of the same update from before a kill is gone.)
        """
        others = [e for e in self.entries if e.updates != entry.updates]
        kept = sorted([*others, entry], key=_order)[:PLACES]
        if kept == self.entries:
            return
        self.folder.mkdir(exist_ok=True)
        new = self.folder / f".{entry.file}.new"
        try:
            if entry in kept:
                save_tensors(new, arrays, facts)
            if len(others) < len(self.entries):  # its old score must not name the new file
                self._index(others)
            if entry in kept:
                os.replace(new, self.folder / entry.file)
                self._index(kept)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        self._sweep()

    def _index(self, entries: list[Entry]) -> None:
        policies = [{"rank": i, "file": e.file} | asdict(e) for i, e in enumerate(entries, 1)]
        write_json(self.folder / INDEX, {"format": FORMAT, "policies": policies})
        self.entries = entries

    def _sweep(self) -> None:
        """Remove what the index does not name: who fell off, what a killed process left."""
        kept = {e.file for e in self.entries}
        for path in self.folder.glob("updates-*.safetensors"):
            if path.name not in kept:
                path.unlink(missing_ok=True)
        # Names under which a file is written before it takes its own, and theirs.
        for pattern in (".*updates-*", f".{INDEX}.*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
