"""Episodes of one published policy, in environments of its own; training never waits for it.

Reads the published policies; writes its record and the leaderboard in best/. Every evaluation plays
the same number of episodes from the same start seeds with one policy version, whatever is published
meanwhile. The seeds are neither those of training nor those of a later `fdql eval`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fdql.core_time import core_time
from fdql.leaderboard import Entry, Leaderboard
from fdql.proc.arena import WHILE_TRAINING, Arena, Evaluation, start_seeds
from fdql.proc.events import Events
from fdql.proc.governor import Governor, next_due
from fdql.proc.memory import (
    BELL_EVALUATOR,
    LAST,
    READER_EVALUATOR,
    RECORD_EVALUATOR,
    RECORD_TRAINER,
    STOP,
    RunMemory,
)
from fdql.profile import Counter, Mark, Stage
from fdql.sac.policy import Policy, precompile
from fdql.shm.records import now_ns

SLICE_NS = 100_000_000  # longest wait between two looks at the stop word
# An evaluation that takes longer is given up once the policy has had as many updates again: what
# knows nothing yet can make games of half an hour, and nobody asks for its score then.
LONG_NS = 30_000_000_000
HEAD_START_SECONDS = 10.0  # of evaluation before eval.share counts: quick solutions show at once


def busy_clock() -> float:
    """Seconds, but for those in which this process was ready and had no core: it took nothing then.
    (All of them where the kernel does not say.)
    """
    (_, ready), _ = core_time(os.getpid())
    return time.monotonic() - ready


def rest_seconds(spent: float, share: float, elapsed: float) -> float:
    """Seconds until evaluation may go on, after `spent` of `busy_clock` within `elapsed`."""
    return (spent - HEAD_START_SECONDS) / share - elapsed


class Evaluator:
    """The loop body: `due` says when, `evaluate` plays and reports. Used by serial mode too."""

    def __init__(self, memory: RunMemory, send: Callable[..., None]) -> None:
        plan = memory.plan
        config = plan.config
        self.plan, self.send = plan, send
        self.record = memory.own_record(RECORD_EVALUATOR)
        self.trainer = memory.record(RECORD_TRAINER)
        self.weights = memory.weights_reader(READER_EVALUATOR)
        self.policy = Policy(plan.net, np.zeros(plan.policy_size, dtype=np.float32))
        episodes = config.eval.episodes or plan.env.eval_episodes
        seeds = start_seeds(config.seed, WHILE_TRAINING, episodes)
        longest, epsilon = config.eval.longest_episode, config.eval.epsilon or 0.0
        self.arena = Arena(plan.env, seeds, longest, config.sac.discount, epsilon)
        governor = Governor(config, plan.base)
        self.first_version = 1 if governor.free else governor.due(config.explore.warmup_steps)
        self.every_steps = config.eval.every_steps
        self.version = 0  # evaluated last
        self.given_up = False  # that evaluation
        # Inserted steps at which the next evaluation may start. A run that goes on has evaluated
        # the policy that it begins with.
        self.next_steps = 0
        if plan.checkpoint is not None:
            self.next_steps = next_due(self.trainer.get(Counter.INSERTED), self.every_steps)
        # An evaluator that was restarted goes on from what its predecessor kept.
        self.leaderboard = Leaderboard(
            Path(plan.run_dir) / "best", lambda text: send("warning", message=text)
        )

    def due(self) -> bool:
        """A policy not yet evaluated, past the warm-up's updates, and enough steps lie between."""
        latest = self.weights.latest
        enough = latest > self.version and latest >= self.first_version
        return enough and self.trainer.get(Counter.INSERTED) >= self.next_steps

    def _timed(self, goes_on: Callable[[], bool], began: int) -> Callable[[], bool]:
        """`goes_on`, asked before every step of the arena, that also records the step before it and
        says when the policy is not worth the rest. began: now_ns().
        """
        last = began
        self.given_up = False

        def asked() -> bool:
            nonlocal last
            last = self.record.observe_since(Stage.EVALUATE, last)
            self.record.set(Counter.EPISODES, self.arena.ended)
            if not goes_on():
                return False
            self.given_up = last - began > LONG_NS and self.weights.latest > 2 * self.version
            return not self.given_up

        return asked

    def evaluate(self, goes_on: Callable[[], bool]) -> Evaluation | None:
        """Evaluate the newest policy and report it; keep it when it is among the best. None: told
        to stop, or given up.
        """
        self.version, data = self.weights.acquire()
        flat = np.frombuffer(data, dtype=np.float32)[: self.plan.policy_size].copy()
        del data
        self.weights.release()
        self.policy.load(flat)
        steps, updates = self.trainer.get(Counter.INSERTED), self.version
        self.next_steps = next_due(steps, self.every_steps)
        began = now_ns()
        result = self.arena.play(self.policy, self._timed(goes_on, began))
        self.record.span(Mark.EVALUATION, began, updates)
        seconds = (now_ns() - began) * 1e-9
        if result is None:
            if self.given_up:
                ended, of = self.arena.ended, len(self.arena.seeds)
                text = f"the evaluation of update {updates} was given up, {ended} of {of} episodes"
                self.send("note", message=f"{text} in {seconds:.0f} s: it was old")
            return None
        self.record.add(Counter.EVALUATIONS, 1)
        self.record.set(Counter.EPISODES, self.arena.ended)
        if self.leaderboard.rank(result.mean, updates) is not None:
            self._keep(flat, result, updates, steps)
        self.send(
            "evaluation",
            mean=result.mean,
            std=result.std,
            interval=result.interval,
            episodes=len(result.returns),
            length=float(result.lengths.mean()),
            q_bias=result.q_bias(self.policy.reward_scale),
            updates=updates,
            env_steps=steps,
            seconds=seconds,
        )
        return result

    def _keep(
        self, flat: NDArray[np.float32], result: Evaluation, updates: int, steps: int
    ) -> None:
        """Put a policy on the leaderboard. A disk that is full costs this policy, not the run."""
        low, high = result.interval or (None, None)
        episodes = len(result.returns)
        entry = Entry(updates, steps, result.mean, result.std, low, high, episodes)
        facts = {"updates": updates, "env_steps": steps, "eval_return_mean": result.mean}
        try:
            self.leaderboard.offer(entry, {"policy": flat}, self.plan.policy_facts() | facts)
        except OSError as error:
            self.send("warning", message=f"the policy of update {updates} was not kept: {error}")


def evaluator_main(memory: RunMemory, events: Events) -> int:
    """Evaluate on schedule until told to stop; after LAST once more, the last policy. Returns 0."""
    evaluator = Evaluator(memory, events.send)
    bell, control, record = memory.bell(BELL_EVALUATOR), memory.control, evaluator.record
    precompile(memory.plan.net)
    record.heartbeat(Stage.WAIT)  # who is ready is watched
    events.send("ready", role="evaluator", pid=os.getpid())

    def goes_on() -> bool:
        record.heartbeat(Stage.STEP)
        return bool(control.stop != STOP)

    share = memory.plan.config.eval.share
    began, spent = time.monotonic(), 0.0
    while control.stop < LAST:
        record.heartbeat(Stage.WAIT)
        rest = rest_seconds(spent, share, time.monotonic() - began)
        if rest <= 0 and evaluator.due():
            before = busy_clock()
            evaluator.evaluate(goes_on)
            spent += busy_clock() - before
        else:
            ticket = bell.arm()
            # The stop word too: a stop since the loop's look has rung before the ticket was taken.
            if control.stop >= LAST or (rest <= 0 and evaluator.due()):
                bell.disarm()
            else:
                asleep = now_ns()
                bell.sleep(ticket, SLICE_NS if rest <= 0 else min(SLICE_NS, int(rest * 1e9) + 1))
                record.observe_since(Stage.WAIT, asleep)
    if control.stop == LAST and evaluator.weights.latest > evaluator.version:
        evaluator.evaluate(goes_on)
    evaluator.arena.close()
    return 0


if __name__ == "__main__":
    from fdql.proc.child import run_child

    sys.exit(run_child(lambda memory, events, words: evaluator_main(memory, events)))
