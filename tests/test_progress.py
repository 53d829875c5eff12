"""How far a run is, from counters, worked out by hand; the memory of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fdql.proc.memory import RECORD_EVALUATOR, RECORD_TRAINER, RunMemory
from fdql.profile import Counter
from fdql.progress import Bar, ProgressMeter
from plans import small_plan


def test_the_bars_of_a_run(own_environments, tmp_path: Path):
    # 64 steps of warm-up at 32 samples per insert in batches of 32 pay for 64 updates
    plan = small_plan("own_envs:Counting", tmp_path, total_timesteps=1000)
    memory = RunMemory.create(plan, shared=False)
    meter, trainer = ProgressMeter(plan, memory), memory.own_record(RECORD_TRAINER)

    def first(steps: int, updates: int) -> Bar:
        trainer.set(Counter.INSERTED, steps)
        trainer.set(Counter.UPDATES, updates)
        return meter.look(100.0).bars[0]

    assert first(10, 0) == Bar("warm-up steps", 10, 64)
    assert first(70, 13) == Bar("warm-up updates", 13, 64)
    assert first(250, 250) == Bar("steps", 250, 1000)
    trainer.set(Counter.REPLAY, 240)
    memory.own_record(RECORD_EVALUATOR).set(Counter.EPISODES, 3)
    meter.returns.append(5.0)
    progress = meter.look(100.0)
    assert progress.bars[1:] == (Bar("replay", 240, 4096), Bar("evaluation", 3, 4))
    assert (progress.returns, progress.seconds_left) == ((5.0,), 7.5)  # 750 steps at 100 a second
    assert meter.look(0.0).seconds_left is None
    trainer.set(Counter.TO_SAVE, 1000)
    trainer.set(Counter.SAVED, 1100)  # headers of files come on top
    assert meter.look(100.0).bars[3:] == (Bar("checkpoint", 1000, 1000),)
    memory.close()


def test_the_memory_of_processes_counts_what_they_have_alone(own_environments, tmp_path: Path):
    plan = small_plan("own_envs:Counting", tmp_path)
    memory = RunMemory.create(plan, shared=False)
    meter = ProgressMeter(plan, memory)
    alone = meter.memory([])
    assert alone > memory.segment.nbytes
    assert meter.memory([os.getpid()]) == pytest.approx(alone, rel=0.2)  # counted once
    code = "x = b'1' * (64 << 20); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert meter.memory([child.pid]) - alone > 60 << 20
    assert meter.memory([child.pid]) == pytest.approx(alone, rel=0.2)  # it is gone
    memory.close()
