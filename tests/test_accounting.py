"""The books of a run close, and planted faults show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fdql.accounting import books
from fdql.proc.env_worker import EnvWorker
from fdql.proc.inference import InferenceServer
from fdql.proc.loader import Loader
from fdql.proc.memory import RECORD_TRAINER, RunMemory
from fdql.profile import Counter
from fdql.shm.layout import KIND_RING, OFFSETS
from fdql.supervisor import train
from plans import small_config, small_plan

HEAD, TAIL = OFFSETS["RingHeader"]["head"][0], OFFSETS["RingHeader"]["tail"][0]
SLOTS = 512


class Run:
    """Two workers of 4 environments, inference and the loader, step by step in this process."""

    def __init__(self, tmp_path: Path, **changes: Any) -> None:
        plan = small_plan("own_envs:Counting", tmp_path, workers=2, **changes)
        self.memory = RunMemory.create(plan, shared=False)
        self.server, self.loader = InferenceServer(self.memory), Loader(self.memory)
        self.trainer = self.memory.record(RECORD_TRAINER)
        self.trainer.set(Counter.ALLOWED, 1000)
        self.workers = [EnvWorker(self.memory, w, 1) for w in range(2)]
        for worker in self.workers:
            worker.start()

    def step(self, worker: EnvWorker, groups: int) -> None:
        """Step the groups of a worker in turn, 2 environments each, and hand the rows over."""
        for group in range(groups):
            self.server.serve(self.server.slots.collect(self.server.ready, 4, 0, 0))
            assert worker.slots.wait(group % 2, 0)
            assert worker.step_group(group % 2)
        worker.commit()

    def ring(self, worker: int) -> memoryview:
        return self.memory.segment.section(KIND_RING, worker)

    def poke(self, worker: int, at: int, by: int) -> None:
        """Add to a 64-bit word of a ring."""
        word = np.frombuffer(self.ring(worker), np.uint64, 1, at)
        word += np.uint64(by)


@pytest.fixture
def run(own_environments: str, tmp_path: Path) -> Run:
    made = Run(tmp_path)
    made.step(made.workers[0], 3)  # 6 steps, stored
    made.loader.ingest()
    made.step(made.workers[0], 2)  # 4 under way
    made.step(made.workers[1], 4)  # 8 under way
    return made


def test_books_by_hand(run: Run) -> None:
    b = books(run.memory, killed=False)
    assert (b.committed, b.ingested, b.dropped, b.in_flight, b.fault) == (18, 6, 0, 12, None)
    run.loader.ingest()
    b = books(run.memory, killed=False)
    assert (b.committed, b.ingested, b.dropped, b.in_flight, b.fault) == (18, 18, 0, 0, None)


def test_a_dead_workers_open_steps_are_dropped(run: Run) -> None:
    """5 groups of worker 0 are handed over: its 4 environments have an open episode each."""
    run.loader.ingest()
    run.workers[0] = EnvWorker(run.memory, 0, 2)
    run.workers[0].start()
    run.step(run.workers[0], 2)
    run.loader.ingest()
    b = books(run.memory, killed=False)
    assert (b.committed, b.ingested, b.dropped, b.in_flight, b.fault) == (22, 18, 4, 0, None)


def test_a_run_that_goes_on_keeps_what_it_had(own_environments: str, tmp_path: Path) -> None:
    plan = small_plan("own_envs:Counting", tmp_path)
    memory = RunMemory.create(plan, shared=False)
    for counter in (Counter.BEFORE, Counter.STEPS):
        memory.worker_record(0).set(counter, 100)
    EnvWorker(memory, 0, 1)
    EnvWorker(memory, 0, 2)
    memory.record(RECORD_TRAINER).set(Counter.INSERTED, 100)
    b = books(memory, killed=False)
    assert (b.committed, b.ingested, b.in_flight, b.fault) == (100, 100, 0, None)


def test_a_worker_killed_before_its_count_is_no_fault(run: Run) -> None:
    run.memory.worker_record(1).set(Counter.STEPS, 0)  # its one chunk, of 8
    b = books(run.memory, killed=False)
    assert (b.committed, b.fault) == (18, None)


def test_a_killed_trainer_may_leave_one_chunk_uncounted(run: Run) -> None:
    run.trainer.set(Counter.INSERTED, 0)
    b = books(run.memory, killed=True)
    assert (b.committed, b.ingested, b.in_flight, b.fault) == (18, 0, 18, None)
    assert books(run.memory, killed=False).fault is not None


FAULTS = {
    "stored twice": (lambda r: r.trainer.add(Counter.INSERTED, 6), "6 too many are stored"),
    "lost while stored": (lambda r: r.trainer.set(Counter.INSERTED, 5), "1 too few are stored"),
    "released unread": (lambda r: r.poke(1, TAIL, 1), "8 too few are stored"),
    "released twice": (lambda r: r.poke(1, TAIL, 2), "2 came out"),
    "chunk lost": (lambda r: r.poke(1, HEAD, -1 % 2**64), "worker 1 counted 8 steps"),
    "chunk made up": (lambda r: r.poke(1, HEAD, 1), "ring of worker 1: chunk 2"),
    "count lost": (
        lambda r: r.memory.worker_record(0).set(Counter.STEPS, 4), "worker 0 counted 4"),
    "chunks exchanged": (lambda r: r.poke(0, slot(r, 1), 1), "its slot holds chunk 3"),
    "step number": (lambda r: r.poke(0, slot(r, 1) + 24, 1), "6"),
}  # fmt: skip


def slot(run: Run, i: int) -> int:
    """Where slot i of a ring begins."""
    stride = int(
        np.frombuffer(run.ring(0), np.uint64, 1, OFFSETS["RingHeader"]["slot_stride"][0])[0]
    )
    return SLOTS + i * stride


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(run: Run, fault: str) -> None:
    plant, says = FAULTS[fault]
    assert books(run.memory, killed=False).fault is None
    plant(run)
    found = books(run.memory, killed=False).fault
    assert found is not None
    assert says in found


def test_a_fault_is_shown_and_ends_the_run_with_a_code(
    own_environments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    once = Loader.ingest

    def miscounts(self: Loader) -> int:
        steps = once(self)
        self.record.add(Counter.INSERTED, 3) if steps else None
        return steps

    monkeypatch.setattr(Loader, "ingest", miscounts)
    config = small_config("own_envs:Counting", serial=True, total_timesteps=400,
                          run_dir=str(tmp_path / "run"))  # fmt: skip
    result = train(config)
    assert result.exit_code == 1
    assert "too many are stored" in result.summary["steps_fault"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps_fault"]
    assert "the books do not close" in (tmp_path / "run" / "log.txt").read_text()
    assert "the books do not close" in "".join(capfd.readouterr())
