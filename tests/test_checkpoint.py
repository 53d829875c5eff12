"""Files: complete or absent, checked, never executed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from fdql import checkpoint
from fdql.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
    write_bytes,
)

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([7], dtype=np.uint64)}


def test_round_trip(tmp_path: Path):
    save_checkpoint(tmp_path / "c", ARRAYS, {"updates": 3})
    arrays, facts = load_checkpoint(tmp_path / "c")
    assert facts == {"updates": 3}
    assert {k: v.tolist() for k, v in arrays.items()} == {k: v.tolist() for k, v in ARRAYS.items()}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_an_existing_checkpoint_is_not_overwritten(tmp_path: Path):
    save_checkpoint(tmp_path / "c", ARRAYS, {})
    with pytest.raises(FileExistsError, match="never overwritten"):
        save_checkpoint(tmp_path / "c", ARRAYS, {})


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch):
    file = tmp_path / "x"
    write_bytes(file, b"old")
    for step in ("fsync", "replace", "chmod"):
        with monkeypatch.context() as m:

            def fail(*_: object) -> None:
                raise OSError(28, "No space left on device")

            m.setattr(os, step, fail)
            with pytest.raises(OSError, match="No space left"):
                write_bytes(file, b"new")
        assert file.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_failed_checkpoint_leaves_nothing(tmp_path: Path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "c", ARRAYS, {})
    assert list(tmp_path.iterdir()) == []


def test_every_mutation_is_noticed_or_harmless(tmp_path: Path):
    """300 random mutations of a checkpoint: a CheckpointError, or the very same arrays."""
    save_checkpoint(tmp_path / "c", ARRAYS, {"updates": 3})
    rng = random.Random(0)
    files = sorted((tmp_path / "c").iterdir())
    originals = {f: f.read_bytes() for f in files}
    noticed = 0
    for _ in range(300):
        file = rng.choice(files)
        data = bytearray(originals[file])
        kind = rng.randrange(3)
        if kind == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[rng.randrange(len(data)) :]
        else:
            data += bytes(rng.randrange(256) for _ in range(9))
        file.write_bytes(bytes(data))
        try:
            arrays, _ = load_checkpoint(tmp_path / "c")
            assert {k: v.tobytes() for k, v in arrays.items()} == {
                k: v.tobytes() for k, v in ARRAYS.items()
            }
        except CheckpointError:
            noticed += 1
        file.write_bytes(originals[file])
    assert noticed > 200


def test_a_manifest_cannot_point_outside(tmp_path: Path):
    save_checkpoint(tmp_path / "c", ARRAYS, {})
    manifest = tmp_path / "c" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["files"] = {"../../secret": {"bytes": 1, "sha256": ""}}
    manifest.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="secret"):
        load_checkpoint(tmp_path / "c")


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path):
    from safetensors.numpy import save_file

    save_file(dict(ARRAYS), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not written by fdql"):
        load_tensors(tmp_path / "x.safetensors")
    save_tensors(tmp_path / "y.safetensors", ARRAYS, {"k": 1})
    assert load_tensors(tmp_path / "y.safetensors")[1] == {"k": 1}
