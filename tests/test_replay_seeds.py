"""The replay is repeatable: by seed, from a checkpoint, without compilation; and draws fairly."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chunks import PIXELS, SHAPES, STACKED, VECTOR, chunk_of, make, numbered, random_chunk
from fdql.config import ConfigError
from fdql.replay import batch, lanes, nstep, replay, statistics, sum_tree
from fdql.replay.replay import Batch
from fdql.replay.state import Copied, load_replay, oldest, rows_between, settled, tables_of
from fdql.shm.chunk import BOUNDARY, RowShape
from numba import config as numba_config
from oracles import Row
from scipy import stats


def test_rows_are_drawn_in_proportion_to_their_priority():
    """Chi-square over some 700 rows and 20,000 batches of one row, fixed seed."""
    rng = np.random.default_rng(11)
    memory = make(n_lanes=3, batch_size=1, seed=5)
    memory.ingest(random_chunk(rng, 700, 3), 700, 0, lanes_of_worker=3)
    leaf = np.flatnonzero(memory.tree.leaves)
    priority = rng.random(leaf.size) * 4 + 1
    memory.tree.set(leaf, priority)
    counts = np.zeros(memory.capacity)
    out = Batch.allocate(1, VECTOR)
    for _ in range(20_000):
        memory.sample(out)
        counts[out.leaf[0]] += 1
    assert counts.sum() == counts[leaf].sum()
    expected = 20_000 * priority / priority.sum()
    assert stats.chisquare(counts[leaf], expected).pvalue > 0.01


def story(seed: int, shape: RowShape = VECTOR) -> str:
    """Digest of everything that some hundred calls produce."""
    rng = np.random.default_rng(1)
    memory = make(n_lanes=32, batch_size=16, seed=seed, shape=shape)
    out = Batch.allocate(16, shape)
    digest = hashlib.sha256()
    for k in range(60):
        views = random_chunk(rng, int(rng.integers(1, 60)), 4, shape)
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


@pytest.mark.parametrize("shape", [VECTOR, PIXELS])
@pytest.mark.parametrize("chunks", [3, 40])  # lanes partly filled; lanes overwritten
def test_a_saved_replay_goes_on_bit_for_bit(chunks, shape):
    rng = np.random.default_rng(6)
    memory, other = (make(n_lanes=32, batch_size=16, seed=seed, shape=shape) for seed in (1, 2))
    out, again = (Batch.allocate(16, shape) for _ in range(2))
    for _ in range(chunks):
        views = random_chunk(rng, 30, 3, shape)
        memory.ingest(views, views.lane.size, 5, lanes_of_worker=3)
        memory.sample(out)
        memory.update_priorities(out.leaf, out.serial, 1 + rng.random(16))
    # in two ranges; one of the lanes may have been written in between
    first, end = oldest(memory), settled(memory)
    middle = (first + end) // 2
    ranges = [Copied(rows_between(memory, *pair)) for pair in ((first, middle), (middle, end))]
    tables = tables_of(memory)
    load_replay(other, tables, ranges)
    other.check_valid()
    for _ in range(5):
        views, p = random_chunk(rng, 30, 3, shape), 1 + rng.random(16)
        for each, batch_ in ((memory, out), (other, again)):
            each.ingest(views, views.lane.size, 5, lanes_of_worker=3)
            each.sample(batch_)
            each.update_priorities(batch_.leaf, batch_.serial, p)
        for name in Batch.__dataclass_fields__:
            assert np.array_equal(getattr(out, name), getattr(again, name)), name
    first, end = oldest(memory), settled(memory)
    after, after_load = (tables_of(m) | rows_between(m, first, end) for m in (memory, other))
    assert list(after) == list(after_load)
    for name in after:
        assert after[name].tobytes() == after_load[name].tobytes(), name


@pytest.mark.parametrize("shape", [VECTOR, PIXELS])
@pytest.mark.parametrize("chunks", [3, 40])
def test_without_some_ranges_the_other_rows_are_there(chunks, shape):
    rng = np.random.default_rng(8)
    memory = make(n_lanes=8, batch_size=16, shape=shape)
    for _ in range(chunks):
        memory.ingest(random_chunk(rng, 60, 8, shape), 60, 0, lanes_of_worker=8)
    first, end = oldest(memory), settled(memory)
    cuts = [first + (end - first) * k // 4 for k in range(5)]
    ranges = [Copied(rows_between(memory, a, b)) for a, b in itertools.pairwise(cuts)]
    tables, newest = tables_of(memory), int((memory.rows.table[:, 0] > 0).sum())
    here = rows_in(memory)
    for left in ((1, 2, 3), (0, 3), (0, 1, 2), ()):
        other = make(n_lanes=8, batch_size=16, shape=shape)
        loaded = load_replay(other, tables, [ranges[k] for k in left])
        other.check_valid()
        kept = sum(int((cuts[k + 1] - cuts[k]).sum()) for k in left) + newest
        assert (loaded.kept, loaded.exactly) == (kept, False)
        assert loaded.kept + loaded.lost == int((memory.rows.table[:, 0] - first).sum())
        assert other.steps == memory.steps
        there = rows_in(other)
        assert there.keys() <= here.keys()
        # a step that terminated before a gap gets a BOUNDARY row; a lane that overflows loses some
        assert kept - 64 <= there.total() <= kept + 32
    wrong = tables | {"table": tables["table"] - 1}
    with pytest.raises(ValueError, match="rows that the saved replay never had"):
        load_replay(make(n_lanes=8, batch_size=16, shape=shape), wrong, ranges)


def rows_in(memory: replay.Replay) -> Counter[bytes]:
    """Observations of all resident rows."""
    store, lanes = memory.rows, range(memory.rows.n_lanes)
    serials = [np.arange(oldest(memory)[k], store.table[k, 0]) for k in lanes]
    rows = np.concatenate(
        [k * store.lane_rows + s % store.lane_rows for k, s in enumerate(serials)]
    )
    return Counter(store.obs[row].tobytes() for row in rows)


Episode = list[tuple[bytes, ...]]


def episodes_in(memory: replay.Replay) -> list[Episode]:
    """Rows of every lane, oldest first, cut at BOUNDARY rows; priorities beside them."""
    store, found = memory.rows, []
    for lane in range(store.n_lanes):
        serials = np.arange(oldest(memory)[lane], store.table[lane, 0])
        episode: Episode = []
        for row in lane * store.lane_rows + serials % store.lane_rows:
            columns = [store.obs, store.flags, memory.tree.leaves]
            if not store.flags[row] & BOUNDARY:  # which has neither reward nor action
                columns += [store.reward, store.action, store.version]
            episode.append(tuple(column[row].tobytes() for column in columns))
            if store.flags[row] & BOUNDARY:
                found.append(episode)
                episode = []
        assert not episode, "an episode is open"
    return sorted(found)


@pytest.mark.parametrize("lanes", [1, 3, 8, 50])
def test_a_saved_replay_fits_other_lanes(lanes):
    """The same episodes with the same priorities, closed; another n_step gives others at the ends
    of the windows only."""
    rng = np.random.default_rng(7)
    memory = make(n_lanes=8, batch_size=16, capacity=4096)
    out = Batch.allocate(16, VECTOR)
    for k in range(20):
        views = random_chunk(rng, 30, 4)
        memory.ingest(views, views.lane.size, 4 * (k % 2), lanes_of_worker=4)
        memory.sample(out)
        memory.update_priorities(out.leaf, out.serial, 1 + rng.random(16))
    tables, end = tables_of(memory), settled(memory)
    ranges = [Copied(rows_between(memory, a, b)) for a, b in ((0 * end, end // 2), (end // 2, end))]
    other = make(n_lanes=lanes, batch_size=16, capacity=4096)
    load_replay(other, tables, ranges)
    if lanes == 8:
        other.close_lanes(0, 8)
    other.check_valid()
    memory.close_lanes(0, 8)
    assert episodes_in(other) == episodes_in(memory)
    assert (other.steps, other.size) == (memory.steps, memory.size)
    other.sample(out)


def test_other_lanes_that_are_too_short_keep_the_newest_rows():
    memory = make(n_lanes=1, batch_size=4, capacity=1024)
    memory.ingest(chunk_of(numbered(900)), 900, 0, lanes_of_worker=1)
    other = make(n_lanes=8, batch_size=4, capacity=1024)
    load_replay(
        other, tables_of(memory), [Copied(rows_between(memory, oldest(memory), settled(memory)))]
    )
    other.check_valid()
    assert other.steps == memory.steps
    assert 100 < other.size <= memory.size


def test_of_more_rows_than_fit_every_lane_keeps_its_newest():
    """Four lanes of 900 rows into 1024 rows: some 256 of each, the oldest go."""
    memory = make(n_lanes=4, batch_size=4, capacity=4096)
    for lane in range(4):
        rows = [
            (0, Row((1000 * lane + k, 1, 1), (k, -k), float(k), BOUNDARY if k % 30 == 29 else 0))
            for k in range(900)
        ]
        memory.ingest(chunk_of(rows), 900, lane, lanes_of_worker=1)
    other = make(n_lanes=4, batch_size=4, capacity=1024)
    ranges = [Copied(rows_between(memory, oldest(memory), settled(memory)))]
    assert load_replay(other, tables_of(memory), ranges).kept == 3600
    other.check_valid()
    kept = sorted(int(obs[0]) for obs in other.rows.obs if obs.any())
    for lane in range(4):
        serials = [k - 1000 * lane for k in kept if k // 1000 == lane]
        assert serials == list(range(serials[0], 900))
        assert 256 - 2 * 30 <= len(serials) <= 256


def test_a_saved_replay_of_another_shape_is_refused():
    saved = tables_of(make())
    with pytest.raises(ConfigError, match="has frames per stack = 1 and this one 3"):
        load_replay(make(shape=STACKED), saved, [])
    with pytest.raises(ConfigError, match="has bytes per component = 4 and this one 1"):
        load_replay(make(shape=replace(VECTOR, pixels=True)), saved, [])


@pytest.mark.skipif(numba_config.DISABLE_JIT, reason="is that other process")
def test_kernels_are_the_same_program_without_compilation():
    """The hand-computed tests pass as plain Python, and a whole story gives the same bits."""
    here = Path(__file__).parent
    env = os.environ | {
        "NUMBA_DISABLE_JIT": "1",
        "PYTHONPATH": os.pathsep.join([str(here), *sys.path]),
    }
    code = "import test_replay_seeds as t; print(t.story(3), t.story(3, t.PIXELS))"
    done = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True)
    assert done.stdout.split() == [story(3), story(3, PIXELS)], done.stderr
    files = ["sum_tree", "nstep", "lanes", "stacks", "statistics"]
    slow = "not AgainstList and not whatever and not random and not follow and not pattern"
    quick = ["-q", "-p", "no:cacheprovider", "--noconftest", "-k", slow]
    command = [sys.executable, "-m", "pytest", *quick, *(f"test_{name}.py" for name in files)]
    done = subprocess.run(command, env=env, cwd=here, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-3000:]


KERNELS = [
    sum_tree.repair_sums, sum_tree.draw_strata, sum_tree.first_refused, lanes.append_rows,
    statistics.observe_rewards, statistics.observe_vectors, statistics.observe_pixels,
    nstep.n_step_windows, batch.touch_rows, batch.gather_rows, batch.gather_obs,
    batch.gather_stacks, replay.write_fresh,
]  # fmt: skip


@pytest.mark.skipif(numba_config.DISABLE_JIT, reason="nothing is compiled")
def test_nothing_is_compiled_after_construction():
    for shape in SHAPES:
        memory = make(shape=shape, batch_size=8)
        before = [len(k.signatures) for k in KERNELS]
        for n in (1, 5, 200):
            views = chunk_of(numbered(n), shape)
            memory.ingest(views, n, 1, lanes_of_worker=2, new_incarnation=True)
        memory.close_lanes(0, 4)
        out = Batch.allocate(8, shape)
        memory.sample(out)
        out.priority[:] = 1.5
        memory.update_priorities(out.leaf, out.serial, out.priority)
        assert [len(k.signatures) for k in KERNELS] == before
