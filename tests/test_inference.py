"""The inference server in this process: how far it lets the environments run."""

from __future__ import annotations

from pathlib import Path

import pytest
from fdql.proc.env_worker import EnvWorker
from fdql.proc.inference import InferenceServer
from fdql.proc.memory import RECORD_TRAINER, RunMemory
from fdql.profile import Counter
from plans import small_plan


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize(("total", "steps"), [(20, 20), (18, 18), (17, 18), (16, 16), (1, 2)])
def test_no_group_starts_beyond_the_total(
    tmp_path: Path, total: int, steps: int, first: int
) -> None:
    """Two groups of 2 that are both ready, but for `first` at the start: steps end at the total, up
    to a whole group, and the last answers are those that the worker, in its turns, waits for.
    """
    plan = small_plan("own_envs:Counting", tmp_path, total_timesteps=total)
    memory = RunMemory.create(plan, shared=False)
    server, worker = InferenceServer(memory), EnvWorker(memory, 0, 1)
    memory.record(RECORD_TRAINER).set(Counter.ALLOWED, total)
    worker.start()
    group, taken = 0, first
    while not server.throttled():
        found = server.slots.collect(server.ready, 2, 0, 0)
        server.serve(min(found, taken))
        taken = 2
        assert worker.slots.wait(group, 0), "the worker would wait for ever"
        for _ in range(2):
            if worker.slots.wait(group, 0):
                assert worker.step_group(group)
                group = 1 - group
    worker.commit()
    assert worker.record.get(Counter.STEPS) == steps
    assert server.slots.ready() == 2  # both wait, for good


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_what_a_dead_worker_had_asked_for_is_not_counted(tmp_path: Path, when: str) -> None:
    """Its pending requests may be answered when its successor is there, and nobody takes the
    answers: were they counted as steps begun, the run would wait for these steps for ever.

    when    requests are seen and answered before the successor attaches, or seen before and
            answered after, or both after
    """
    plan = small_plan("own_envs:Counting", tmp_path, total_timesteps=16)
    memory = RunMemory.create(plan, shared=False)
    server = InferenceServer(memory)
    memory.record(RECORD_TRAINER).set(Counter.ALLOWED, 16)

    def collect() -> int:
        return int(server.slots.collect(server.ready, 2, 0, 0))

    dead = EnvWorker(memory, 0, 1)
    dead.start()
    server.serve(collect())
    for group in (0, 1):
        assert dead.step_group(group)
    dead.commit()  # 4 steps handed over, both groups ask for actions
    memory.worker_record(0).set(Counter.STEPS, 0)  # it died between the hand-over and its count
    seen = 0 if when == "after" else collect()
    if when == "before":
        server.serve(seen)
    worker = EnvWorker(memory, 0, 2)
    if when != "before":
        server.serve(seen or collect())
        assert server.issued.tolist() == [4]
    assert server.slots.ready() == 0
    worker.start()
    group = 0
    while not server.throttled():
        server.serve(collect())
        while worker.slots.wait(group, 0):
            assert worker.step_group(group)
            group = 1 - group
    worker.commit()
    assert worker.record.get(Counter.STEPS) == worker.ring.committed_steps == 16
