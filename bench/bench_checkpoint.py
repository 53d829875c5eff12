"""What a checkpoint costs: seconds and bytes of the first and of a later one, how long its owner
keeps the replay from the loader, and what training loses while one is written.

    python -m pytest bench/bench_checkpoint.py -s

Shapes: CartPole's with 1,000,000 rows (the default), and 500,000 frames of 84 x 84 random bytes
(3.6 GB in memory and on the disk). A later checkpoint comes after what arrives in 120 seconds, the
default interval, at the rates measured for the environment. Without timing everything is small.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
from bench_replay import BATCH, CHUNK, LANES, filled
from bench_update import PIXELS
from fdql.config import Config, SacConfig
from fdql.envs import describe, make_env
from fdql.machine import resolve
from fdql.proc.memory import RunPlan
from fdql.proc.saver import Captured, Saver
from fdql.profile import RECORD_NBYTES, open_record
from fdql.replay.replay import Batch
from fdql.replay.state import oldest, rows_between, settled, tables_of
from fdql.sac.kernels import CompiledLearner
from fdql.sac.learner import Learner
from fdql.sac.nets import NetSpec
from fdql.sac.update import TorchLearner
from fdql.shm.chunk import ChunkSchema, RowShape
from fdql.shm.segment import Segment


@dataclass(frozen=True)
class Case:
    """arriving: rows of one interval; per_update: rows that pay for one update."""

    name: str
    shape: RowShape
    net: NetSpec
    rows: int
    arriving: int
    per_update: int


CASES = [
    Case(
        "CartPole, 1,000,000 rows",
        RowShape(obs_dim=4, action_dim=2, discrete=True),
        NetSpec(obs_dim=4, action_dim=2, discrete=True), 1_000_000, 350_000, 8,
    ),
    Case(
        "Pong, 500,000 frames",
        RowShape(obs_dim=84 * 84, action_dim=6, discrete=True, pixels=True, stack=4),
        PIXELS, 500_000, 45_000, 32,
    ),
]  # fmt: skip


def learner_of(case: Case) -> Learner:
    if case.net.image is None:
        return CompiledLearner(case.net, SacConfig(), 0.4, 0)
    return TorchLearner(case.net, SacConfig(learning_rate=5e-4), 0.4, 0, "cpu", 1)


class Bench:
    """A full replay, and a saver of it."""

    def __init__(self, case: Case, folder: Path, *, small: bool) -> None:
        self.case, self.folder, self.small = case, folder, small
        self.rows = 4096 if small else case.rows
        self.arriving = 512 if small else case.arriving
        self.replay = filled(self.rows, case.shape)
        rng = np.random.default_rng(0)
        obs = self.replay.rows.obs
        for at in range(0, len(obs), 4096):  # what a disk would compress is no measure
            part = obs[at : at + 4096].view(np.uint8)
            part[:] = rng.integers(0, 64, part.shape, dtype=np.uint8)
        schema = ChunkSchema(CHUNK, case.shape)
        self.views = schema.views(bytearray(schema.nbytes))
        self.views.lane[:] = np.arange(CHUNK) % LANES
        self.views.obs[:] = rng.integers(0, 64, self.views.obs.shape, dtype=np.uint8)
        probe = make_env("CartPole-v1")
        self.env = describe("CartPole-v1", probe)
        probe.close()
        self.learner = learner_of(case)

    def saver(self, *, serial: bool, every: float = 1e9) -> Saver:
        shutil.rmtree(self.folder, ignore_errors=True)
        config = resolve(Config(serial=serial, checkpoint_every=every), cores=2)
        plan = RunPlan(config=config, env=self.env, run_dir=str(self.folder))
        segment = Segment.create([(6, 0, RECORD_NBYTES)], 0, shared=False)
        record = open_record(segment.section(6, 0))
        return Saver(plan, self.replay, record, lambda kind, **values: None)

    def ingest(self, rows: int) -> None:
        for _ in range(rows // CHUNK):
            self.replay.ingest(self.views, CHUNK, 0, lanes_of_worker=LANES)

    def captured(self) -> Captured:
        facts = {"updates": self.learner.updates, "stale": 0, "episodes": 0}
        return Captured(dict(self.learner.state()), facts)

    def bytes(self) -> int:
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def bench(request, tmp_path, benchmark) -> Iterator[Bench]:
    benchmark.group = request.param.name
    yield Bench(request.param, tmp_path / "run", small=benchmark.disabled)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_the_first_checkpoint(benchmark, bench):
    """Everything, flushed to the disk; the last of an unsaved run, or after a change of lanes."""
    saver = bench.saver(serial=True)
    benchmark.pedantic(saver.save, (bench.captured(),), rounds=1)
    benchmark.extra_info["MB"] = bench.bytes() / 1e6
    assert len(saver.folder.names()) == 1


def test_a_later_checkpoint(benchmark, bench):
    """After one interval: what is written at the moment, and all that the interval has cost."""
    saver = bench.saver(serial=True)
    saver.save(bench.captured())
    spent: list[float] = []

    def interval() -> tuple[tuple[Captured], dict[str, object]]:
        began = 0.0
        for _ in range(bench.arriving // CHUNK):
            bench.ingest(CHUNK)
            t0 = time.perf_counter()
            saver.work()
            began += time.perf_counter() - t0
        spent.append(began)
        return (bench.captured(),), {}

    benchmark.pedantic(saver.save, setup=interval, rounds=1 if bench.small else 5)
    kept = saver.folder
    newest = kept.path / kept.names()[-1]
    own = sum(p.stat().st_size for p in newest.iterdir())
    row = bench.replay.rows.nbytes / bench.replay.capacity
    benchmark.extra_info["MB of the folder"] = own / 1e6
    benchmark.extra_info["MB of new rows"] = bench.arriving * row / 1e6
    benchmark.extra_info["s of ranges in the interval"] = float(np.median(spent))
    benchmark.extra_info["MB on the disk"] = bench.bytes() / 1e6


def test_the_loader_is_kept(benchmark, bench):
    """Copies in memory: the tables, and one range of rows."""
    saver = bench.saver(serial=True)
    end = settled(bench.replay)
    first = np.maximum(oldest(bench.replay), end - saver.range_rows // LANES)
    t0 = time.perf_counter()
    rows_between(bench.replay, first, end)
    benchmark.extra_info["ms of a range"] = 1e3 * (time.perf_counter() - t0)
    benchmark(tables_of, bench.replay)


def rate(bench: Bench, saver: Saver, seconds: float) -> tuple[float, float, int]:
    """Updates per second with a loader beside, the slowest whole second of them, checkpoints."""
    ready: SimpleQueue[Batch] = SimpleQueue()
    free: SimpleQueue[Batch] = SimpleQueue()
    for _ in range(3):
        free.put(Batch.allocate(BATCH, bench.case.shape))
    stop = threading.Event()

    def load() -> None:
        left = 0
        while not stop.is_set():
            left += bench.case.per_update
            while left >= CHUNK:
                bench.ingest(CHUNK)
                left -= CHUNK
            while saver.work():
                pass
            batch = free.get()
            bench.replay.sample(batch)
            ready.put(batch)

    thread = threading.Thread(target=load)
    thread.start()
    stamps: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() < began + seconds:
        batch = ready.get()
        bench.learner.update(
            batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs,
            batch.obs_mean, batch.obs_scale, batch.reward_scale, batch.priority,
        )  # fmt: skip
        stamps.append(time.perf_counter() - began)
        free.put(batch)
        if saver.wants_learner:
            saver.give(bench.captured())
    stop.set()
    free.put(batch)
    thread.join()
    saver.close(None)
    slowest = np.bincount(np.array(stamps).astype(int), minlength=int(seconds))[: int(seconds)]
    return len(stamps) / seconds, float(slowest.min()), len(saver.folder.names())


def test_training_goes_on(benchmark, bench):
    """Updates per second without checkpoints, and with one every 5 seconds: 24 times as often as
    the default.
    """
    seconds = 1.0 if bench.small else 20.0
    every = 0.2 if bench.small else 5.0
    rate(bench, bench.saver(serial=False), max(1.0, seconds / 4))  # warm
    without = rate(bench, bench.saver(serial=False), seconds)
    saver = bench.saver(serial=False, every=every)
    saver.save(bench.captured())
    saver._checkpoint.result()
    saver._next = time.monotonic() + every
    result: list[tuple[float, float, int]] = []
    run: Callable[[], None] = lambda: result.append(rate(bench, saver, seconds))  # noqa: E731
    benchmark.pedantic(run, rounds=1)
    with_them = result[0]
    assert with_them[2] >= 1
    benchmark.extra_info["updates/s without"] = without[0]
    benchmark.extra_info["slowest second without"] = without[1]
    benchmark.extra_info["updates/s with"] = with_them[0]
    benchmark.extra_info["slowest second with"] = with_them[1]


@pytest.fixture(scope="module", autouse=True)
def say(request) -> Iterator[None]:
    yield
    session = request.config._benchmarksession
    for b in session.benchmarks:
        if "bench_checkpoint" in b.fullname and b.stats.rounds:
            extra = {k: round(v, 3) for k, v in b.extra_info.items()}
            print(f"\n{b.name}: median {b.stats.median:.4f} s, max {b.stats.max:.4f} s, {extra}")
