"""Runs that stop where a test says, and everything that a finished one left, for comparison."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fdql.checkpoint import load_tensors
from fdql.checkpoint_folder import CheckpointFolder
from fdql.config import Config
from fdql.ending import RunResult
from fdql.manifest import read_manifest
from fdql.stop_request import StopRequest
from fdql.supervisor import train

TIMED = ("time/time_elapsed", "time/fps", "train/updates_per_second")


def run(config: Config, folder: Path) -> RunResult:
    return train(replace(config, run_dir=str(folder)), quiet=True)


def go_on(config: Config, folder: Path) -> RunResult:
    found = CheckpointFolder(folder / "checkpoints").newest(pytest.fail)
    assert found is not None
    return train(replace(config, run_dir=str(folder)), quiet=True, checkpoint=found[0])


def stop_at_look(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The run is told to stop at its `number`-th look at the request: between two updates, in an
    evaluation, between two passes."""
    looks = 0

    def requested(_: StopRequest) -> bool:
        nonlocal looks
        looks += 1
        return looks >= number

    monkeypatch.setattr(StopRequest, "requested", property(requested))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Every metric that is not a time; the last row says how the run ended, not where it was."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMED} for line in lines]


def rows_of(folder: Path) -> dict[str, dict[tuple[int, int], bytes]]:
    """Column -> (lane, serial) -> its bytes, of the newest checkpoint."""
    name = CheckpointFolder(folder / "checkpoints").names()[-1]
    manifest = read_manifest(folder / "checkpoints" / name)
    tables, _ = load_tensors(folder / "checkpoints" / name / "replay.safetensors")
    parts = [load_tensors(folder / "checkpoints" / "rows" / n)[0] for n in manifest.shared]
    parts.append({k.removeprefix("newest."): v for k, v in tables.items() if "newest." in k})
    lane_rows = int(tables["shape"][1])
    found: dict[str, dict[tuple[int, int], bytes]] = {}
    for part in parts:
        at = 0
        for lane, (first, end) in enumerate(zip(part["first"], part["end"], strict=True)):
            for serial in range(int(first), int(end)):
                if serial >= tables["table"][lane, 0] - lane_rows:
                    for column in ("flags", "reward", "version", "action", "obs"):
                        cell = np.ascontiguousarray(part[column][at]).tobytes()
                        found.setdefault(column, {})[lane, serial] = cell
                at += 1
    return found


def arrays_of(folder: Path) -> dict[str, bytes]:
    """Every array of the newest checkpoint but its rows."""
    name = CheckpointFolder(folder / "checkpoints").names()[-1]
    found = {}
    for part in sorted((folder / "checkpoints" / name).glob("*.safetensors")):
        for key, array in load_tensors(part)[0].items():
            found[f"{part.stem}.{key}"] = np.ascontiguousarray(array).tobytes()
    return found
