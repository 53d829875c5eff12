"""Stages 1 and 2: what a worker writes, row by row; nothing crosses a reset; bad values stop at the
door.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fdql.config import BadValueError
from fdql.proc.env_state import env_seed
from fdql.proc.env_worker import EnvWorker
from fdql.proc.memory import RunMemory
from fdql.profile import Counter
from fdql.shm.chunk import BOUNDARY, RESET, TERMINATED, TRUNCATED
from plans import small_plan


class Driven:
    """A worker in this process, answered by hand; `rows` are what it handed over, in order."""

    def __init__(self, memory: RunMemory) -> None:
        self.memory = memory
        self.server = memory.slot_server()
        self.worker = EnvWorker(memory, 0, 1)
        self.ring = memory.ring_reader(0)
        self.rows: list[tuple[int, int, float, list[float], list[float], int]] = []
        self.ready = np.zeros(2, dtype=np.int32)
        self.worker.start()

    def step(self, version: int = 1, action: int = 1) -> None:
        """Both groups step once with the same action."""
        raw = np.frombuffer(self.server.actions, dtype=np.uint8).reshape(4, -1)
        if self.memory.plan.env.discrete:
            raw[:, :4].view(np.int32)[:] = action
        assert self.server.collect(self.ready, 2, 0, 0) == 2
        self.server.reply(self.ready, 2, version)
        for g in range(2):
            assert self.worker.step_group(g)

    def drain(self) -> None:
        self.worker.commit()
        while self.ring.peek():
            v, n = self.memory.plan.chunk.views(self.ring.payload(0)), self.ring.chunk(0).n_rows
            for i in range(n):
                action = np.atleast_1d(v.action[i]).tolist()
                self.rows.append(
                    (
                        int(v.lane[i]),
                        int(v.flags[i]),
                        float(v.reward[i]),
                        v.obs[i].tolist(),
                        action,
                        int(v.version[i]),
                    )
                )
            self.ring.release(1)


@contextmanager
def driven(env: str, tmp_path: Path) -> Iterator[Driven]:
    memory = RunMemory.create(small_plan(env, tmp_path), shared=False)
    d = Driven(memory)
    yield d
    d.worker.close()


def test_rows_of_a_lane_tell_its_story(own_environments, tmp_path):
    with driven("own_envs:Counting", tmp_path) as d:
        for k in range(16):
            d.step(version=k + 1)
        d.drain()
        for lane in range(4):
            rows = [r for r in d.rows if r[0] == lane]
            # 16 steps: episode 0 (7 steps, terminated), episode 1 (7, truncated), 2 of episode 2,
            # and a
            # boundary row after each end
            assert len(rows) == 18
            expected = []
            for episode, ends in ((0, TERMINATED), (1, TRUNCATED)):
                for t in range(7):
                    flags = (RESET if t == 0 else 0) | (ends if t == 6 else 0)
                    expected.append((flags, float(t + 1), [episode, t]))
                expected.append((BOUNDARY, 0.0, [episode, 7]))
            expected += [(RESET, 1.0, [2, 0]), (0, 2.0, [2, 1])]
            assert [(r[1], r[2], r[3]) for r in rows] == expected
            steps = [r for r in rows if not r[1] & BOUNDARY]
            assert [r[5] for r in steps] == list(range(1, 17))  # the version that chose each action
            assert all(r[4] == [1] for r in steps)
        assert d.worker.record.get(Counter.STEPS) == 64 == d.ring.committed_steps
        done = d.worker.take_finished()
        assert done.returns == [28.0] * 8  # 1 + 2 + ... + 7
        assert done.lengths == [7] * 8


def test_the_policy_never_sees_a_final_observation(own_environments, tmp_path):
    with driven("own_envs:Counting", tmp_path) as d:
        for _ in range(30):
            d.step()
            stride = d.server.obs.nbytes // 16
            obs = np.frombuffer(d.server.obs, dtype=np.float32).reshape(4, stride)[:, :2]
            assert (obs[:, 1] < 7).all()


def test_a_full_ring_holds_the_worker_and_loses_nothing(own_environments, tmp_path):
    from fdql.config import EngineConfig

    engine = EngineConfig(ring_chunks=2, chunk_rows=16, commit_rows=4)
    memory = RunMemory.create(
        small_plan("own_envs:Counting", tmp_path, engine=engine), shared=False
    )
    d = Driven(memory)
    for _ in range(3):
        if d.ring.peek() == 2:
            break
        d.step()
    d.memory.control.stop = 1  # or reserve would wait for room for ever
    before = d.ring.committed_steps
    assert d.worker.step_group(0) is False
    assert d.ring.committed_steps == before
    d.drain()
    assert len([r for r in d.rows if not r[1] & BOUNDARY]) == before
    d.worker.close()


@pytest.mark.parametrize(
    ("env", "what"), [("NanObservation", "the observation"), ("InfReward", "the reward")]
)
def test_a_bad_value_names_environment_seed_and_step(own_environments, tmp_path, env, what):
    with driven(f"own_envs:{env}", tmp_path) as d:

        def step_often() -> None:
            for _ in range(400):
                d.step()
                d.drain()

        with pytest.raises(BadValueError) as caught:
            step_often()
        text = str(caught.value)
        assert what in text
        assert f"own_envs:{env}" in text
        assert "step 300" in text
        assert f"seed {d.worker.states[0][0].seed}" in text


def test_seeds_differ_between_lanes_and_incarnations():
    seeds = {env_seed(s, lane, k) for s in range(3) for lane in range(16) for k in (1, 2)}
    assert len(seeds) == 3 * 16 * 2
