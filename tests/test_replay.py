"""The replay as a whole: against a list of every row ever, by hand, and with compilation off."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fdql.config import ConfigError, ReplayConfig
from fdql.replay import batch, lanes, nstep, replay, statistics, sum_tree
from fdql.replay.replay import Batch, Replay
from fdql.replay.size import default_capacity, nbytes_for, row_nbytes
from fdql.replay.state import load_replay_state, replay_state
from fdql.replay.sum_tree import NotEnoughData, PriorityError
from fdql.shm.chunk import ChunkSchema, ChunkViews
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numba import config as numba_config
from oracles import BOUNDARY, EXPLORER, RESET, TERMINATED, TRUNCATED, NaiveReplay, Row, naive_window
from scipy import stats

OBS, ACTIONS, V_MAX = 3, 2, 5.0


def make(
    *, n_lanes=4, capacity=1024, n_step=3, discount=0.9, batch_size=32, seed=0, discrete=False
) -> Replay:
    return Replay(
        ReplayConfig(capacity=capacity, n_step=n_step), n_lanes=n_lanes, obs_dim=OBS,
        action_dim=ACTIONS, discrete=discrete, discount=discount, v_max=V_MAX,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip


def chunk_of(rows: list[tuple[int, Row]], discrete: bool = False) -> ChunkViews:
    """Views of a chunk with these (lane, row) pairs."""
    schema = ChunkSchema(max(1, len(rows)), OBS, ACTIONS, discrete)
    views = schema.views(bytearray(schema.nbytes))
    for k, (lane, row) in enumerate(rows):
        views.lane[k], views.flags[k], views.version[k] = lane, row.flags, row.version
        views.obs[k], views.reward[k] = row.obs, row.reward
        if row.action:
            views.action[k] = row.action[0] if discrete else row.action
    return views


def numbered(n: int, flags: dict[int, int] | None = None, lane: int = 0) -> list[tuple[int, Row]]:
    """n rows: row k has observation (k, k, k), action (k, -k), reward k, version k."""
    return [
        (lane, Row((k, k, k), (k, -k), float(k), (flags or {}).get(k, 0), version=k))
        for k in range(n)
    ]


def random_chunk(rng: np.random.Generator, n: int, n_lanes: int) -> ChunkViews:
    """n steps of random lanes, one in ten ending its episode; their BOUNDARY rows included."""
    rows = []
    for _ in range(n):
        lane, action = int(rng.integers(n_lanes)), tuple(rng.random(ACTIONS))
        how = int(rng.choice([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]))
        obs = tuple(rng.normal(size=OBS).astype(np.float32).tolist())
        rows.append((lane, Row(obs, action, float(np.float32(rng.normal())), how, version=n)))
        if how:
            rows.append((lane, Row(obs, flags=BOUNDARY)))
    return chunk_of(rows)


# --- by hand


@pytest.mark.parametrize("discrete", [False, True])
def test_a_batch_by_hand(discrete):
    """One sampleable row: discount .9, rewards 0, 1, 2, n = 3."""
    memory = make(discrete=discrete, batch_size=4)
    assert memory.ingest(chunk_of(numbered(4), discrete), 4, 2, lanes_of_worker=2) == 4
    assert (memory.steps, memory.size) == (4, 1)
    out = Batch.allocate(4, OBS, ACTIONS, discrete)
    memory.sample(out)
    lane_rows = memory.capacity // 4
    assert out.leaf.tolist() == [2 * lane_rows] * 4
    assert out.serial.tolist() == [0] * 4
    assert out.obs.tolist() == [[0, 0, 0]] * 4
    assert out.next_obs.tolist() == [[3, 3, 3]] * 4
    assert out.action.tolist() == ([0] * 4 if discrete else [[0, 0]] * 4)
    assert out.reward == pytest.approx([0 + 0.9 * 1 + 0.81 * 2] * 4)
    assert out.discount == pytest.approx([0.729] * 4)
    assert out.version.tolist() == [0] * 4
    assert out.obs_mean == pytest.approx([1.5] * 3, rel=1e-3)
    # sums 0, 1, 2.9, 5.61: deviation 2.132
    assert out.reward_scale[0] == pytest.approx(np.std([0, 1, 2.9, 5.61]))
    kinds = {f: getattr(out, f).dtype for f in Batch.__dataclass_fields__}
    assert kinds == {
        "obs": np.float32, "action": np.int32 if discrete else np.float32, "reward": np.float32,
        "discount": np.float32, "next_obs": np.float32, "leaf": np.int64, "serial": np.int64,
        "priority": np.float64, "version": np.uint32, "obs_mean": np.float32,
        "obs_scale": np.float32, "reward_scale": np.float32, "action_words": np.int32,
    }  # fmt: skip


def test_the_final_observation_is_used_and_never_the_reset_one():
    memory = make(batch_size=64)
    flags = {1: TRUNCATED, 2: BOUNDARY, 3: RESET, 4: TERMINATED, 5: BOUNDARY, 6: RESET}
    memory.ingest(chunk_of(numbered(7, flags)), 7, 0, lanes_of_worker=1)
    out = Batch.allocate(64, OBS, ACTIONS, False)
    memory.sample(out)
    assert set(out.leaf.tolist()) == {0, 1, 3, 4}
    for leaf, after, discount in zip(out.leaf, out.next_obs[:, 0], out.discount, strict=True):
        assert after == {0: 2, 1: 2, 3: 5, 4: 5}[leaf]
        assert discount == pytest.approx({0: 0.81, 1: 0.9, 3: 0, 4: 0}[leaf])


def test_nothing_to_sample_yet():
    memory = make()
    out = Batch.allocate(32, OBS, ACTIONS, False)
    with pytest.raises(NotEnoughData):
        memory.sample(out)
    memory.ingest(chunk_of(numbered(3)), 3, 0, lanes_of_worker=1)
    with pytest.raises(NotEnoughData):
        memory.sample(out)
    memory.ingest(chunk_of(numbered(1)), 1, 0, lanes_of_worker=1)
    memory.sample(out)


def test_stale_priorities_are_dropped():
    # 64 lanes: 16 rows each. Drawn, then overwritten by 16 newer rows: nothing may be written.
    memory = make(n_lanes=64, batch_size=8)
    memory.ingest(chunk_of(numbered(8)), 8, 0, lanes_of_worker=1)
    out = Batch.allocate(8, OBS, ACTIONS, False)
    memory.sample(out)
    memory.ingest(chunk_of(numbered(16)), 16, 0, lanes_of_worker=1)
    before = memory.tree.tree.copy()
    assert memory.update_priorities(out.leaf, out.serial, np.full(8, 9.0)) == 0
    assert memory.stale == 8
    assert np.array_equal(memory.tree.tree, before)
    memory.sample(out)
    assert memory.update_priorities(out.leaf, out.serial, np.full(8, 9.0)) == 8
    assert memory.stale == 8
    memory.check_valid()


def test_a_row_drawn_twice_keeps_its_last_priority():
    memory = make(batch_size=3)
    memory.ingest(chunk_of(numbered(4)), 4, 0, lanes_of_worker=1)
    out = Batch.allocate(3, OBS, ACTIONS, False)
    memory.sample(out)
    assert memory.update_priorities(out.leaf, out.serial, np.array([3.0, 5.0, 2.0])) == 3
    assert memory.tree.leaves[0] == memory.tree.total == 2.0


def test_new_rows_get_the_running_mean_priority():
    # 1 + .01 (11 - 1) = 1.1, then 1.1 + .01 (.5 - 1.1) = 1.094, and never below 1
    memory = make(batch_size=2)
    memory.ingest(chunk_of(numbered(4)), 4, 0, lanes_of_worker=1)
    leaf, serial = np.zeros(2, np.int64), np.zeros(2, np.int64)
    memory.update_priorities(leaf, serial, np.array([10.0, 12.0]))
    assert memory.new_priority == pytest.approx(1.1)
    memory.update_priorities(leaf, serial, np.array([0.5, 0.5]))
    assert memory.new_priority == pytest.approx(1.094)
    memory.ingest(chunk_of(numbered(1)), 1, 0, lanes_of_worker=1)
    assert memory.tree.leaves[:2] == pytest.approx([0.5, 1.094])
    for _ in range(200):
        memory.update_priorities(leaf, serial, np.array([0.5, 0.5]))
    assert memory.new_priority == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 0.0])
def test_refused_priorities_change_nothing(bad):
    memory = make(batch_size=2)
    memory.ingest(chunk_of(numbered(6)), 6, 0, lanes_of_worker=1)
    before = memory.tree.tree.copy()
    with pytest.raises(PriorityError, match="priority"):
        memory.update_priorities(
            np.array([0, 1]), np.array([0, 1]), np.array([2.0, bad], dtype=np.float64)
        )
    with pytest.raises(IndexError):
        memory.update_priorities(np.array([0, 9999]), np.array([0, 1]), np.ones(2))
    with pytest.raises(ValueError, match="2 leaves and 1 serials"):
        memory.update_priorities(np.array([0, 1]), np.array([0]), np.ones(2))
    assert memory.update_priorities(np.zeros(0, np.int64), np.zeros(0, np.int64), np.ones(0)) == 0
    assert np.array_equal(memory.tree.tree, before)
    assert (memory.new_priority, memory.stale) == (1.0, 0)


def test_refused_chunks_change_nothing():
    memory = make()
    rows = chunk_of(numbered(4, lane=1))
    wrong = ((5, 0, 2), (-1, 0, 2), (4, 3, 2), (4, -1, 2), (4, 0, 1), (4, 0, 0))
    for n_rows, first_lane, lanes_of_worker in wrong:
        with pytest.raises(ValueError, match=r"lane|rows"):
            memory.ingest(rows, n_rows, first_lane, lanes_of_worker=lanes_of_worker)
    with pytest.raises(ValueError, match=r"lanes 0\.\.4: this replay has 4"):
        memory.close_lanes(0, 5)
    with pytest.raises(ValueError, match="a batch of 31: this replay draws 32 rows"):
        memory.sample(Batch.allocate(31, OBS, ACTIONS, False))
    assert memory.steps == 0
    assert not memory.rows.table.any()


def test_the_reward_scale_is_looked_at_now_and_then():
    memory = make(capacity=8192, n_lanes=1)
    memory.ingest(chunk_of([(0, Row((0, 0, 0), reward=10.0))]), 1, 0, lanes_of_worker=1)
    assert memory.reward_scale == 2.0  # at the first step: one sum of 10, 10 / 5
    quiet = chunk_of([(0, Row((0, 0, 0), reward=100.0))] * 100)
    for _ in range(9):
        memory.ingest(quiet, 100, 0, lanes_of_worker=1)
    assert memory.reward_scale == 2.0  # 901 steps
    memory.ingest(quiet, 100, 0, lanes_of_worker=1)
    assert memory.reward_scale == pytest.approx(1000 / 5, rel=0.01)  # 1001: sums near 100 / .1


def test_a_successor_starts_new_episodes():
    memory = make(batch_size=16)
    memory.ingest(chunk_of(numbered(3)), 3, 0, lanes_of_worker=1)
    memory.ingest(chunk_of(numbered(3)), 3, 0, new_incarnation=True, lanes_of_worker=1)
    memory.check_valid()
    # row 2 became the boundary of rows 0 and 1; its sum does not run on: 0, 1, 2.9 twice
    assert np.flatnonzero(memory.tree.leaves).tolist() == [0, 1]
    assert memory.statistics.running[0] == pytest.approx(2.9)
    memory.close_lanes(0, 1)
    assert np.flatnonzero(memory.tree.leaves).tolist() == [0, 1, 3, 4]
    assert memory.statistics.running[0] == 0
    memory.check_valid()


def test_too_many_lanes_for_the_capacity():
    with pytest.raises(ConfigError, match=r"replay.capacity = 1024: 1024 environments get 8 rows"):
        make(n_lanes=1024, n_step=7)
    assert make(n_lanes=1024, n_step=6).capacity == 8192


@pytest.mark.parametrize(("n_lanes", "capacity"), [(1, 1024), (7, 1024), (64, 4096), (3, 100_000)])
def test_the_announced_size_is_the_real_one(n_lanes, capacity):
    memory = make(n_lanes=n_lanes, capacity=capacity)
    assert memory.nbytes == nbytes_for(capacity, n_lanes, OBS, ACTIONS, False)
    assert capacity <= memory.capacity <= capacity + 8 * n_lanes
    # lanes of whole nodes: 8 more rows per lane at most; sums a seventh of the leaves
    assert memory.nbytes <= (capacity + 8 * n_lanes) * row_nbytes(OBS, ACTIONS, False) + 4096


def test_the_default_capacity():
    assert default_capacity(4, 2, True) == 1_000_000
    # an observation of 28,224 floats: 2 GiB hold 19,018 rows of 112,919 bytes
    assert default_capacity(28_224, 4, True) == (2 << 30) // (4 * 28_224 + 4 + 9 + 10)
    assert default_capacity(10**7, 4, True) == 1024


# --- distribution and repeatability


def test_rows_are_drawn_in_proportion_to_their_priority():
    """Chi-square over some 700 rows and 20,000 batches of one row, fixed seed."""
    rng = np.random.default_rng(11)
    memory = make(n_lanes=3, batch_size=1, seed=5)
    memory.ingest(random_chunk(rng, 700, 3), 700, 0, lanes_of_worker=3)
    leaf = np.flatnonzero(memory.tree.leaves)
    priority = rng.random(leaf.size) * 4 + 1
    memory.tree.set(leaf, priority)
    counts = np.zeros(memory.capacity)
    out = Batch.allocate(1, OBS, ACTIONS, False)
    for _ in range(20_000):
        memory.sample(out)
        counts[out.leaf[0]] += 1
    assert counts.sum() == counts[leaf].sum()
    expected = 20_000 * priority / priority.sum()
    assert stats.chisquare(counts[leaf], expected).pvalue > 0.01


def story(seed: int) -> str:
    """Digest of everything that some hundred calls produce."""
    rng = np.random.default_rng(1)
    memory = make(n_lanes=32, batch_size=16, seed=seed)
    out = Batch.allocate(16, OBS, ACTIONS, False)
    digest = hashlib.sha256()
    for k in range(60):
        views = random_chunk(rng, int(rng.integers(1, 60)), 4)
        memory.ingest(
            views, views.lane.size, 4 * (k % 8), lanes_of_worker=4, new_incarnation=k % 7 == 6
        )
        if memory.size:
            memory.sample(out)
            out.priority[:] = 1 + rng.random(16)
            memory.update_priorities(out.leaf, out.serial, out.priority)
            for name in Batch.__dataclass_fields__:
                digest.update(np.ascontiguousarray(getattr(out, name)).tobytes())
    memory.check_valid()
    digest.update(memory.tree.tree.tobytes() + memory.rows.table.tobytes())
    return digest.hexdigest()


def test_a_seed_gives_the_same_batches():
    assert story(3) == story(3)
    assert story(3) != story(4)


@pytest.mark.parametrize("chunks", [3, 40])  # lanes partly filled; lanes overwritten
def test_a_saved_replay_goes_on_bit_for_bit(chunks):
    rng = np.random.default_rng(6)
    memory, other = (make(n_lanes=32, batch_size=16, seed=seed) for seed in (1, 2))
    out, again = (Batch.allocate(16, OBS, ACTIONS, False) for _ in range(2))
    for _ in range(chunks):
        views = random_chunk(rng, 30, 3)
        memory.ingest(views, views.lane.size, 5, lanes_of_worker=3)
        memory.sample(out)
        memory.update_priorities(out.leaf, out.serial, 1 + rng.random(16))
    saved = {name: array.copy() for name, array in replay_state(memory).items()}
    most = max(memory.rows.table[:, 0].max(), 0)
    assert saved["obs"].shape == (32, min(most, memory.rows.lane_rows), OBS)
    load_replay_state(other, saved)
    other.check_valid()
    for _ in range(5):
        views, p = random_chunk(rng, 30, 3), 1 + rng.random(16)
        for each, batch_ in ((memory, out), (other, again)):
            each.ingest(views, views.lane.size, 5, lanes_of_worker=3)
            each.sample(batch_)
            each.update_priorities(batch_.leaf, batch_.serial, p)
        for name in Batch.__dataclass_fields__:
            assert np.array_equal(getattr(out, name), getattr(again, name)), name
    after, after_load = replay_state(memory), replay_state(other)
    assert list(after) == list(after_load)
    for name in after:
        assert after[name].tobytes() == after_load[name].tobytes(), name


def test_a_saved_replay_of_another_shape_is_refused():
    saved = replay_state(make(n_step=3))
    other = make(n_step=2)
    with pytest.raises(ConfigError, match="the saved replay has n_step = 3 and this one 2"):
        load_replay_state(other, saved)


@pytest.mark.skipif(numba_config.DISABLE_JIT, reason="is that other process")
def test_kernels_are_the_same_program_without_compilation():
    """The hand-computed tests pass as plain Python, and a whole story gives the same bits."""
    here = Path(__file__).parent
    env = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(here)}
    code = "import test_replay; print(test_replay.story(3))"
    done = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True)
    assert done.stdout.strip() == story(3), done.stderr
    files = ["test_sum_tree.py", "test_nstep.py", "test_lanes.py", "test_statistics.py"]
    slow = "not AgainstList and not whatever and not random and not follow and not pattern"
    quick = ["-q", "-p", "no:cacheprovider", "--noconftest", "-k", slow]
    command = [sys.executable, "-m", "pytest", *quick, *files]
    done = subprocess.run(command, env=env, cwd=here, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-3000:]


KERNELS = [
    sum_tree.repair_sums, sum_tree.draw_leaves, sum_tree.first_refused, lanes.append_rows,
    statistics.observe_rows, nstep.n_step_windows, batch.touch_rows, batch.gather_rows,
    replay.write_fresh,
]  # fmt: skip


@pytest.mark.skipif(numba_config.DISABLE_JIT, reason="nothing is compiled")
def test_nothing_is_compiled_after_construction():
    for discrete in (False, True):
        memory = make(discrete=discrete, batch_size=8)
        before = [len(k.signatures) for k in KERNELS]
        for n in (1, 5, 300):
            views = chunk_of(numbered(n), discrete)
            memory.ingest(views, n, 1, lanes_of_worker=2, new_incarnation=True)
        memory.close_lanes(0, 4)
        out = Batch.allocate(8, OBS, ACTIONS, discrete)
        memory.sample(out)
        out.priority[:] = 1.5
        memory.update_priorities(out.leaf, out.serial, out.priority)
        assert [len(k.signatures) for k in KERNELS] == before


# --- against a list of every row ever

LANE_ROWS = 8  # 1024 rows in 128 lanes, so that rings wrap every few chunks
LANES = (0, 1, 126, 127)  # workers of two lanes at both ends of the tree

STEP = st.sampled_from(["step"] * 6 + ["first", "terminated", "truncated", "both"])
LOST = st.sampled_from(["terminated, no boundary", "truncated, no boundary", "boundary"])
EVENT = st.tuples(st.integers(0, 1), st.one_of(STEP, STEP, STEP, LOST), st.booleans())


class ReplayAgainstList(RuleBasedStateMachine):
    """Two workers send episodes, die, and forget boundary rows; a learner is batches late."""

    def __init__(self) -> None:
        super().__init__()
        self.n_step = 3
        self.memory = make(n_lanes=128, n_step=self.n_step, batch_size=16, seed=9)
        self.naive = NaiveReplay(128, LANE_ROWS, self.n_step, 0.9)
        self.late: list[Batch] = []
        self.sent = 0

    def row(self, kind: str, explorer: bool) -> list[Row]:
        self.sent += 1
        obs = (float(self.sent), float(self.sent % 7), 1.0)
        if kind == "boundary":
            return [Row(obs, flags=BOUNDARY, version=self.sent)]
        flags = (RESET if kind == "first" else 0) | (EXPLORER if explorer else 0)
        flags |= TERMINATED if kind.startswith(("terminated", "both")) else 0
        flags |= TRUNCATED if kind.startswith(("truncated", "both")) else 0
        reward = float(self.sent % 5 - 2)
        rows = [Row(obs, (0.5, float(self.sent)), reward, flags, self.sent)]
        if kind in ("terminated", "truncated", "both"):
            rows.append(Row((-obs[0], 0.0, 0.0), flags=BOUNDARY, version=self.sent))
        return rows

    @rule(
        worker=st.integers(0, 1),
        events=st.lists(EVENT, max_size=30),
        new_incarnation=st.sampled_from([False] * 5 + [True]),
    )
    def ingest(self, worker, events, new_incarnation):
        rows = [(lane, r) for lane, kind, explorer in events for r in self.row(kind, explorer)]
        first = LANES[2 * worker]
        steps = self.memory.ingest(
            chunk_of(rows), len(rows), first, new_incarnation=new_incarnation, lanes_of_worker=2
        )
        if new_incarnation:
            self.naive.close(first)
            self.naive.close(first + 1)
        for lane, row in rows:
            self.naive.append(first + lane, row)
        assert steps == sum(not row.has(BOUNDARY) for _, row in rows)

    @rule(first=st.sampled_from(LANES), n=st.integers(1, 2))
    def close_lanes(self, first, n):
        n = min(n, 128 - first)
        self.memory.close_lanes(first, n)
        for lane in range(first, first + n):
            self.naive.close(lane)

    @rule()
    def sample(self):
        out = Batch.allocate(16, OBS, ACTIONS, False)
        if not self.naive.priority:
            with pytest.raises(NotEnoughData):
                self.memory.sample(out)
            return
        self.memory.sample(out)
        for b in range(16):
            lane = int(out.leaf[b]) // LANE_ROWS
            serial = int(out.serial[b])
            assert (lane, serial) in self.naive.priority
            assert self.naive.leaf(lane, serial) == out.leaf[b]
            rows = self.naive.lanes[lane]
            total, discount, after = naive_window(rows, serial, self.n_step, 0.9)
            assert out.reward[b] == pytest.approx(total, abs=1e-5)
            assert out.discount[b] == pytest.approx(discount)
            if discount:  # after a terminal step the observation is not used
                assert out.next_obs[b].tolist() == list(after)
            assert out.obs[b].tolist() == list(rows[serial].obs)
            assert out.action[b].tolist() == list(rows[serial].action)
            assert out.version[b] == rows[serial].version
        mean, variance = self.naive.obs_moments()
        assert out.obs_mean == pytest.approx(mean, rel=1e-5, abs=1e-5)
        scale = [1 / math.sqrt(v + 1e-8) for v in variance]
        assert out.obs_scale == pytest.approx(scale, rel=1e-3)
        self.late.append(out)

    @precondition(lambda self: self.late)
    @rule(which=st.integers(0, 9), seed=st.integers(0, 99))
    def learn(self, which, seed):
        out = self.late.pop(which % len(self.late))
        out.priority[:] = np.random.default_rng(seed).integers(1, 64, 16) / 8
        stale = self.memory.stale
        applied = self.memory.update_priorities(out.leaf, out.serial, out.priority)
        wanted = [
            self.naive.update(int(leaf) // LANE_ROWS, int(serial), float(p))
            for leaf, serial, p in zip(out.leaf, out.serial, out.priority, strict=True)
        ]
        self.naive.end_update(out.priority.tolist())
        assert applied == sum(wanted)
        assert self.memory.stale - stale == 16 - applied

    @invariant()
    def same(self):
        self.memory.check_valid()
        leaves = {self.naive.leaf(*key): p for key, p in self.naive.priority.items()}
        there = np.flatnonzero(self.memory.tree.leaves).tolist()
        assert there == sorted(leaves)
        assert [self.memory.tree.leaves[i] for i in there] == pytest.approx(
            [leaves[i] for i in there], rel=1e-12
        )
        assert self.memory.size == len(leaves)
        assert self.memory.steps == len(self.naive.steps)
        if self.naive.steps:
            self.memory.statistics.rescale()
            assert self.memory.reward_scale == pytest.approx(self.naive.reward_scale(V_MAX))


TestReplayAgainstList = ReplayAgainstList.TestCase
TestReplayAgainstList.settings = settings(
    deadline=None, derandomize=True, max_examples=60, stateful_step_count=25
)
