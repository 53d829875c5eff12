"""Files: complete or absent, checked, never executed."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from fdql.checkpoint import (
    Arrays,
    CheckpointError,
    Tensors,
    load_tensors,
    save_tensors,
    write_bytes,
)
from fdql.manifest import FormatError, read_manifest, save_checkpoint, verify_checkpoint

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([7], dtype=np.uint64)}


def save(folder: Path, arrays: Arrays = ARRAYS, facts: dict[str, object] | None = None) -> None:
    save_checkpoint(folder, {"learner": arrays}, facts or {})


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    facts = verify_checkpoint(folder).facts
    return load_tensors(folder / "learner.safetensors")[0], facts


def test_round_trip(tmp_path: Path):
    save(tmp_path / "c", facts={"updates": 3})
    arrays, facts = load(tmp_path / "c")
    assert facts == {"updates": 3}
    assert {k: v.tolist() for k, v in arrays.items()} == {k: v.tolist() for k, v in ARRAYS.items()}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_what_safetensors_itself_reads_is_what_was_written(tmp_path: Path):
    from safetensors.numpy import load_file

    arrays = {
        "none": np.zeros((0, 3), np.float32),
        "bytes": np.arange(5, dtype=np.uint8),
        "doubles": np.linspace(0, 1, 7)[::2],
        "words": np.array([[2**64 - 1]], np.uint64),
    }
    part = save_tensors(tmp_path / "x", arrays, {"k": "v"})
    assert part.nbytes == (tmp_path / "x").stat().st_size
    assert part.sha256 == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    for name, array in load_file(tmp_path / "x").items():
        assert (array.dtype, array.tolist()) == (arrays[name].dtype, arrays[name].tolist())


def test_types_and_shapes_are_looked_at_first(tmp_path: Path):
    save_tensors(tmp_path / "x", ARRAYS, {})
    with Tensors(tmp_path / "x") as file:
        assert file.read("a", np.float32, (2, 3)).tolist() == ARRAYS["a"].tolist()
        assert file.read("a", start=1, stop=2).tolist() == [[3.0, 4.0, 5.0]]
        for dtype, shape in ((np.float64, (2, 3)), (np.float32, (3, 2)), (np.float32, ())):
            with pytest.raises(CheckpointError, match=r"a is F32 \(2, 3\)"):
                file.read("a", dtype, shape)
        with pytest.raises(CheckpointError, match="c cannot be read"):
            file.read("c")


def test_an_existing_checkpoint_is_not_overwritten(tmp_path: Path):
    save(tmp_path / "c")
    with pytest.raises(FileExistsError, match="never overwritten"):
        save(tmp_path / "c")


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch):
    file = tmp_path / "x"
    write_bytes(file, b"old")
    for step in ("fsync", "replace", "write"):
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

    for step in ("fsync", "rename", "write"):
        with monkeypatch.context() as m:
            m.setattr(os, step, fail)
            with pytest.raises(OSError, match="No space left"):
                save(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_every_bit_of_a_manifest_counts(tmp_path: Path):
    save(tmp_path / "c", facts={"updates": 3, "env_steps": 96, "health": {"share": 0.25}})
    manifest = tmp_path / "c" / "manifest.json"
    data = manifest.read_bytes()
    facts = read_manifest(tmp_path / "c").facts
    harmless = 0
    for at in range(8 * len(data)):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        manifest.write_bytes(changed)
        try:
            assert read_manifest(tmp_path / "c").facts == facts
            harmless += 1  # white space
        except CheckpointError:
            pass
    assert harmless < 100


def test_another_format_is_no_damage(tmp_path: Path):
    save(tmp_path / "c")
    manifest = tmp_path / "c" / "manifest.json"
    values = json.loads(manifest.read_text()) | {"format": 2}
    manifest.write_text(json.dumps({k: v for k, v in values.items() if k != "sha256"}))
    with pytest.raises(FormatError, match="format 2, this version reads format 5"):
        read_manifest(tmp_path / "c")
    manifest.write_text(json.dumps(values))  # its checksum says that it is of this one
    with pytest.raises(CheckpointError, match="damaged") as caught:
        read_manifest(tmp_path / "c")
    assert not isinstance(caught.value, FormatError)


def test_every_mutation_is_noticed_or_harmless(tmp_path: Path):
    """300 random mutations of a checkpoint: a CheckpointError, or the very same arrays."""
    save(tmp_path / "c", facts={"updates": 3, "env_steps": 96})
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
            arrays, facts = load(tmp_path / "c")
            assert facts == {"updates": 3, "env_steps": 96}
            assert {k: v.tobytes() for k, v in arrays.items()} == {
                k: v.tobytes() for k, v in ARRAYS.items()
            }
        except CheckpointError:
            noticed += 1
        file.write_bytes(originals[file])
    assert noticed > 200


def test_a_manifest_cannot_point_outside(tmp_path: Path):
    save(tmp_path / "c")
    manifest = tmp_path / "c" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["files"] = {"../../secret": {"bytes": 1, "sha256": ""}}
    content = json.dumps({key: values[key] for key in ("format", "facts", "files", "shared")})
    values["sha256"] = hashlib.sha256(content.encode()).hexdigest()
    manifest.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="secret"):
        load(tmp_path / "c")


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path):
    from safetensors.numpy import save_file

    save_file(dict(ARRAYS), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not written by fdql"):
        load_tensors(tmp_path / "x.safetensors")
    save_tensors(tmp_path / "y.safetensors", ARRAYS, {"k": 1})
    assert load_tensors(tmp_path / "y.safetensors")[1] == {"k": 1}
