"""The checkpoints of a run: killed at every file operation, pruned, broken, and the next one taken.

A file operation that changes something is a call of `os` in checkpoint.py, manifest.py or
checkpoint_folder.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fdql import checkpoint, checkpoint_folder, manifest
from fdql.checkpoint import Part, load_tensors
from fdql.checkpoint_folder import CannotGoOn, CheckpointFolder, set_aside
from fdql.manifest import UnreadableError


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
        shared = dict(list(found.manifest.shared.items())[-1:])
    name, part = folder.write_rows({"obs": np.full(9, number)})
    arrays = {"a": np.full(5, number)}
    facts = {"updates": number, "best_return": best}
    shared |= {name: part}
    written = folder.write(number, {"learner": arrays}, facts, shared)
    assert shared.keys() <= folder.prune(keep, shared)
    return written.name


def newest(path: Path) -> tuple[int, list[str]]:
    """The number in the newest sound checkpoint and its rows; what was said about others, which
    are set aside.
    """
    said: list[str] = []
    found = CheckpointFolder(path).newest(said.append)
    assert found is not None
    folder, content, broken = found
    for each in broken:
        set_aside(each)
    number = int(load_tensors(folder / "learner.safetensors")[0]["a"][0])
    rows = [load_tensors(path / "rows" / n)[0]["obs"][0] for n in content.shared]
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
                for module in (checkpoint, manifest, checkpoint_folder):
                    module.os = dying  # type: ignore[attr-defined]
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


@pytest.mark.parametrize("best", [10**400, "x", True, float("inf")])
def test_a_strange_return_is_none(tmp_path: Path, best: object):
    path = tmp_path / "c"
    names = [write(path, k, keep=2, best=b) for k, b in enumerate((1.0, best, 0.5, 0.5), 1)]
    assert CheckpointFolder(path).names() == [names[0], names[2], names[3]]


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(bytes(data))


def everything(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


@pytest.mark.parametrize("what", ["learner.safetensors", "manifest.json"])
def test_a_broken_checkpoint_falls_back_to_the_one_before(tmp_path: Path, what: str):
    path = tmp_path / "c"
    names = [write(path, k) for k in (1, 2, 3)]
    damage(path / names[2] / what)
    number, said = newest(path)
    assert number == 2
    assert len(said) == 1
    assert names[2] in said[0]
    assert newest(path) == (2, [])  # it is out of the way ...
    written = write(path, number + 1, keep=2)
    assert written > names[2]
    # ... and takes no place: of the newest two, both load
    assert CheckpointFolder(path).names() == [names[1], written]
    assert newest(path) == (number + 1, [])
    assert not [name for name in everything(path) if "broken" in name]


def test_damaged_rows_cost_those_rows_alone(tmp_path: Path):
    """Range 2 is the second checkpoint's and the third's: without it each of them loads."""
    path = tmp_path / "c"
    names = [write(path, k) for k in (1, 2, 3)]
    damage(path / "rows" / "000002")
    said: list[str] = []
    found = CheckpointFolder(path).newest(said.append)
    assert found is not None
    assert found.folder.name == names[2]
    assert len(said) == 1
    assert "000002: its checksum" in said[0]
    assert found.broken == [path / "rows" / "000002"]
    assert everything(path / "rows") == ["000001", "000002", "000003"]  # who looks changes nothing
    set_aside(found.broken[0])
    assert everything(path / "rows") == ["000001", "000003", "broken-000002"]
    assert write(path, 4) > names[2]
    assert newest(path) == (4, [])
    assert everything(path / "rows") == ["000001", "000003", "000004"]


def test_without_a_sound_one_there_is_none(tmp_path: Path):
    path = tmp_path / "c"
    said: list[str] = []
    assert CheckpointFolder(path).newest(said.append) is None
    write(path, 1)
    (path / "rows" / "000001").unlink()  # all the rows that it had
    assert CheckpointFolder(path).newest(said.append) is None
    assert "missing" in said[0]


def unreadable(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.parent.name == folder:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)


def test_what_cannot_be_read_is_neither_broken_nor_cleared_away(tmp_path: Path, monkeypatch):
    path = tmp_path / "c"
    names = [write(path, k) for k in (1, 2, 3)]
    with monkeypatch.context() as m:
        unreadable(m, names[2])
        with pytest.raises(CannotGoOn, match=rf"Permission denied.*mv .* .*{names[2]}.unreadable$"):
            newest(path)
    folder = CheckpointFolder(path)
    with monkeypatch.context() as m:
        unreadable(m, names[1])
        with pytest.raises(UnreadableError):
            folder.prune(1, ())
        assert folder.names() == names[1:]  # the rest is cleared away
        assert everything(path / "rows") == ["000001", "000002", "000003"]  # it may need them
        for _ in range(2):
            name, part = folder.write_rows({"obs": np.full(9, 4)})
        written = folder.write(4, {"learner": {"a": np.full(5, 4)}}, {}, {name: part})
        unreadable(m, written.name)  # what was written here is known
        for used in ({name}, ()):
            with pytest.raises(UnreadableError):
                folder.prune(1, used)
            assert folder.names() == [names[1], written.name]
            assert everything(path / "rows") == ["000001", "000002", "000003", "000005"]
    assert folder.prune(2, ()) == {"000001", "000002", "000005"}
    assert everything(path / "rows") == ["000001", "000002", "000005"]


def test_rows_that_cannot_be_read_cost_those_rows_alone(tmp_path: Path, monkeypatch):
    path, stat = tmp_path / "c", Path.stat
    for k in (1, 2, 3):
        write(path, k)

    def refused(file: Path, **how: bool) -> os.stat_result:
        if file.name == "000003":
            raise PermissionError(13, "Permission denied")
        return stat(file, **how)

    with monkeypatch.context() as m:
        m.setattr(Path, "stat", refused)
        with pytest.raises(CannotGoOn, match="go on without these rows: mv") as caught:
            newest(path)
    advice = re.search(r"mv (\S+) (\S+)$", str(caught.value))
    assert advice
    os.rename(*advice.groups())
    found = CheckpointFolder(path).newest(lambda line: None)
    assert found is not None
    assert found.folder.name.startswith("000003-")
    write(path, 4, keep=1)  # under a new name, and what the user set aside stays
    assert everything(path / "rows") == ["000003.unreadable", "000004"]


def test_another_format_is_not_passed_over(tmp_path: Path):
    path = tmp_path / "c"
    names = [write(path, k) for k in (1, 2)]
    file = path / names[1] / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99, "sha256": ""}))
    with pytest.raises(CannotGoOn, match="format 99, this version reads"):
        newest(path)


def test_the_millionth_is_newer_than_the_one_before(tmp_path: Path):
    path = tmp_path / "c"
    (path / write(path, 1)).rename(path / "999999-updates-1")
    assert write(path, 2, keep=1) == "1000000-updates-2"
    assert write(path, 3, keep=1) == "1000001-updates-3"
    assert CheckpointFolder(path).names() == ["1000001-updates-3"]


def test_rows_in_use_and_files_of_others_stay(tmp_path: Path, monkeypatch):
    path = tmp_path / "c"
    names = [write(path, k) for k in (1, 2, 3)]
    (path / names[2] / "manifest.json").write_text("{}")
    (path / "rows" / ".nfs0000000000012345").touch()
    (path / "rows" / ".000009.0123abcd").touch()  # a killed writer's
    (path / "notes").mkdir()
    folder, unlink = CheckpointFolder(path), os.unlink

    def busy(file: Path) -> None:
        if file.name == "learner.safetensors":
            raise OSError(16, "Device or resource busy")
        unlink(file)

    with monkeypatch.context() as m:
        m.setattr("fdql.manifest.os.unlink", busy)
        with pytest.raises(OSError, match="busy"):
            folder.prune(2, {"000003"})
    assert not (path / "rows" / ".000009.0123abcd").exists()  # one that is busy keeps no other
    assert folder.prune(2, {"000003"}) == {"000001", "000002"}
    assert everything(path) == sorted(
        ["notes", "rows", *names[1:], *[f"{n}/{f}" for n in names[1:] for f in
         ("learner.safetensors", "manifest.json")],
         *[f"rows/{n}" for n in (".nfs0000000000012345", "000001", "000002", "000003")]]
    )  # fmt: skip
