"""The evaluator's loop: when it falls asleep and what keeps it awake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fdql.proc.arena import Arena
from fdql.proc.evaluator import Evaluator, evaluator_main, rest_seconds
from fdql.proc.memory import BELL_EVALUATOR, STOP, RunMemory
from plans import small_plan


class Silent:
    """Events that nobody reads."""

    def send(self, kind: str, **values: Any) -> None:
        pass


class LateBell:
    """The evaluator's doorbell; the run is stopped just before it takes its ticket."""

    def __init__(self, memory: RunMemory) -> None:
        self.memory, self.bell = memory, memory.bell(BELL_EVALUATOR)
        self.slept = 0

    def arm(self) -> int:
        self.memory.stop(STOP)
        return int(self.bell.arm())

    def disarm(self) -> None:
        self.bell.disarm()

    def sleep(self, ticket: int, timeout_ns: int) -> None:
        self.slept += 1


def test_a_stop_just_before_the_sleep_is_seen_at_once(
    own_environments: None, tmp_path: Path, monkeypatch: Any
) -> None:
    memory = RunMemory.create(small_plan("own_envs:Counting", tmp_path), shared=False)
    bell = LateBell(memory)
    monkeypatch.setattr(memory, "bell", lambda index: bell)
    assert evaluator_main(memory, Silent()) == 0  # type: ignore[arg-type]
    assert bell.slept == 0
    del bell.bell
    memory.close()


@pytest.mark.parametrize(
    ("newer", "long", "given_up"), [(10, 0, False), (11, 0, True), (11, 1, False)]
)
def test_an_old_policy_is_given_up(
    own_environments: None, tmp_path: Path, monkeypatch: Any, newer: int, long: int, given_up: bool
) -> None:
    """Update 5 is played. Long games of it end when it is less than half of what is newest."""
    monkeypatch.setattr("fdql.proc.evaluator.LONG_NS", long * 10**15)
    plan = small_plan("own_envs:Counting", tmp_path)
    memory = RunMemory.create(plan, shared=False)
    said: list[tuple[str, Any]] = []
    evaluator = Evaluator(memory, lambda kind, **values: said.append((kind, values)))
    writer, flat = memory.weights_writer(), np.ones(plan.policy_size, dtype=np.float32)
    writer.publish(flat, 5)

    def goes_on() -> bool:
        if evaluator.weights.latest == 5:
            writer.publish(flat, newer)
        return True

    result = evaluator.evaluate(goes_on)
    assert (result is None) == given_up
    assert [kind for kind, _ in said] == ["note" if given_up else "evaluation"]
    if given_up:
        assert "update 5 was given up, 0 of 4 episodes" in said[0][1]["message"]
        evaluator.evaluate(goes_on)  # the newest one
        assert (said[1][0], said[1][1]["updates"]) == ("evaluation", newer)
    evaluator.arena.close()
    memory.close()


class Still:
    """Acts 0 everywhere and keeps the first actions that were taken instead."""

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def greedy(self, rows: Any, actions: Any) -> None:
        actions[:] = 0

    def action_values(self, rows: Any, actions: Any) -> Any:
        self.taken += actions.tolist()
        return np.zeros(len(rows), dtype=np.float32)


@pytest.mark.parametrize(
    ("env", "least", "most"), [("CartPole-v1", 90, 160), ("Pendulum-v1", 205, 295)]
)
def test_a_share_of_the_actions_is_random_and_always_the_same(
    tmp_path: Path, env: str, least: int, most: int
) -> None:
    """Of two actions half are the other one; three deviations on either side."""

    def played(episodes: int, epsilon: float, longest: int = 50) -> tuple[list[float], list[Any]]:
        still = Still()
        arena = Arena(small_plan(env, tmp_path).env, list(range(episodes)), longest, 0.9, epsilon)
        result, again = (arena.play(still, lambda: True) for _ in range(2))  # type: ignore[arg-type]
        arena.close()
        assert result is not None
        assert again is not None
        assert result.returns.tolist() == again.returns.tolist()
        return result.returns.tolist(), still.taken[:episodes]

    some, _ = played(40, 0.5)
    assert some != played(40, 0.0)[0]
    assert some[:3] == played(3, 0.5)[0]  # whoever plays beside it
    _, taken = played(1000, 0.25, 1)
    assert least <= np.count_nonzero(taken) <= most
    assert not np.any(played(1000, 0.0, 1)[1])


def test_how_long_evaluation_rests():
    """10 seconds on a core are free; 12, at a fifth of the time: 10 seconds in all."""
    assert rest_seconds(12.0, 0.2, 0.0) == 10.0
    assert rest_seconds(12.0, 0.2, 9.0) == 1.0
    assert rest_seconds(9.9, 0.2, 0.0) < 0
    assert rest_seconds(110.0, 1.0, 100.0) == 0
