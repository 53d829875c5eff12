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
from bench_replay import BATCH, CHUNK, LANES, N_STEP, fdql_ingest, filled
from fdql.replay.replay import Batch
from fdql.shm.chunk import RowShape

ROWS, SB3_ROWS, STACK = 1 << 14, 1 << 12, 4
FRAME = 84 * 84
SHAPE = RowShape(obs_dim=FRAME, action_dim=6, discrete=True, pixels=True, stack=STACK)


Pair = tuple[Any, Any]  # observations and the next, (B, ...) uint8


def fdql_sample() -> Callable[[], Pair]:
    memory = filled(ROWS, SHAPE)
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
        assert ((got[..., 1:] - got[..., :-1]) % 256 == LANES).all()  # four in a row
        assert ((got[1] - got[0]) % 256 == N_STEP * LANES).all()
    else:
        assert (got == 1).all()


@pytest.mark.parametrize("who", ["fdql", "memcpy"])
def test_ingest_64_frames(benchmark: Any, who: str) -> None:
    """B13: 450 KB; at least 5 GB/s."""
    benchmark.group = "ingest 64 frames of 84 x 84"
    if who == "fdql":
        newest = benchmark(fdql_ingest(ROWS, SHAPE))
        assert (newest == np.arange(CHUNK - LANES, CHUNK)[:, None]).all()
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
