"""Offsets of the chunk's columns, worked out by hand; what a reader and a writer must agree on."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from fdql.shm import chunk
from fdql.shm.chunk import ChunkSchema


def test_offsets_of_a_continuous_chunk():
    # 100 rows: lane 200 B -> 256; flags 100 -> 128; reward and version 400 -> 448 each;
    # 2 words 800 -> 832; 3 floats of obs 1200 -> 1216
    schema = ChunkSchema(100, 3, 2, discrete=False)
    assert schema.offsets == {
        "lane": 0, "flags": 256, "reward": 384, "version": 832, "action_words": 1280, "obs": 2112,
    }  # fmt: skip
    assert schema.nbytes == 3328


def test_a_discrete_action_is_one_word_whatever_the_number_of_actions():
    schema = ChunkSchema(16, 1, 18, discrete=True)
    # 16 rows: lane 32 -> 64, flags 16 -> 64, then four columns of 64
    assert list(schema.offsets.values()) == [0, 64, 128, 192, 256, 320]
    assert schema.nbytes == 384


@pytest.mark.parametrize("discrete", [False, True])
def test_views_write_the_bytes(discrete):
    schema = ChunkSchema(10, 3, 2, discrete)
    buffer = bytearray(schema.nbytes)
    views = schema.views(buffer)
    kinds = {name: (a.dtype, a.shape) for name, a in views._asdict().items()}
    assert kinds == {
        "lane": (np.uint16, (10,)), "flags": (np.uint8, (10,)), "reward": (np.float32, (10,)),
        "version": (np.uint32, (10,)), "obs": (np.float32, (10, 3)),
        "action": (np.int32, (10,)) if discrete else (np.float32, (10, 2)),
        "action_words": (np.int32, (10, 1 if discrete else 2)),
    }  # fmt: skip
    for k, name in enumerate(schema.offsets):
        getattr(views, name)[:] = k + 1
    again = schema.views(buffer)  # another reader of the same bytes
    for k, name in enumerate(schema.offsets):
        assert (getattr(again, name) == k + 1).all(), name
    views.action[:] = 1
    assert (again.action == 1).all()
    used = {name: getattr(views, name).nbytes for name in schema.offsets}
    ends = [schema.offsets[name] + used[name] for name in used]
    starts = [*list(schema.offsets.values())[1:], schema.nbytes]
    assert all(end <= start for end, start in zip(ends, starts, strict=True))  # nothing overlaps


def test_views_of_a_memoryview_and_of_an_array_share_memory():
    schema = ChunkSchema(4, 2, 1, discrete=False)
    raw = np.zeros(schema.nbytes + 7, dtype=np.uint8)
    schema.views(memoryview(raw)).reward[3] = 2.5
    assert schema.views(raw).reward[3] == 2.5


def test_a_bad_buffer_is_refused():
    schema = ChunkSchema(4, 2, 1, discrete=False)
    with pytest.raises(ValueError, match=f"takes {schema.nbytes} bytes and the buffer has 8"):
        schema.views(bytearray(8))
    with pytest.raises(ValueError, match="must be writable"):
        schema.views(memoryview(bytes(schema.nbytes)))


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_bad_schema_is_refused(shape):
    with pytest.raises(ValueError, match="must be at least 1"):
        ChunkSchema(*shape, discrete=False)


def test_the_hash_tells_schemas_apart():
    schemas = [
        ChunkSchema(64, 4, 2, False),
        ChunkSchema(65, 4, 2, False),
        ChunkSchema(64, 5, 2, False),
        ChunkSchema(64, 4, 3, False),
        ChunkSchema(64, 4, 1, False),
        ChunkSchema(64, 4, 2, True),  # same columns as one continuous component, other meaning
    ]
    hashes = [s.hash for s in schemas]
    assert len(set(hashes)) == len(hashes)
    assert all(0 <= h < 1 << 64 for h in hashes)
    assert ChunkSchema(64, 4, 2, False).hash == hashes[0]


def test_flags_are_bits():
    flags = [chunk.TERMINATED, chunk.TRUNCATED, chunk.BOUNDARY, chunk.EXPLORER, chunk.RESET]
    assert flags == [1, 2, 4, 8, 16]


def test_workers_stay_light():
    code = "import sys, fdql.shm.chunk; sys.exit(bool({'numba', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
