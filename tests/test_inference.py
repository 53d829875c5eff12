"""The inference server in this process: how far it lets the environments run."""

from __future__ import annotations

from pathlib import Path

import pytest
from fdql.proc.env_worker import EnvWorker
from fdql.proc.inference import InferenceServer
from fdql.proc.memory import RECORD_TRAINER, RunMemory
from fdql.profile import Counter
from plans import small_plan


@pytest.mark.parametrize(("total", "steps"), [(20, 20), (18, 18), (17, 18), (1, 2)])
def test_no_group_starts_beyond_the_total(tmp_path: Path, total: int, steps: int) -> None:
    """Two groups of 2 that are always both ready: steps end at the total, up to a whole group."""
    plan = small_plan("own_envs:Counting", tmp_path, total_timesteps=total)
    memory = RunMemory.create(plan, shared=False)
    server, worker = InferenceServer(memory), EnvWorker(memory, 0, 1)
    memory.record(RECORD_TRAINER).set(Counter.ALLOWED, total)
    worker.start()
    for _ in range(total):
        if server.throttled():
            break
        server.serve(server.slots.collect(server.ready, 2, 0, 0))
        for group in range(2):
            if worker.slots.wait(group, 0):
                assert worker.step_group(group)
    worker.commit()
    assert server.throttled()
    assert worker.record.get(Counter.STEPS) == steps
    assert server.slots.ready() == 2  # both wait, for good
