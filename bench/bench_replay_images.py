"""The replay on frames: 256 n-step transitions of 4 stacked 84 x 84 frames; a chunk of 64 frames.

    pytest bench/bench_replay_images.py --benchmark-group-by=group

2**14 frames, each stored once (116 MB). Beside it: plain memcpy of as many bytes, from the same
rows where sampling is meant (numpy.take of whole rows), and, where installed, SB3's uniform 1-step
ReplayBuffer, which stores stacks (2**12 of them, 231 MB). Frames carry their number, by which
samples are checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fdql.config import ReplayConfig
from fdql.replay.replay import Batch, Replay
from fdql.shm.chunk import ChunkSchema, RowShape

ROWS, SB3_ROWS, BATCH, LANES, CHUNK, N_STEP, STACK = 1 << 14, 1 << 12, 256, 8, 64, 3, 4
FRAME = 84 * 84
SHAPE = RowShape(obs_dim=FRAME, action_dim=6, discrete=True, pixels=True, stack=STACK)


def filled() -> tuple[Replay, Callable[[], None]]:
    """A full replay, frame s of every lane has the value s modulo 256; and what ingests 64 more."""
    memory = Replay(
        ReplayConfig(capacity=ROWS, n_step=N_STEP), shape=SHAPE, n_lanes=LANES,
        discount=0.99, v_max=5.0, batch_size=BATCH, seed=0,
    )  # fmt: skip
    schema = ChunkSchema(CHUNK, SHAPE)
    views = schema.views(bytearray(schema.nbytes))
    views.lane[:] = np.arange(CHUNK) % LANES
    views.reward[:] = 1.0
    serial = np.arange(CHUNK) // LANES

    def ingest() -> None:
        memory.ingest(views, CHUNK, 0, lanes_of_worker=LANES)

    for k in range(ROWS // CHUNK + 3):
        views.obs[:] = ((serial + k * CHUNK // LANES) % 256)[:, None]
        ingest()
    return memory, ingest


Pair = tuple[Any, Any]  # observations and the next, (B, ...) uint8


def fdql_sample() -> Callable[[], Pair]:
    memory, _ = filled()
    out = Batch.allocate(BATCH, SHAPE)

    def sample() -> Pair:
        memory.sample(out)
        return out.obs, out.next_obs

    return sample


def rows_copied() -> Callable[[], Pair]:
    """What sampling cannot go below: the bytes of 2 x 256 x 4 random frames, copied by numpy."""
    store = np.ones((ROWS, FRAME), np.uint8)
    out = np.zeros((2 * BATCH * STACK, FRAME), np.uint8)
    rng = np.random.default_rng(0)
    first = rng.integers(0, ROWS - N_STEP - STACK, BATCH)
    rows = np.concatenate([first, first + N_STEP])[:, None] + np.arange(STACK)

    def copy() -> Pair:
        store.take(rows.ravel(), axis=0, out=out, mode="clip")
        return out[: BATCH * STACK], out[BATCH * STACK :]

    return copy


def sb3_sample() -> Callable[[], Pair]:
    """Uniform, 1 step: less work than ours."""
    buffers = pytest.importorskip("stable_baselines3.common.buffers", exc_type=ImportError)
    spaces = pytest.importorskip("gymnasium.spaces")
    space = spaces.Box(0, 255, (STACK, 84, 84), np.uint8)
    buffer = buffers.ReplayBuffer(SB3_ROWS, space, spaces.Discrete(6), "cpu", n_envs=1)
    buffer.observations[:], buffer.next_observations[:], buffer.full = 1, 1, True

    def sample() -> Pair:
        data = buffer.sample(BATCH)
        return data.observations, data.next_observations

    return sample


@pytest.mark.parametrize("maker", [fdql_sample, rows_copied, sb3_sample])
def test_sample_256_stacks(benchmark: Any, maker: Any) -> None:
    """B11: at most 1.2 ms."""
    benchmark.group = "sample 256 stacks of 4 frames of 84 x 84"
    sample = maker()
    sample()
    pair = benchmark(sample)
    got = np.stack([np.asarray(x) for x in pair])
    if maker is fdql_sample:
        got = got.reshape(2, BATCH, STACK, FRAME)[..., 0].astype(int)
        assert ((got[..., 1:] - got[..., :-1]) % 256 == 1).all()  # four in a row
        assert ((got[1] - got[0]) % 256 == N_STEP).all()
    else:
        assert (got == 1).all()


@pytest.mark.parametrize("who", ["fdql", "memcpy"])
def test_ingest_64_frames(benchmark: Any, who: str) -> None:
    """B13: 450 KB; at least 5 GB/s."""
    benchmark.group = "ingest 64 frames of 84 x 84"
    if who == "fdql":
        memory, ingest = filled()
        before = memory.rows.table[0, 0]
        benchmark(ingest)
        assert memory.rows.table[0, 0] > before
    else:
        source, at = np.ones((CHUNK, FRAME), np.uint8), 0
        store = np.zeros((ROWS, FRAME), np.uint8)

        def copy() -> None:
            nonlocal at
            store[at : at + CHUNK] = source
            at = (at + CHUNK) % ROWS

        benchmark(copy)
        assert store[0, 0] == 1
    if benchmark.stats is not None:  # None with --benchmark-disable
        gigabytes = CHUNK * FRAME / benchmark.stats.stats.median / 1e9
        benchmark.extra_info["GB/s"] = round(gigabytes, 2)
        print(f"\n{who}: {gigabytes:.2f} GB/s")
