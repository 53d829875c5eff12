"""What is written of a replay: bounded ranges, once, and deleted when nothing needs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chunks import make, random_chunk
from fdql.checkpoint import load_tensors, read_manifest
from fdql.proc.saver import Captured, Saver
from fdql.replay.replay import Replay
from fdql.replay.saved import SavedRange, read_tables
from fdql.replay.state import load_replay, oldest, rows_between, settled, tables_of
from plans import small_plan

LEARNER = Captured({"params": np.zeros(3)}, {"updates": 7})


def fill(replay: Replay, rng: np.random.Generator, chunks: int) -> None:
    for _ in range(chunks):
        views = random_chunk(rng, 60, 4)
        replay.ingest(views, views.lane.size, 0, lanes_of_worker=4)


def saver_of(replay: Replay, folder: Path, serial: bool) -> tuple[Saver, list[str]]:
    told: list[str] = []
    plan = small_plan("CartPole-v1", folder, serial=serial)
    saver = Saver(plan, replay, lambda kind, **values: told.append(kind))
    saver.range_rows = 100
    return saver, told


def loaded(folder: Path) -> Replay:
    """A replay made of the newest checkpoint."""
    checkpoint = sorted((folder / "checkpoints").glob("0*"))[-1]
    replay = make()
    tables = read_tables(checkpoint / "replay.safetensors", replay)
    names = read_manifest(checkpoint).shared
    rows = folder / "checkpoints" / "rows"
    load_replay(replay, tables, [SavedRange(rows / name, replay, 4) for name in names])
    return replay


def same(a: Replay, b: Replay) -> bool:
    def bytes_of(r: Replay) -> list[bytes]:
        arrays = tables_of(r) | rows_between(r, oldest(r), settled(r))
        return [array.tobytes() for array in arrays.values()]

    return bytes_of(a) == bytes_of(b)


@pytest.mark.parametrize("serial", [True, False])
@pytest.mark.parametrize("journal", [True, False])
def test_ranges_are_bounded_and_checkpoints_equal_the_replay(tmp_path, serial, journal):
    """Some thousand rows pass through a replay of 1024; `journal`: also copied in between."""
    rng = np.random.default_rng(3)
    replay = make()
    saver, told = saver_of(replay, tmp_path, serial)
    for k in range(8):
        for _ in range(6):
            fill(replay, rng, 1)
            while journal and saver.work():
                pass
        if k < 7:
            saver.save(LEARNER)
            saver._checkpoint.result()
        else:
            saver.close(LEARNER)
        assert same(loaded(tmp_path), replay)
        for file in (tmp_path / "checkpoints" / "rows").iterdir():
            columns = load_tensors(file)[0]
            assert 1 <= len(columns["flags"]) <= 104
        # two kept checkpoints need 1024 rows and what came between them, in whole ranges
        assert len(list((tmp_path / "checkpoints" / "rows").iterdir())) <= 18
        assert len(list((tmp_path / "checkpoints").glob("0*"))) <= 2
    assert told == ["checkpoint"] * 8


def test_a_full_disk_is_told_and_the_next_checkpoint_is_whole(tmp_path, monkeypatch):
    rng = np.random.default_rng(4)
    replay = make()
    saver, told = saver_of(replay, tmp_path, serial=True)
    fill(replay, rng, 3)
    saver.save(LEARNER)
    with monkeypatch.context() as m:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device", "rows")

        m.setattr("fdql.checkpoint.os.write", full)
        fill(replay, rng, 4)
        saver.save(LEARNER)
        saver.work()
    assert told == ["checkpoint", "checkpoint_failed"]
    fill(replay, rng, 2)
    saver.close(LEARNER)
    assert told == ["checkpoint", "checkpoint_failed", "checkpoint"]
    assert same(loaded(tmp_path), replay)
