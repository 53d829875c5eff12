"""Stages 1 and 2 of 8, `step` and `ring`: one process that steps environments and hands transitions
over.

Reads its action slots; writes its observation slots and its transition ring. Two groups of
environments take turns: one steps, one waits for actions. Imports neither torch nor numba.

A row of the ring is (obs_t, action_t, reward_t, how the step ended). The next row of the same lane
holds obs_{t+1}: the next step's, or, when the episode ended, a BOUNDARY row with the final
observation, so that no transition ever crosses a reset (the worker resets its environments itself).

An observation slot holds what the policy is asked about, the newest `stack` observations; a row of
the ring only the newest of them. Of an Atari game the ring holds the sign of each reward, and a
lost life as the end of an episode: TERMINATED, a BOUNDARY row, and a RESET row after which the game
simply goes on. The returns and lengths reported are those of whole games, rewards as they are.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.config import BadValueError
from fdql.env_spec import ActionScale
from fdql.envs import make_env
from fdql.frames import FrameStacks
from fdql.proc.env_state import (
    EnvState,
    Finished,
    bad_observation,
    check_finite,
    env_seed,
    random_state,
)
from fdql.proc.events import Events
from fdql.proc.memory import RECORD_WORKERS, RunMemory
from fdql.profile import Counter, Mark, Stage
from fdql.shm.chunk import BOUNDARY, RESET, TERMINATED, TRUNCATED, ChunkViews, chunk_id
from fdql.shm.records import now_ns

EPISODES_EVERY_NS = 250_000_000  # finished episodes are reported at this interval
SLICE_NS = 100_000_000  # longest wait between two looks at the stop word


class EnvWorker:
    """The loop body: `start` once, then `step_group` whenever a group's actions are there."""

    def __init__(self, memory: RunMemory, worker: int, incarnation: int) -> None:
        plan = memory.plan
        self.spec, self.worker, self.incarnation = plan.env, worker, incarnation
        self.repeatable = plan.config.serial  # open episodes can be played again on resume
        self.pixels = plan.env.rows.pixels
        self.memory = memory
        self.groups, self.per_group = plan.config.engine.groups, plan.envs_per_group
        self.record = memory.own_record(RECORD_WORKERS + worker)
        self.ring = memory.ring_writer(worker)
        self.slots = memory.slot_client(worker)
        # A predecessor may have died between the hand-over of a chunk and its own count of it.
        before = self.record.get(Counter.BEFORE)
        self.record.set(Counter.STEPS, before + self.ring.committed_steps)
        # Last: by it inference sees a successor, and then counts by what stands above.
        self.record.set(Counter.INCARNATION, incarnation)
        self.slots.spin_ns = plan.spin_ns
        schema = plan.chunk
        self.chunks = [schema.views(self.ring.payload(i)) for i in range(self.ring.capacity)]
        self.chunk_rows, self.commit_rows = schema.rows, plan.config.engine.commit_rows
        # Serial mode hands over after every pass: nothing in it may depend on time.
        self.commit_ns = 1 << 62 if self.repeatable else int(plan.config.engine.commit_ms * 1e6)
        self.to_row = self.spec.to_row
        self.stacks = [self._stacks(g) for g in range(self.groups)]
        self.actions = [self._action_view(g) for g in range(self.groups)]
        self.scale = ActionScale(self.spec)
        self.states: list[list[EnvState]] = []
        for g in range(self.groups):
            self.states.append([])
            for e in range(self.per_group):
                lane = g * self.per_group + e
                seed = self.lane_seed(lane)
                self.states[g].append(EnvState(make_env(self.spec.env), lane, seed))
                self.record.heartbeat(Stage.STEP_RESET)  # the next one may take long too
        self.lanes = [np.array([s.lane for s in group], dtype=np.uint16) for group in self.states]
        self.fresh = [np.zeros(self.per_group, dtype=np.uint8) for _ in self.lanes]  # RESET or 0
        self.finished = Finished()
        self.slot = -1  # of the chunk being filled, -1: none
        self.rows = self.steps = self.version = 0
        self.opened_ns = 0

    def lane_seed(self, lane: int) -> int:
        """Seed of the first reset of one of its environments."""
        plan = self.memory.plan
        lane += self.worker * plan.envs_per_worker
        return env_seed(plan.config.seed, lane, self.incarnation, plan.resumes)

    def _stacks(self, group: int) -> FrameStacks:
        shape, raw = self.spec.rows, np.frombuffer(self.slots.obs(group), dtype=np.uint8)
        rows = raw.reshape(self.per_group, -1)[:, : shape.stack * shape.obs_nbytes]
        return FrameStacks(rows.view(shape.obs_dtype), shape.stack)

    def _action_view(self, group: int) -> NDArray[Any]:
        raw = np.frombuffer(self.slots.actions(group), dtype=np.uint8).reshape(self.per_group, -1)
        if self.spec.discrete:
            return raw[:, :4].view(np.int32)[:, 0]
        return raw[:, : 4 * self.spec.action_dim].view(np.float32)

    def start(self) -> None:
        """Reset every environment and ask for the first actions."""
        for g, group in enumerate(self.states):
            for e, state in enumerate(group):
                self.reset(g, e, state, state.seed)
            self.slots.submit(g)

    def reset(self, group: int, e: int, state: EnvState, seed: int | None) -> None:
        """Reset an environment; the policy is asked about its first observation next."""
        if self.repeatable:
            state.random = random_state(state.env) if seed is None else None
        first, info = state.env.reset(seed=seed)
        state.lives = info.get("lives", 0)
        try:
            self.stacks[group].reset(e, self.to_row(first))
        except BadValueError as error:
            raise bad_observation(error, self.spec, state) from None
        self.fresh[group][e] = RESET
        self.record.heartbeat(Stage.STEP_RESET)  # those of a group may end on the same step

    def _chunk(self, room: int) -> ChunkViews | None:
        """The chunk being filled, with at least `room` rows left; None when told to stop while the
        ring is full.
        """
        if self.slot >= 0 and self.rows + room > self.chunk_rows:
            self.commit()
        if self.slot < 0:
            self.opened_ns = now_ns()
            while (slot := self.ring.reserve()) < 0:
                if self.memory.control.stop:
                    return None
                self.ring.wait_not_full(SLICE_NS)
                self.record.heartbeat(Stage.RING)
                self.opened_ns = self.record.observe_since(Stage.WAIT_ROOM, self.opened_ns)
            self.slot, self.rows, self.steps = slot, 0, 0
        return self.chunks[self.slot]

    def commit(self) -> None:
        """Hand the open chunk over, if it holds anything."""
        if self.slot >= 0 and self.rows:
            t0 = now_ns()
            if self.record.tracing:  # before the commit: nobody can be quicker
                self.record.mark(Mark.COMMITTED, chunk_id(self.worker, self.ring.committed + 1))
            self.ring.commit(self.rows, self.steps, self.version)
            self.record.add(Counter.STEPS, self.steps)
            self.slot = -1
            self.record.observe_since(Stage.RING, t0)

    def commit_if_old(self, now: int) -> None:
        """Hand the open chunk over when it is full enough or old enough."""
        if self.slot >= 0 and (
            self.rows >= self.commit_rows or (self.rows and now - self.opened_ns > self.commit_ns)
        ):
            self.commit()

    def step_group(self, group: int) -> bool:
        """Step the environments of a group whose actions have arrived. False: told to stop."""
        chunk = self._chunk(2 * self.per_group)
        if chunk is None:
            return False
        t0 = now_ns()
        n, r = self.per_group, self.rows
        stacks, actions, states = self.stacks[group], self.actions[group], self.states[group]
        newest, push, to_row, atari = stacks.newest, stacks.push, self.to_row, self.spec.atari
        self.version = self.slots.policy_version(group)
        if self.record.tracing:
            self.record.mark(Mark.USED, self.slots.request_id(group))
        chunk.lane[r : r + n] = self.lanes[group]
        chunk.obs[r : r + n] = newest
        chunk.action[r : r + n] = actions
        chunk.version[r : r + n] = self.version
        chunk.flags[r : r + n] = self.fresh[group]
        self.fresh[group][:] = 0
        end = r + n
        scaled = self.scale(actions)
        t1 = now_ns()
        results = [s.env.step(action) for s, action in zip(states, scaled, strict=True)]
        self.record.observe_since(Stage.STEP_ENV, t1)
        for e, (state, result) in enumerate(zip(states, results, strict=True)):
            after, reward, terminated, truncated, info = result
            state.steps += 1
            state.episode_length += 1
            state.episode_return += float(reward)
            chunk.reward[r + e] = reward
            try:
                push(e, to_row(after))
            except BadValueError as error:
                raise bad_observation(error, self.spec, state) from None
            if terminated or truncated:
                chunk.flags[r + e] |= TERMINATED if terminated else TRUNCATED
                self._boundary(chunk, end, group, e, state)
                end += 1
                self._end_episode(group, e, state)
            elif atari and (lives := info.get("lives", 0)) != state.lives:
                if lives < state.lives:
                    chunk.flags[r + e] |= TERMINATED
                    self._boundary(chunk, end, group, e, state)
                    end += 1
                    stacks.reset(e, newest[e])
                    self.fresh[group][e] = RESET
                state.lives = lives
        rewards = chunk.reward[r : r + n]
        if not (np.isfinite(rewards).all() and (self.pixels or np.isfinite(newest).all())):
            for e, state in enumerate(states):  # rare: find out which one it was
                check_finite(rewards[e], "the reward", self.spec, state)
                check_finite(newest[e], "the observation", self.spec, state)
        if atari:
            np.sign(rewards, out=rewards)
        self.rows, self.steps = end, self.steps + n
        if self.record.tracing:  # before the request: nobody can be quicker
            self.record.mark(Mark.ASKED, self.slots.request_id(group) + 1)
        self.slots.submit(group)
        self.commit_if_old(self.record.observe_since(Stage.STEP, t0))
        return True

    def _boundary(self, chunk: ChunkViews, row: int, group: int, e: int, state: EnvState) -> None:
        """Write what the learner takes for the episode's final observation."""
        final = self.stacks[group].newest[e]
        if not self.pixels:
            check_finite(final, "the final observation", self.spec, state)
        chunk.lane[row], chunk.flags[row], chunk.version[row] = state.lane, BOUNDARY, self.version
        chunk.obs[row], chunk.reward[row], chunk.action[row] = final, 0.0, 0

    def _end_episode(self, group: int, e: int, state: EnvState) -> None:
        self.finished.returns.append(state.episode_return)
        self.finished.lengths.append(state.episode_length)
        state.episode_return, state.episode_length = 0.0, 0
        t0 = now_ns()
        self.reset(group, e, state, None)
        self.record.observe_since(Stage.STEP_RESET, t0)

    def take_finished(self) -> Finished:
        """Episodes that ended since the last call."""
        done, self.finished = self.finished, Finished()
        self.record.add(Counter.EPISODES, len(done.returns))
        return done

    def close(self) -> None:
        """Hand over what is left, close the environments; one that raises has done its work."""
        self.commit()
        for group in self.states:
            for state in group:
                with contextlib.suppress(Exception):
                    state.env.close()


def env_worker_main(memory: RunMemory, events: Events, worker: int, incarnation: int) -> int:
    """Run until told to stop. Returns 0; raises what the environment raises, BadValueError for NaN
    and inf.
    """
    body = EnvWorker(memory, worker, incarnation)
    body.start()
    record, control = body.record, memory.control
    record.heartbeat(Stage.WAIT)  # who is ready is watched
    events.send("ready", role=f"worker {worker}", pid=os.getpid())
    reported = now_ns()
    while not control.stop:
        for group in range(body.groups):
            t0 = now_ns()
            # Never sleep longer than an open chunk may age: a held-back worker still hands its rows
            # over.
            while not body.slots.wait(group, body.commit_ns if body.rows else SLICE_NS):
                if control.stop:
                    break
                body.commit_if_old(now_ns())
                record.heartbeat(Stage.WAIT)
            if control.stop:
                break
            now = record.observe_since(Stage.WAIT, t0)
            record.heartbeat(Stage.STEP)
            if not body.step_group(group):
                break
            if now - reported > EPISODES_EVERY_NS:
                reported = now
                send_finished(body, events)
    send_finished(body, events)
    body.close()
    return 0


def send_finished(body: EnvWorker, events: Events) -> None:
    """Report the finished episodes, at most 500 in a line."""
    done = body.take_finished()
    for i in range(0, len(done.returns), 500):
        part = slice(i, i + 500)
        events.send("episodes", returns=done.returns[part], lengths=done.lengths[part])


if __name__ == "__main__":
    from fdql.proc.child import run_child

    sys.exit(run_child(lambda m, e, a: env_worker_main(m, e, int(a[0]), int(a[1]))))
