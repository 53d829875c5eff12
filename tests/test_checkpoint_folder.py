"""The checkpoints of a run: killed at every file operation, pruned, broken, and the next one taken.

A file operation is a call of `os` in checkpoint.py or checkpoint_folder.py; they use no other.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fdql import checkpoint, checkpoint_folder
from fdql.checkpoint import Part, load_tensors
from fdql.checkpoint_folder import CheckpointFolder


class DyingOs:
    """The module os, until its `at`-th call: then SIGKILL, of a write after half of its bytes."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(os, name)
        if not callable(attribute):
            return attribute

        def counted(*args: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                if name == "write":
                    os.write(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return attribute(*args)

        return counted


def write(path: Path, number: int, keep: int = 9, best: float | None = None) -> str:
    """A checkpoint of one array of `number`s, with a new range of rows and the one before it."""
    folder = CheckpointFolder(path)
    shared: dict[str, Part] = {}
    if found := folder.newest(lambda line: None):
        shared = dict(list(found[1].shared.items())[-1:])
    name, part = folder.write_rows({"obs": np.full(9, number)})
    arrays = {"a": np.full(5, number)}
    facts = {"updates": number, "best_return": best}
    written = folder.write(number, {"learner": arrays}, facts, shared | {name: part})
    folder.prune(keep)
    return written.name


def newest(path: Path) -> tuple[int, list[str]]:
    """The number in the newest sound checkpoint and its rows; what was said about others."""
    said: list[str] = []
    found = CheckpointFolder(path).newest(said.append)
    assert found is not None
    folder, manifest = found
    number = int(load_tensors(folder / "learner.safetensors")[0]["a"][0])
    rows = [load_tensors(path / "rows" / n)[0]["obs"][0] for n in manifest.shared]
    assert rows == list(range(max(1, number - 1), number + 1))
    return number, said


def test_killed_at_every_file_operation_the_one_before_loads(tmp_path: Path):
    for number in (1, 2):
        write(tmp_path / "base", number)
    found: list[int] = []
    for at in range(1, 1000):
        path = tmp_path / "again"
        shutil.copytree(tmp_path / "base", path)
        child = os.fork()
        if child == 0:
            try:
                dying = DyingOs(at)
                checkpoint.os = checkpoint_folder.os = dying  # type: ignore[attr-defined]
                write(path, 3, keep=1)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        number, said = newest(path)
        assert (number, said) in ((2, []), (3, [])), at
        found.append(number)
        write(path, number + 1, keep=1)  # and the run goes on, and clears up
        assert newest(path) == (number + 1, [])
        assert len(list(path.iterdir())) == 2
        assert len(list((path / "rows").iterdir())) == 2
        shutil.rmtree(path)
        if status == 0:
            break
    # The rename decides: all deaths before it leave the second, all behind it the third.
    assert found == sorted(found)
    assert found.count(2) > 20
    assert found.count(3) > 10


def test_the_newest_and_the_best_are_kept(tmp_path: Path):
    path = tmp_path / "c"
    returns = [None, 1.0, 5.0, 5.0, 5.0, 5.0]
    names = [write(path, k, keep=2, best=best) for k, best in enumerate(returns, 1)]
    assert CheckpointFolder(path).names() == [names[2], names[4], names[5]]
    # rows of kept checkpoints only: 2 and 3, 4 to 6
    assert sorted(p.name for p in (path / "rows").iterdir()) == [
        f"{k:06d}" for k in (2, 3, 4, 5, 6)
    ]


@pytest.mark.parametrize("what", ["learner.safetensors", "manifest.json", "rows"])
def test_a_broken_checkpoint_falls_back_to_the_one_before(tmp_path: Path, what: str):
    path = tmp_path / "c"
    names = [write(path, k) for k in (1, 2, 3)]
    victim = path / "rows" / "000003" if what == "rows" else path / names[2] / what
    data = bytearray(victim.read_bytes())
    data[-9] ^= 1
    victim.write_bytes(bytes(data))
    number, said = newest(path)
    assert number == 2
    assert len(said) == 1
    assert names[2] in said[0]
    assert write(path, number + 1) > names[2]
    assert newest(path) == (number + 1, [])


def test_without_a_sound_one_there_is_none(tmp_path: Path):
    path = tmp_path / "c"
    said: list[str] = []
    assert CheckpointFolder(path).newest(said.append) is None
    write(path, 1)
    (path / "rows" / "000001").unlink()
    assert CheckpointFolder(path).newest(said.append) is None
    assert "missing" in said[0]
