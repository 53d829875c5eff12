"""The replay as its owner sees it: chunks in, prioritised n-step batches out. Stages 3 and 4 of 8.

One owner thread calls everything here; nothing is shared with another thread or process. Classes
check, kernels do not. A row cannot be overwritten while it is gathered: the same thread ingests.
"""

from __future__ import annotations

import numpy as np

from fdql.config import ReplayConfig
from fdql.kernel_cache import njit
from fdql.replay.batch import Batch, gather_rows, touch_rows
from fdql.replay.lanes import HEAD, SAMPLEABLE, SLOT, STEPS, LaneStore
from fdql.replay.nstep import n_step_windows
from fdql.replay.size import check_lanes, default_capacity, lane_rows_for
from fdql.replay.statistics import Statistics
from fdql.replay.sum_tree import F64, I64, SumTree
from fdql.shm.chunk import ChunkSchema, ChunkViews, RowShape

__all__ = ["Batch", "Replay"]

# Steps between two looks at the reward scale; fewer at the start, where it grows a hundredfold and
# the warm-up's updates come all at once.
RESCALE_STEPS = 1000
PRIORITY_RATE = 0.01  # weight of a batch's mean priority in the priority of new rows


@njit()
def write_fresh(
    leaf: I64, serial: I64, priority: F64, table: I64, lane_rows: int, tree: F64, touched: I64
) -> int:
    """Write the priorities of rows that are still what was drawn, in order. Returns how many.

    leaf, serial  (B,) int64 as sampled; stale when the row at the leaf has another serial now
    touched       (>= B,) int64, written: leaves whose sums the caller repairs
    """
    fresh = 0
    for b in range(leaf.size):
        lane = leaf[b] // lane_rows
        age = table[lane, SLOT] - 1 - (leaf[b] - lane * lane_rows)
        now = table[lane, HEAD] - 1 - (age if age >= 0 else age + lane_rows)
        if now == serial[b] and tree[leaf[b]] > 0.0:
            tree[leaf[b]] = priority[b]
            touched[fresh] = leaf[b]
            fresh += 1
    return fresh


class Replay:
    """Rows, priorities and statistics of `n_lanes` environments, drawn in proportion to priority.

    config       capacity in rows (None: default_capacity) and n_step
    shape        of a row, as in ChunkSchema; every frame of a stack is stored once
    n_lanes      environments of the whole run; those of one worker are neighbours
    discount     per step, of the n-step sums and of the reward scale
    v_max        largest value, in scaled rewards, that the critics represent
    batch_size   transitions per sample
    seed         of the draws: the same calls give the same batches

    ConfigError when a lane would be shorter than its n-step windows and stacks need.
    """

    def __init__(
        self, config: ReplayConfig, *, shape: RowShape, n_lanes: int, discount: float,
        v_max: float, batch_size: int, seed: int,
    ) -> None:  # fmt: skip
        capacity = config.capacity or default_capacity(shape)
        lane_rows = lane_rows_for(capacity, n_lanes)
        check_lanes(capacity, n_lanes, config.n_step, shape.stack)
        self.shape = shape
        self.rows = LaneStore(
            n_lanes=n_lanes, lane_rows=lane_rows, shape=shape, n_step=config.n_step
        )
        self.statistics = Statistics(n_lanes=n_lanes, shape=shape, discount=discount, v_max=v_max)
        self.tree = SumTree(n_lanes * lane_rows)
        self.new_priority = 1.0  # of rows that become sampleable: running mean of the learner's
        self.stale = 0  # priorities dropped because their row was overwritten
        self.rescale_at = 1  # steps
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self._u: F64 = np.zeros(batch_size, dtype=np.float64)
        self._end: I64 = np.zeros(batch_size, dtype=np.int64)
        self._touched: I64 = np.zeros(batch_size, dtype=np.int64)
        schema = ChunkSchema(1, shape)
        self._no_rows = schema.views(bytearray(schema.nbytes))
        self._load_kernels(Batch.allocate(0, shape))

    def _load_kernels(self, empty: Batch) -> None:
        """Compile or load every kernel now, on nothing, so that no later call waits for one."""
        self._append(self._no_rows, 0, 0, 1, close=False)
        self.statistics.observe(self._no_rows, 0, 0)
        self.tree.load_kernels()
        self._gather(empty)
        self._write(empty.leaf, empty.serial, empty.priority)

    @property
    def steps(self) -> int:
        """Steps ever ingested; BOUNDARY rows are not steps."""
        return int(self.rows.counters[STEPS])

    @property
    def size(self) -> int:
        """Rows that can be sampled."""
        return int(self.rows.counters[SAMPLEABLE])

    @property
    def capacity(self) -> int:
        """Rows of all lanes; BOUNDARY rows take places too."""
        return self.tree.n_leaves

    @property
    def nbytes(self) -> int:
        """Bytes of rows and tree when full."""
        return self.rows.nbytes + self.tree.nbytes

    @property
    def reward_scale(self) -> float:
        """What rewards are divided by, as of the last look at it."""
        return self.statistics.reward_scale

    def ingest(
        self, views: ChunkViews, n_rows: int, first_lane: int, *, new_incarnation: bool = False,
        lanes_of_worker: int,
    ) -> int:  # fmt: skip
        """Store rows 0..n_rows of a worker's chunk. Returns how many of them are steps.

        The row with views.lane l goes to lane first_lane + l; l < lanes_of_worker. new_incarnation
        closes the worker's open episodes first. Observations and rewards must be finite: the worker
        checks. ValueError when rows or lanes are out of range; then nothing has changed.
        """
        if not 0 <= n_rows <= views.lane.size:
            raise ValueError(f"n_rows = {n_rows}: the chunk has {views.lane.size} rows")
        self._check_lanes(first_lane, lanes_of_worker)
        if n_rows and np.maximum.reduce(views.lane[:n_rows]) >= lanes_of_worker:
            raise ValueError(f"the chunk names a lane that is not in 0..{lanes_of_worker - 1}")
        before = self.steps
        self._append(views, n_rows, first_lane, lanes_of_worker, close=new_incarnation)
        self.statistics.observe(views, n_rows, first_lane)
        after = self.steps
        if after >= self.rescale_at:
            self.statistics.rescale()
            self.rescale_at = after + min(RESCALE_STEPS, after // 8)
        return after - before

    def restore(self, views: ChunkViews, n_rows: int, lane: int) -> None:
        """Store saved rows 0..n_rows again, in `lane`; statistics have seen them already."""
        self._check_lanes(lane, 1)
        self._append(views, n_rows, lane, 1, close=False)

    def close_lanes(self, first_lane: int, n_lanes: int) -> None:
        """End the open episodes of lanes whose worker is gone.

        The newest row, whose successor is unknown, becomes the BOUNDARY row; the step before it
        counts as truncated there. A step that terminated stays what it is.
        """
        self._check_lanes(first_lane, n_lanes)
        self._append(self._no_rows, 0, first_lane, n_lanes, close=True)

    def sample(self, out: Batch) -> None:
        """Fill `out`, batch_size rows ascending by leaf. NotEnoughData when none can be."""
        self.draw(out)
        self.gather(out)

    def draw(self, out: Batch) -> None:
        """First half of `sample`: choose the rows. NotEnoughData when none can be."""
        if out.leaf.size != self._u.size:
            raise ValueError(f"a batch of {out.leaf.size}: this replay draws {self._u.size} rows")
        self.rng.random(out=self._u)
        self.tree.draw(self._u, out.leaf)

    def gather(self, out: Batch) -> None:
        """Second half of `sample`: the transitions of the rows just drawn, and the statistics."""
        self._gather(out)
        # One mean and one scale for all frames of a stack.
        out.obs_mean.reshape(self.shape.stack, -1)[:] = self.statistics.obs_mean
        out.obs_scale.reshape(self.shape.stack, -1)[:] = self.statistics.obs_scale
        out.reward_scale[0] = self.statistics.reward_scale

    def update_priorities(self, leaf: I64, serial: I64, priority: F64) -> int:
        """Write the learner's priorities (B,) of sampled rows (B,), (B,). Returns how many counted.

        Those of overwritten rows are dropped and counted in `stale`; a row drawn twice keeps its
        last. PriorityError for values outside [1e-100, 1e100], IndexError for leaves outside the
        tree, ValueError for unequal lengths: then nothing has changed.
        """
        if leaf.size != serial.size:
            raise ValueError(f"{leaf.size} leaves and {serial.size} serials")
        self.tree.check(leaf, priority, zero_allowed=False)
        if leaf.size == 0:
            return 0
        fresh = self._write(leaf, serial, priority)
        self.stale += leaf.size - fresh
        mean = float(np.add.reduce(priority)) / priority.size
        self.new_priority = max(1.0, self.new_priority + PRIORITY_RATE * (mean - self.new_priority))
        return fresh

    def check_valid(self) -> None:
        """AssertionError unless tree, lane table and the rows' flags agree. O(rows), for tests."""
        self.tree.check_valid()
        self.rows.check_valid(self.tree.leaves)

    def _append(
        self, views: ChunkViews, n_rows: int, first_lane: int, n_lanes: int, *, close: bool
    ) -> None:
        store, tree = self.rows, self.tree
        touched = store.append(
            views, n_rows, first_lane, n_lanes, tree.tree, self.new_priority, close=close
        )
        tree.repair(store.touched, touched)

    def _gather(self, out: Batch) -> None:
        store, end = self.rows, self._end
        if not self.shape.pixels:  # an image is many lines in a row, which the processor foresees
            touch_rows(
                out.leaf, store.n_step, store.flags, store.reward, store.version, store.action,
                store.obs,
            )  # fmt: skip
        n_step_windows(
            store.flags, store.reward, store.table, store.lane_rows, store.n_step,
            self.statistics.discount, out.leaf, out.serial, end, out.reward, out.discount,
        )  # fmt: skip
        gather_rows(
            out.leaf, end, store.stack, store.lane_rows, store.flags, store.obs, store.action,
            store.version,
            out.obs, out.next_obs, out.action_words, out.version,
        )  # fmt: skip

    def _write(self, leaf: I64, serial: I64, priority: F64) -> int:
        if self._touched.size < leaf.size:
            self._touched = np.zeros(leaf.size, dtype=np.int64)
        store, tree = self.rows, self.tree
        fresh: int = write_fresh(
            leaf, serial, priority, store.table, store.lane_rows, tree.tree, self._touched
        )
        tree.repair(self._touched, fresh)
        return fresh

    def _check_lanes(self, first_lane: int, n_lanes: int) -> None:
        if not (n_lanes >= 1 and first_lane >= 0 and first_lane + n_lanes <= self.rows.n_lanes):
            last = first_lane + n_lanes - 1
            raise ValueError(f"lanes {first_lane}..{last}: this replay has {self.rows.n_lanes}")
