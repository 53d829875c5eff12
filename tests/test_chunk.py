"""Offsets of the chunk's columns, worked out by hand; what a reader and a writer must agree on."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from fdql.shm import chunk
from fdql.shm.chunk import ChunkSchema, RowShape
from plans import small_plan


def schema_of(rows, obs_dim, action_dim, discrete=False, **kind) -> ChunkSchema:
    shape = RowShape(obs_dim=obs_dim, action_dim=action_dim, discrete=discrete, **kind)
    return ChunkSchema(rows, shape)


def test_offsets_of_a_continuous_chunk():
    # 100 rows: lane 200 B -> 256; flags 100 -> 128; reward and version 400 -> 448 each;
    # 2 words 800 -> 832; 3 floats of obs 1200 -> 1216
    schema = schema_of(100, 3, 2)
    assert schema.offsets == {
        "lane": 0, "flags": 256, "reward": 384, "version": 832, "action_words": 1280, "obs": 2112,
    }  # fmt: skip
    assert schema.nbytes == 3328


def test_a_discrete_action_is_one_word_whatever_the_number_of_actions():
    schema = schema_of(16, 1, 18, discrete=True)
    # 16 rows: lane 32 -> 64, flags 16 -> 64, then four columns of 64
    assert list(schema.offsets.values()) == [0, 64, 128, 192, 256, 320]
    assert schema.nbytes == 384


def test_offsets_of_a_chunk_of_images():
    # 10 rows: lane 20, flags 10, reward, version and one word 40 each -> 64; 7 bytes of obs -> 128
    schema = schema_of(10, 7, 18, discrete=True, pixels=True, stack=4)
    assert list(schema.offsets.values()) == [0, 64, 128, 192, 256, 320]
    assert schema.nbytes == 448


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_views_write_the_bytes(discrete, pixels):
    schema = schema_of(10, 3, 2, discrete, pixels=pixels)
    buffer = bytearray(schema.nbytes)
    views = schema.views(buffer)
    kinds = {name: (a.dtype, a.shape) for name, a in views._asdict().items()}
    assert kinds == {
        "lane": (np.uint16, (10,)), "flags": (np.uint8, (10,)), "reward": (np.float32, (10,)),
        "version": (np.uint32, (10,)), "obs": (np.uint8 if pixels else np.float32, (10, 3)),
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
    schema = schema_of(4, 2, 1)
    raw = np.zeros(schema.nbytes + 7, dtype=np.uint8)
    schema.views(memoryview(raw)).reward[3] = 2.5
    assert schema.views(raw).reward[3] == 2.5


def test_a_bad_buffer_is_refused():
    schema = schema_of(4, 2, 1)
    with pytest.raises(ValueError, match=f"takes {schema.nbytes} bytes and the buffer has 8"):
        schema.views(bytearray(8))
    with pytest.raises(ValueError, match="must be writable"):
        schema.views(memoryview(bytes(schema.nbytes)))


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_bad_schema_is_refused(shape):
    with pytest.raises(ValueError, match="must be at least 1"):
        schema_of(*shape)
    with pytest.raises(ValueError, match="chunk stack = 0: must be at least 1"):
        schema_of(1, 1, 1, stack=0)


def test_the_rows_of_a_plan_s_chunk(tmp_path):
    plan = small_plan("CartPole-v1", tmp_path, envs_per_worker=4)
    assert plan.chunk == schema_of(256, 4, 2, discrete=True)
    images = replace(plan.env, image=(1, 84, 84), obs_dim=7056, stack=4)
    plan = replace(plan, env=images)
    assert plan.chunk == schema_of(64, 7056, 2, discrete=True, pixels=True, stack=4)
    # 40 environments of a group may all end their episode: 80 rows
    assert replace(plan, config=replace(plan.config, envs_per_worker=80)).chunk.rows == 80
    few = replace(plan.config, engine=replace(plan.config.engine, chunk_rows=32, commit_rows=8))
    assert replace(plan, config=few).chunk.rows == 32


def test_the_hash_tells_schemas_apart():
    schemas = [
        schema_of(64, 4, 2),
        schema_of(65, 4, 2),
        schema_of(64, 5, 2),
        schema_of(64, 4, 3),
        schema_of(64, 4, 1),
        schema_of(
            64, 4, 2, discrete=True
        ),  # same columns as one continuous component, other meaning
        schema_of(64, 4, 2, pixels=True),
        schema_of(64, 16, 2, pixels=True),  # as many bytes as 4 float32
        schema_of(64, 4, 2, pixels=True, stack=4),
        schema_of(64, 4, 2, stack=4),
    ]
    hashes = [s.hash for s in schemas]
    assert len(set(hashes)) == len(hashes)
    assert all(0 <= h < 1 << 64 for h in hashes)
    assert schema_of(64, 4, 2).hash == hashes[0]


def test_flags_are_bits():
    flags = [chunk.TERMINATED, chunk.TRUNCATED, chunk.BOUNDARY, chunk.RESET]
    assert flags == [1, 2, 4, 16]


def test_workers_stay_light():
    code = "import sys, fdql.shm.chunk; sys.exit(bool({'numba', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
