"""Stages 1 and 2: what a worker writes, row by row; nothing crosses a reset; bad values stop at the
door.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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

    def asked(self) -> np.ndarray:
        """What the policy is asked about, (4, stack, obs_dim), by lane."""
        spec = self.memory.plan.env
        raw = np.frombuffer(self.server.obs, dtype=np.uint8).reshape(4, -1)
        rows = raw[:, : self.memory.plan.obs_bytes].view(spec.rows.obs_dtype)
        return rows.reshape(4, spec.stack, spec.obs_dim)


@contextmanager
def driven(env: str, tmp_path: Path, **changes: bool) -> Iterator[Driven]:
    plan = small_plan(env, tmp_path)
    plan = replace(plan, env=replace(plan.env, **changes))
    memory = RunMemory.create(plan, shared=False)
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


def test_a_termination_at_the_time_limit_is_a_termination(own_environments, tmp_path):
    with driven("own_envs:EndsTwice", tmp_path) as d:
        for _ in range(8):
            d.step()
        d.drain()
        flags = [r[1] for r in d.rows if r[0] == 0]
        assert flags == [RESET, 0, 0, 0, 0, 0, TERMINATED, BOUNDARY, RESET]


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


def stacked(*frames: int) -> list[list[int]]:
    """A stack of 4 whose frames each hold one number, 1600 times; the first for those before."""
    return [[frame] * 1600 for frame in (*frames[:1] * (4 - len(frames)), *frames)]


def test_a_lost_life_ends_the_learners_episode_and_not_the_game(own_environments, tmp_path):
    with driven("own_envs:Lives", tmp_path, atari=True) as d:
        assert d.memory.plan.obs_bytes == 4 * 1600
        seen = [d.asked().tolist()]
        for _ in range(16):
            d.step()
            seen.append(d.asked().tolist())
        d.drain()
        done = d.worker.take_finished()
    signs = [1.0, -1.0, 0.0, 1.0, -1.0, 0.0, 1.0]
    expected: list[tuple[int, float, int]] = []
    for game, ends in ((10, TERMINATED), (20, TRUNCATED)):
        expected += [
            (RESET, signs[0], game),
            (0, signs[1], game + 1),
            (TERMINATED, signs[2], game + 2),
            (BOUNDARY, 0.0, game + 3),
            (RESET, signs[3], game + 3),
            (0, signs[4], game + 4),
            (0, signs[5], game + 5),
            (ends, signs[6], game + 6),
            (BOUNDARY, 0.0, game + 7),
        ]
    expected += [(RESET, 1.0, 30), (0, -1.0, 31)]
    asked = []  # since the reset or the lost life, and never more than 4
    for game in (10, 20):
        asked += [(game,), (game, game + 1), (game, game + 1, game + 2)]
        asked += [tuple(range(game + 3, game + n)) for n in (4, 5, 6, 7)]
    asked += [(30,), (30, 31), (30, 31, 32)]
    for lane in range(4):
        rows = [r for r in d.rows if r[0] == lane]
        assert [(r[1], r[2], r[3]) for r in rows] == [(f, x, [o] * 1600) for f, x, o in expected]
        assert [s[lane] for s in seen] == [stacked(*frames) for frames in asked]
    assert done.returns == [5.0 - 2 + 0 + 5 - 2 + 0 + 5] * 8
    assert done.lengths == [7] * 8


def test_images_that_are_no_game_keep_their_rewards_and_lives(own_environments, tmp_path):
    with driven("own_envs:Lives", tmp_path) as d:
        for _ in range(7):
            d.step()
        d.drain()
    rows = [r for r in d.rows if r[0] == 0]
    assert [r[1] for r in rows] == [RESET, 0, 0, 0, 0, 0, TERMINATED, BOUNDARY]
    assert [r[2] for r in rows] == [5.0, -2.0, 0.0, 5.0, -2.0, 0.0, 5.0, 0.0]


def test_a_game_of_atari_steps(tmp_path):
    with driven("ALE/Pong-v5", tmp_path) as d:
        before = d.asked().copy()
        assert (before == before[:, -1:]).all()  # the first frame for those before it
        assert before.any(axis=(1, 2)).all()
        for k in range(3):
            d.step()
            after = d.asked().copy()
            assert (after[:, :-1] == before[:, 1:]).all()
            d.drain()
            newest = {r[0]: r[3] for r in d.rows[4 * k :]}
            assert all(newest[lane] == before[lane, -1].tolist() for lane in range(4))
            before = after
        assert len(d.rows) == 12


def test_the_evaluators_games_are_whole_and_unclipped(own_environments, tmp_path):
    from fdql.proc.arena import Arena

    class Watching:
        def __init__(self) -> None:
            self.seen: list[list[list[int]]] = []

        def greedy(self, rows: np.ndarray, actions: np.ndarray) -> None:
            assert (rows.dtype, rows.shape[1]) == (np.uint8, 4 * 1600)
            self.seen.append(rows[0].reshape(4, 1600).tolist())
            actions[:] = 0

        def action_values(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
            return np.full(len(rows), 2.0, dtype=np.float32)

    spec = replace(small_plan("own_envs:Lives", tmp_path).env, atari=True)
    arena, policy = Arena(spec, [0, 1], 100, 0.5), Watching()
    result = arena.play(policy, lambda: True)  # type: ignore[arg-type]
    arena.close()
    assert result is not None
    assert result.returns.tolist() == [11.0, 11.0]
    assert result.lengths.tolist() == [7, 7]
    # What the learner sees of it: 1 - 1 / 2 + 0 / 4, then a life is lost.
    assert result.discounted.tolist() == [0.5, 0.5]
    assert result.q_bias(1.0) == 1.5
    assert policy.seen == [stacked(*range(max(10, n - 3), n + 1)) for n in range(10, 17)]


def test_seeds_differ_between_lanes_and_incarnations():
    seeds = {env_seed(s, lane, k) for s in range(3) for lane in range(16) for k in (1, 2)}
    assert len(seeds) == 3 * 16 * 2
