"""How the trainer's replay continues from a checkpoint.

The supervisor has verified sizes and checksums; here every declared type and shape is compared with
what this run needs before memory is taken. Environments start anew, so open episodes are cut where
they were, unless serial mode repeats them (open_episodes.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fdql.checkpoint import CheckpointError
from fdql.config import ConfigError
from fdql.manifest import ROWS, read_manifest
from fdql.proc.loader import Loader
from fdql.proc.resumed import count_of, updates_of
from fdql.proc.saver import Saver
from fdql.profile import Stage
from fdql.replay.lanes import STEPS
from fdql.replay.saved import SavedRange, read_tables
from fdql.replay.state import load_replay


class _Watched(SavedRange):
    """One whose every reading is a sign of life: a large replay takes longer than
    engine.start_timeout may be.
    """

    def __init__(self, path: Path, loader: Loader, n_lanes: int) -> None:
        super().__init__(path, loader.replay, n_lanes)
        self._record = loader.record

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """See state.Range."""
        self._record.heartbeat(Stage.WAIT)
        return super().rows(name, start, stop)


def restore_replay(folder: Path, loader: Loader, saver: Saver) -> bool:
    """Fill the loader's replay. True when it is what it was; with other lanes, or where files of
    rows are missing, the rows there are are stored anew. Raises CheckpointError, and ConfigError
    when the rows are of another kind.
    """
    manifest, replay = read_manifest(folder), loader.replay
    tables = read_tables(folder / "replay.safetensors", replay)
    steps = int(tables["counters"][STEPS])
    if steps != count_of(manifest, "env_steps"):
        raise CheckpointError(f"{folder}: its replay is of {steps} steps, its manifest of another")
    rows = folder.parent / ROWS
    n_lanes = len(tables["table"])
    there = {name: part for name, part in manifest.shared.items() if (rows / name).is_file()}
    ranges = [_Watched(rows / name, loader, n_lanes) for name in there]
    try:
        loaded = load_replay(replay, tables, ranges)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"{folder}: {error}") from None
    if manifest.facts.get("replay") and not replay.size:
        raise CheckpointError(f"{folder}: none of its rows is left")
    loader.sampled = loader.updates = updates = updates_of(manifest)
    lost = f" ({loaded.lost:,} more were in damaged files)" if loaded.lost else ""
    saver.say("note", message=f"goes on from {folder.name}: {steps:,} steps, {updates:,} updates, "
              f"{loaded.kept:,} rows of the replay{lost}")  # fmt: skip
    if loaded.exactly:
        parts = zip(there.items(), ranges, strict=True)
        saver.adopt([(name, part, r.first, r.end) for (name, part), r in parts])
    return loaded.exactly


def restored_facts(folder: Path, name: str) -> dict[str, Any]:
    """A table among the facts of a checkpoint; empty when it is not there."""
    value = read_manifest(folder).facts.get(name)
    return value if isinstance(value, dict) else {}
