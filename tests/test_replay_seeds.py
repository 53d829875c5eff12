"""The replay is repeatable: by seed, from a checkpoint, without compilation; and draws fairly."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chunks import OBS, PIXELS, SHAPES, STACKED, VECTOR, chunk_of, make, numbered, random_chunk
from fdql.config import ConfigError
from fdql.replay import batch, lanes, nstep, replay, statistics, sum_tree
from fdql.replay.replay import Batch
from fdql.replay.state import load_replay_state, replay_state
from fdql.shm.chunk import RowShape
from numba import config as numba_config
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
    saved = {name: array.copy() for name, array in replay_state(memory).items()}
    most = max(memory.rows.table[:, 0].max(), 0)
    assert saved["obs"].shape == (32, min(most, memory.rows.lane_rows), OBS)
    load_replay_state(other, saved)
    other.check_valid()
    for _ in range(5):
        views, p = random_chunk(rng, 30, 3, shape), 1 + rng.random(16)
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
    with pytest.raises(ConfigError, match="has frames per stack = 1 and this one 3"):
        load_replay_state(make(shape=STACKED), saved)
    with pytest.raises(ConfigError, match="has bytes per component = 4 and this one 1"):
        load_replay_state(make(shape=replace(VECTOR, pixels=True)), saved)


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
    statistics.observe_rows, nstep.n_step_windows, batch.touch_rows, batch.gather_rows,
    batch.gather_obs, batch.gather_stacks, replay.write_fresh,
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
