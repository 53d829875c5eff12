"""The replay against a list of every row ever sent, over random lives of workers and learner."""

from __future__ import annotations

import math

import numpy as np
import pytest
from chunks import PIXELS, V_MAX, VECTOR, chunk_of, make
from fdql.replay.replay import Batch
from fdql.replay.sum_tree import NotEnoughData
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from oracles import (
    BOUNDARY,
    RESET,
    TERMINATED,
    TRUNCATED,
    NaiveReplay,
    Row,
    naive_stack,
    naive_window,
)

LANES = (0, 1, 126, 127)  # workers of two lanes at both ends of the tree

STEP = st.sampled_from(["step"] * 6 + ["first", "terminated", "truncated", "both"])
LOST = st.sampled_from(["terminated, no boundary", "truncated, no boundary", "boundary"])
EVENT = st.tuples(st.integers(0, 1), st.one_of(STEP, STEP, STEP, LOST))


class ReplayAgainstList(RuleBasedStateMachine):
    """Two workers send episodes, die, and forget boundary rows; a learner is batches late."""

    shape = VECTOR
    lane_rows = 8  # so that rings wrap every few chunks

    def __init__(self) -> None:
        super().__init__()
        self.n_step = 3
        self.memory = make(
            n_lanes=128, capacity=128 * self.lane_rows, n_step=self.n_step, batch_size=16, seed=9,
            shape=self.shape,
        )  # fmt: skip
        self.naive = NaiveReplay(128, self.lane_rows, self.n_step, 0.9, self.shape.stack)
        self.late: list[Batch] = []
        self.sent = 0

    def row(self, kind: str) -> list[Row]:
        self.sent += 1
        obs = (float(self.sent), float(self.sent % 7), 1.0)
        final = (-obs[0], 0.0, 0.0)
        if self.shape.pixels:
            obs = (self.sent % 256, self.sent // 256, 1)
            final = (*obs[:2], 2)
        if kind == "boundary":
            return [Row(obs, flags=BOUNDARY, version=self.sent)]
        flags = RESET if kind == "first" else 0
        flags |= TERMINATED if kind.startswith(("terminated", "both")) else 0
        flags |= TRUNCATED if kind.startswith(("truncated", "both")) else 0
        reward = float(self.sent % 5 - 2)
        rows = [Row(obs, (float(self.sent), 0.5), reward, flags, self.sent)]
        if kind in ("terminated", "truncated", "both"):
            rows.append(Row(final, flags=BOUNDARY, version=self.sent))
        return rows

    @rule(
        worker=st.integers(0, 1),
        events=st.lists(EVENT, max_size=30),
        new_incarnation=st.sampled_from([False] * 5 + [True]),
    )
    def ingest(self, worker, events, new_incarnation):
        rows = [(lane, r) for lane, kind in events for r in self.row(kind)]
        first = LANES[2 * worker]
        steps = self.memory.ingest(
            chunk_of(rows, self.shape),
            len(rows),
            first,
            new_incarnation=new_incarnation,
            lanes_of_worker=2,
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
        out = Batch.allocate(16, self.shape)
        if not self.naive.priority:
            with pytest.raises(NotEnoughData):
                self.memory.sample(out)
            return
        self.memory.sample(out)
        for b in range(16):
            lane = int(out.leaf[b]) // self.lane_rows
            serial = int(out.serial[b])
            assert (lane, serial) in self.naive.priority
            assert self.naive.leaf(lane, serial) == out.leaf[b]
            rows = self.naive.lanes[lane]
            total, discount, after = naive_window(rows, serial, self.n_step, 0.9)
            assert out.reward[b] == pytest.approx(total, abs=1e-5)
            assert out.discount[b] == pytest.approx(discount)
            if discount:  # after a terminal step the observation is not used
                assert out.next_obs[b].tolist() == naive_stack(rows, after, self.shape.stack)
            assert out.obs[b].tolist() == naive_stack(rows, serial, self.shape.stack)
            action = rows[serial].action
            assert out.action[b].tolist() == (action[0] if self.shape.discrete else list(action))
            assert out.version[b] == rows[serial].version
        self.late.append(out)
        if self.shape.pixels:
            columns = zip(*(row.obs for row in self.naive.steps), strict=True)
            mean = [math.floor(math.fsum(c) / len(c) + 0.5) for c in columns]
            assert out.obs_mean.tolist() == mean * self.shape.stack
            assert out.obs_scale.size == 0
            return
        mean, variance = self.naive.obs_moments()
        assert out.obs_mean == pytest.approx(mean, rel=1e-5, abs=1e-5)
        floor = [1e-12 * m * m + 1e-16 for m in mean]
        scale = [1 / math.sqrt(v + f) for v, f in zip(variance, floor, strict=True)]
        assert out.obs_scale == pytest.approx(scale, rel=1e-3)

    @precondition(lambda self: self.late)
    @rule(which=st.integers(0, 9), seed=st.integers(0, 99))
    def learn(self, which, seed):
        out = self.late.pop(which % len(self.late))
        out.priority[:] = np.random.default_rng(seed).integers(1, 64, 16) / 8
        stale = self.memory.stale
        applied = self.memory.update_priorities(out.leaf, out.serial, out.priority)
        wanted = [
            self.naive.update(int(leaf) // self.lane_rows, int(serial), float(p))
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


class StacksAgainstList(ReplayAgainstList):
    """Stacks of 3 frames of uint8."""

    shape = PIXELS
    lane_rows = 16  # a row and the one whose history it takes are not always in one node


LIVES = settings(deadline=None, derandomize=True, max_examples=30, stateful_step_count=25)
TestReplayAgainstList = ReplayAgainstList.TestCase
TestReplayAgainstList.settings = LIVES
TestStacksAgainstList = StacksAgainstList.TestCase
TestStacksAgainstList.settings = LIVES
