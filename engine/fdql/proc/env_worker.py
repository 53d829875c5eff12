"""Stages 1 and 2 of 8, `step` and `ring`: one process that steps environments and hands transitions
over.

Reads its action slots; writes its observation slots and its transition ring. Two groups of
environments take turns: one steps while the other waits for its actions. Imports neither torch nor
numba.

A row of the ring is (obs_t, action_t, reward_t, how the step ended). The next row of the same lane
holds obs_{t+1}: the next step's, or, when the episode ended, a BOUNDARY row with the final
observation, so that no transition ever crosses a reset (the worker resets its environments itself).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.config import BadValueError
from fdql.envs import ActionScale, Env, EnvSpec, make_env
from fdql.proc.memory import RECORD_WORKERS, Events, RunMemory
from fdql.profile import Counter, Mark, Stage
from fdql.shm.chunk import BOUNDARY, RESET, TERMINATED, TRUNCATED, ChunkViews, chunk_id
from fdql.shm.records import now_ns

EPISODES_EVERY_NS = 250_000_000  # finished episodes are reported at this interval
SLICE_NS = 100_000_000  # longest wait between two looks at the stop word


@dataclass(slots=True)
class EnvState:
    """One environment of this worker and the episode it is in."""

    env: Env
    lane: int  # index within the worker
    seed: int  # of the first reset
    steps: int = 0  # since that reset
    episode_return: float = 0.0
    episode_length: int = 0


@dataclass(slots=True)
class Finished:
    """Episodes that ended since the last report: returns and lengths."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)


def env_seed(seed: int, lane: int, incarnation: int) -> int:
    """Seed of an environment's first reset: own stream per lane of the run and per restart."""
    return int(np.random.SeedSequence([seed, 1, lane, incarnation]).generate_state(1)[0])


def check_finite(values: NDArray[Any], what: str, spec: EnvSpec, state: EnvState) -> None:
    """Raises BadValueError when `values` holds NaN or an infinity (float32 overflow included)."""
    if not np.isfinite(values).all():
        raise BadValueError(
            f"environment {spec.env!r} (seed {state.seed}, step {state.steps} since that seed) "
            f"returned {what} "
            f"{np.array2string(np.asarray(values), threshold=8)}: every number must be finite in "
            "float32; clip or "
            "repair it in the environment"
        )


class EnvWorker:
    """The loop body: `start` once, then `step_group` whenever a group's actions are there."""

    def __init__(self, memory: RunMemory, worker: int, incarnation: int) -> None:
        plan = memory.plan
        self.spec, self.worker = plan.env, worker
        self.memory = memory
        self.groups, self.per_group = plan.config.engine.groups, plan.envs_per_group
        self.record = memory.own_record(RECORD_WORKERS + worker)
        self.record.set(Counter.INCARNATION, incarnation)
        self.ring = memory.ring_writer(worker)
        self.slots = memory.slot_client(worker)
        schema = plan.chunk
        self.chunks = [schema.views(self.ring.payload(i)) for i in range(self.ring.capacity)]
        self.chunk_rows, self.commit_rows = schema.rows, plan.config.engine.commit_rows
        self.commit_ns = int(plan.config.engine.commit_ms * 1e6)
        stride = self.slots.obs(0).nbytes // self.per_group // 4
        self.obs = [
            np.frombuffer(self.slots.obs(g), dtype=np.float32).reshape(self.per_group, stride)[
                :, : self.spec.obs_dim
            ]
            for g in range(self.groups)
        ]
        self.actions = [self._action_view(g) for g in range(self.groups)]
        self.scale = ActionScale(self.spec)
        self.states: list[list[EnvState]] = []
        for g in range(self.groups):
            self.states.append([])
            for e in range(self.per_group):
                lane = g * self.per_group + e
                seed = env_seed(plan.config.seed, worker * plan.envs_per_worker + lane, incarnation)
                self.states[g].append(EnvState(make_env(self.spec.env), lane, seed))
        self.lanes = [np.array([s.lane for s in group], dtype=np.uint16) for group in self.states]
        self.fresh = [
            np.zeros(self.per_group, dtype=np.uint8) for _ in range(self.groups)
        ]  # RESET or 0
        self.finished = Finished()
        self.slot = -1  # of the chunk being filled, -1: none
        self.rows = self.steps = 0
        self.version = 0
        self.opened_ns = 0

    def _action_view(self, group: int) -> NDArray[Any]:
        raw = np.frombuffer(self.slots.actions(group), dtype=np.uint8).reshape(self.per_group, -1)
        if self.spec.discrete:
            return raw[:, :4].view(np.int32)[:, 0]
        return raw[:, : 4 * self.spec.action_dim].view(np.float32)

    def start(self) -> None:
        """Reset every environment and ask for the first actions."""
        for g, group in enumerate(self.states):
            for e, state in enumerate(group):
                first, _ = state.env.reset(seed=state.seed)
                self._observe(g, e, state, first)
                self.fresh[g][e] = RESET
            self.slots.submit(g)

    def _observe(self, group: int, e: int, state: EnvState, obs: Any) -> None:
        """Write an observation into the inference batch row."""
        self.obs[group][e] = np.asarray(obs, dtype=np.float32).reshape(-1)

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
        obs, actions, states = self.obs[group], self.actions[group], self.states[group]
        self.version = self.slots.policy_version(group)
        if self.record.tracing:
            self.record.mark(Mark.USED, self.slots.request_id(group))
        chunk.lane[r : r + n] = self.lanes[group]
        chunk.obs[r : r + n] = obs
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
            after, reward, terminated, truncated, _ = result
            state.steps += 1
            state.episode_length += 1
            state.episode_return += float(reward)
            chunk.reward[r + e] = reward
            obs[e] = np.asarray(after, dtype=np.float32).reshape(-1)
            if terminated or truncated:
                chunk.flags[r + e] |= TERMINATED if terminated else TRUNCATED
                check_finite(obs[e], "the final observation", self.spec, state)
                chunk.lane[end], chunk.flags[end], chunk.version[end] = (
                    state.lane,
                    BOUNDARY,
                    self.version,
                )
                chunk.obs[end], chunk.reward[end], chunk.action[end] = obs[e], 0.0, 0
                end += 1
                self._end_episode(group, e, state)
        if not (np.isfinite(chunk.reward[r : r + n]).all() and np.isfinite(obs).all()):
            for e, state in enumerate(states):  # rare: find out which one it was
                check_finite(chunk.reward[r + e], "the reward", self.spec, state)
                check_finite(obs[e], "the observation", self.spec, state)
        self.rows, self.steps = end, self.steps + n
        if self.record.tracing:  # before the request: nobody can be quicker
            self.record.mark(Mark.ASKED, self.slots.request_id(group) + 1)
        self.slots.submit(group)
        self.commit_if_old(self.record.observe_since(Stage.STEP, t0))
        return True

    def _end_episode(self, group: int, e: int, state: EnvState) -> None:
        self.finished.returns.append(state.episode_return)
        self.finished.lengths.append(state.episode_length)
        state.episode_return, state.episode_length = 0.0, 0
        t0 = now_ns()
        first, _ = state.env.reset()
        self.record.observe_since(Stage.STEP_RESET, t0)
        self._observe(group, e, state, first)
        self.fresh[group][e] = RESET

    def take_finished(self) -> Finished:
        """Episodes that ended since the last call."""
        done, self.finished = self.finished, Finished()
        self.record.add(Counter.EPISODES, len(done.returns))
        return done

    def close(self) -> None:
        """Hand over what is left and close the environments."""
        self.commit()
        for group in self.states:
            for state in group:
                state.env.close()


def env_worker_main(memory: RunMemory, events: Events, worker: int, incarnation: int) -> int:
    """Run until told to stop. Returns 0; raises what the environment raises, BadValueError for NaN
    and inf.
    """
    body = EnvWorker(memory, worker, incarnation)
    body.start()
    events.send("ready", role=f"worker {worker}", pid=os.getpid())
    record, control = body.record, memory.control
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
        events.send(
            "episodes", returns=done.returns[i : i + 500], lengths=done.lengths[i : i + 500]
        )


if __name__ == "__main__":
    from fdql.proc.child import run_child

    sys.exit(run_child(lambda m, e, a: env_worker_main(m, e, int(a[0]), int(a[1]))))
