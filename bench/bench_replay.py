"""The replay on vectors: a batch of 256 x 32 float32, a chunk of 64 rows, priorities back.

    pytest bench/bench_replay.py --benchmark-group-by=group

2**14 rows (3 MB) stay in the caches, 2**20 (170 MB) do not. Beside it: the same n-step prioritised
sampling in numpy (cumulated sum and fancy indexing), and, where installed, SB3's uniform 1-step
ReplayBuffer and cpprb's prioritised one. Every row carries its number, by which samples are
checked.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from fdql.config import ReplayConfig
from fdql.replay.replay import Batch, Replay
from fdql.shm.chunk import ChunkSchema, RowShape

BATCH, OBS, ACTIONS, LANES, CHUNK, N_STEP, DISCOUNT = 256, 32, 6, 8, 64, 3, 0.99
SIZES = (1 << 14, 1 << 20)
SHAPE = RowShape(obs_dim=OBS, action_dim=ACTIONS, discrete=False)

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # obs, next obs, reward, discount


def filled(rows: int, shape: RowShape = SHAPE) -> Replay:
    """A full replay; row s of lane l has observation 8 s + l in every component (pixels: modulo
    256) and reward 1.
    """
    memory = Replay(
        ReplayConfig(capacity=rows, n_step=N_STEP), shape=shape, n_lanes=LANES,
        discount=DISCOUNT, v_max=5.0, batch_size=BATCH, seed=0,
    )  # fmt: skip
    schema = ChunkSchema(CHUNK, shape)
    wraps = 256 if shape.pixels else rows + 4 * CHUNK
    views = schema.views(bytearray(schema.nbytes))
    views.lane[:] = np.arange(CHUNK) % LANES
    views.reward[:] = 1.0
    for k in range(rows // CHUNK + 3):
        views.obs[:] = (np.arange(k * CHUNK, (k + 1) * CHUNK) % wraps)[:, None]
        memory.ingest(views, CHUNK, 0, lanes_of_worker=LANES)
    return memory


def fdql_sample(rows: int) -> Callable[[], Columns]:
    memory = filled(rows)
    out = Batch.allocate(BATCH, SHAPE)

    def sample() -> Columns:
        memory.sample(out)
        return out.obs, out.next_obs, out.reward, out.discount

    return sample


def numpy_sample(rows: int) -> Callable[[], Columns]:
    """The textbook in numpy: one ring of 8 environments in turn, priorities by cumulated sum."""
    obs = np.repeat(np.arange(rows, dtype=np.float32)[:, None], OBS, axis=1)
    action = np.zeros((rows, ACTIONS), np.float32)
    reward, ended, version = np.ones(rows, np.float32), np.zeros(rows, bool), np.zeros(rows)
    priority = np.ones(rows)
    priority[-N_STEP * LANES :] = 0.0
    rng = np.random.default_rng(0)

    def sample() -> Columns:
        below = priority.cumsum()
        i = np.searchsorted(below, rng.random(BATCH) * below[-1], "right")
        end, total, weight = i.copy(), np.zeros(BATCH), np.ones(BATCH)
        for _ in range(N_STEP):
            total += weight * reward[end]
            weight = np.where(ended[end], 0.0, weight * DISCOUNT)
            end += LANES
        _ = action[i], version[i]
        return obs[i], obs[end], total.astype(np.float32), weight.astype(np.float32)

    return sample


def sb3_sample(rows: int) -> Callable[[], Columns]:
    """Uniform, 1 step: less work than ours."""
    buffers = pytest.importorskip("stable_baselines3.common.buffers", exc_type=ImportError)
    spaces = pytest.importorskip("gymnasium.spaces")
    space = spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    buffer = buffers.ReplayBuffer(rows, space, spaces.Box(-1, 1, (ACTIONS,)), "cpu", n_envs=LANES)
    serial = np.arange(rows, dtype=np.float32).reshape(-1, LANES)
    buffer.observations[:] = serial[:, :, None]
    buffer.next_observations[:] = serial[:, :, None] + N_STEP * LANES
    buffer.rewards[:] = 1 + DISCOUNT + DISCOUNT**2
    buffer.full = True

    def sample() -> Columns:
        data = buffer.sample(BATCH)
        discount = np.full(BATCH, DISCOUNT**N_STEP)
        return data.observations, data.next_observations, data.rewards[:, 0], discount

    return sample


def cpprb_sample(rows: int) -> Callable[[], Columns]:
    """Prioritised; rewards are summed over n steps before they are inserted."""
    cpprb = pytest.importorskip("cpprb", exc_type=ImportError)
    f32 = {"dtype": np.float32}
    buffer = cpprb.PrioritizedReplayBuffer(
        rows,
        {"obs": {"shape": OBS, **f32}, "next_obs": {"shape": OBS, **f32},
         "act": {"shape": ACTIONS, **f32}, "rew": f32, "discount": f32},
    )  # fmt: skip
    serial = np.arange(rows, dtype=np.float32)[:, None]
    for k in range(0, rows, 4096):
        part = np.broadcast_to(serial[k : k + 4096], (4096, OBS))
        buffer.add(
            obs=part, next_obs=part + N_STEP * LANES, act=np.zeros((4096, ACTIONS)),
            rew=np.full(4096, 1 + DISCOUNT + DISCOUNT**2), discount=np.full(4096, DISCOUNT**N_STEP),
        )  # fmt: skip

    def sample() -> Columns:
        data = buffer.sample(BATCH)
        return data["obs"], data["next_obs"], data["rew"][:, 0], data["discount"][:, 0]

    return sample


@pytest.fixture(params=SIZES, ids=lambda n: f"2**{n.bit_length() - 1}")
def rows(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.mark.parametrize("maker", [fdql_sample, numpy_sample, sb3_sample, cpprb_sample])
def test_sample_256(benchmark, maker, rows):
    """Draw, n-step window and gather: one batch for one update."""
    benchmark.group = f"sample {BATCH} x {OBS} float32 of {rows} rows"
    sample = maker(rows)
    sample()
    obs, after, reward, discount = (np.asarray(x) for x in benchmark(sample))
    assert (obs == obs[:, :1]).all()
    assert (after == obs + N_STEP * LANES).all()  # three steps later in the same lane
    assert np.unique(obs[:, 0]).size > BATCH / 2
    assert reward == pytest.approx(np.full(BATCH, 1 + DISCOUNT + DISCOUNT**2), rel=1e-6)
    assert discount == pytest.approx(np.full(BATCH, DISCOUNT**N_STEP), rel=1e-6)


@pytest.mark.parametrize("order", ["ascending", "shuffled"])
def test_windows_and_gather_256(benchmark, rows, order):
    """What the ascending order of stratified draws is worth."""
    benchmark.group = f"windows and gather of {rows} rows"
    memory = filled(rows)
    out = Batch.allocate(BATCH, SHAPE)
    rng = np.random.default_rng(0)
    draws = [rng.choice(np.flatnonzero(memory.tree.leaves), BATCH) for _ in range(64)]
    if order == "ascending":
        draws = [np.sort(d) for d in draws]
    turn = iter(range(1 << 62))

    def gather() -> None:
        out.leaf[:] = draws[next(turn) % 64]
        memory._gather(out)

    benchmark(gather)
    assert (out.next_obs == out.obs + N_STEP * LANES).all()


def fdql_ingest(rows: int, shape: RowShape = SHAPE) -> Callable[[], np.ndarray]:
    memory = filled(rows, shape)
    schema = ChunkSchema(CHUNK, shape)
    views = schema.views(bytearray(schema.nbytes))
    views.lane[:] = np.arange(CHUNK) % LANES
    views.obs[:] = np.arange(CHUNK)[:, None]

    def ingest() -> np.ndarray:
        memory.ingest(views, CHUNK, 0, lanes_of_worker=LANES)
        slot = (memory.rows.table[0, 0] - 1) % memory.rows.lane_rows
        return memory.rows.obs.reshape(LANES, -1, shape.obs_dim)[:, slot]

    return ingest


def sb3_ingest(rows: int) -> Callable[[], np.ndarray]:
    buffers = pytest.importorskip("stable_baselines3.common.buffers", exc_type=ImportError)
    spaces = pytest.importorskip("gymnasium.spaces")
    space = spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    buffer = buffers.ReplayBuffer(rows, space, spaces.Box(-1, 1, (ACTIONS,)), "cpu", n_envs=LANES)
    obs = np.repeat(np.arange(CHUNK, dtype=np.float32)[:, None], OBS, axis=1)
    action, zero = np.zeros((LANES, ACTIONS), np.float32), np.zeros(LANES, np.float32)
    infos: list[dict] = [{} for _ in range(LANES)]

    def ingest() -> np.ndarray:
        for k in range(0, CHUNK, LANES):
            buffer.add(obs[k : k + LANES], obs[k : k + LANES], action, zero, zero, infos)
        return buffer.observations[buffer.pos - 1]

    return ingest


@pytest.mark.parametrize("maker", [fdql_ingest, sb3_ingest])
def test_ingest_64(benchmark, maker, rows):
    """One chunk of 8 steps of 8 environments: rows, statistics and (ours) tree."""
    benchmark.group = f"ingest {CHUNK} rows of {OBS} float32 into {rows}"
    ingest = maker(rows)
    ingest()
    last = benchmark(ingest)
    assert last[:, 0].tolist() == list(range(CHUNK - LANES, CHUNK))


def test_priorities_back_256(benchmark, rows):
    """Check, drop the stale, write, repair."""
    memory = filled(rows)
    batches = [Batch.allocate(BATCH, SHAPE) for _ in range(64)]
    rng = np.random.default_rng(0)
    for out in batches:
        memory.sample(out)
        out.priority[:] = 1 + rng.random(BATCH)
    turn = iter(range(1 << 62))

    def write() -> int:
        out = batches[next(turn) % 64]
        return memory.update_priorities(out.leaf, out.serial, out.priority)

    assert benchmark(write) == BATCH
    memory.check_valid()


def test_first_use_with_a_warm_cache(benchmark):
    """Import and construct in a new process, less what Numba takes to import and to start."""
    code = """
import time
import numpy as np, numba
f = numba.njit("f8(f8)", cache=False)(lambda x: x)
t = time.perf_counter()
from fdql.config import ReplayConfig
from fdql.replay.replay import Replay
from fdql.shm.chunk import RowShape
shape = RowShape(obs_dim=32, action_dim=6, discrete=False)
Replay(ReplayConfig(capacity=1 << 14), shape=shape, n_lanes=8,
       discount=0.99, v_max=5.0, batch_size=256, seed=0)
print(time.perf_counter() - t)
"""
    seconds = []

    def start() -> None:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        seconds.append(float(done.stdout))

    benchmark.pedantic(start, rounds=5, warmup_rounds=1)
    benchmark.extra_info["ours_seconds"] = min(seconds)
