"""How the trainer's replay continues from a checkpoint.

The supervisor has verified sizes and checksums; here every declared type and shape is compared with
what this run needs before memory is taken. Environments start anew, so open episodes are cut where
they were, unless serial mode repeats them (open_episodes.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fdql.checkpoint import CheckpointError, read_manifest
from fdql.checkpoint_folder import ROWS
from fdql.config import ConfigError
from fdql.proc.loader import Loader
from fdql.proc.resumed import updates_of
from fdql.proc.saver import Saver
from fdql.replay.saved import SavedRange, read_tables
from fdql.replay.state import load_replay, same_lanes


def restore_replay(folder: Path, loader: Loader, saver: Saver) -> bool:
    """Fill the loader's replay. True when it is what it was; with other lanes the rows are stored
    anew. Raises CheckpointError, and ConfigError when the rows are of another kind.
    """
    manifest, replay = read_manifest(folder), loader.replay
    tables = read_tables(folder / "replay.safetensors", replay)
    rows = folder.parent / ROWS
    n_lanes = len(tables["table"])
    ranges = [SavedRange(rows / name, replay, n_lanes) for name in manifest.shared]
    try:
        load_replay(replay, tables, ranges)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"{folder}: {error}") from None
    loader.sampled = loader.updates = updates_of(manifest)
    exactly = same_lanes(replay, tables)
    if exactly:
        parts = zip(manifest.shared.items(), ranges, strict=True)
        saver.adopt([(name, part, r.first, r.end) for (name, part), r in parts])
    return exactly


def restored_facts(folder: Path, name: str) -> dict[str, Any]:
    """A table among the facts of a checkpoint; empty when it is not there."""
    value = read_manifest(folder).facts.get(name)
    return value if isinstance(value, dict) else {}
