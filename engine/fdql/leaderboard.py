"""The best policies of a run by evaluated return: best/leaderboard.json, and one file for each.

Written by the evaluator (or serial mode); read by fdql.load, `fdql eval`, `fdql report`. A policy's
file is there before the index names it and goes only after the index no longer does, so whenever a
process is killed the index names complete files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fdql.checkpoint import Arrays, CheckpointError, save_tensors, write_json

FORMAT = 1
PLACES = 10
INDEX = "leaderboard.json"


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
            if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"{f.name} = {value!r} is not a number")
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
    return sorted(entries, key=lambda e: (-e.mean, e.updates))[:PLACES]


class Leaderboard:
    """The writer's end; goes on from what the folder holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = read(folder)

    def rank(self, mean: float) -> int | None:
        """Rank from 1 that a policy with this mean would get, None when it is not among the best.

        Of equal means the earlier one is better.
        """
        better = sum(e.mean >= mean for e in self.entries)
        return better + 1 if better < PLACES and math.isfinite(mean) else None

    def offer(self, entry: Entry, arrays: Arrays, facts: Mapping[str, Any]) -> None:
        """Keep a policy if it is among the best. `arrays` and `facts` are what its file holds.

        Raises OSError when the disk does not take it; the leaderboard is then as it was.
        """
        others = [e for e in self.entries if e.updates != entry.updates]
        if len(others) < len(self.entries):  # a run resumed from before it: another policy by now
            self._index(others)
        rank = self.rank(entry.mean)
        if rank is None:
            return
        self.folder.mkdir(exist_ok=True)
        save_tensors(self.folder / entry.file, arrays, facts)
        self._index([*others[: rank - 1], entry, *others[rank - 1 :]][:PLACES])
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
        for pattern in (".updates-*", f".{INDEX}.*"):  # temporary names of write_bytes
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
