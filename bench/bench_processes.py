"""Death, idleness, start: the successor of a killed worker, a killed supervisor, an idle engine,
the time to the first step, what a worker takes.

    pytest bench/bench_processes.py -s

Real processes on the environment that costs nothing. Every step that a dead worker committed must
arrive, once; nobody may outlive the supervisor; an idle engine must be alive and stand still.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fdql.config import Config, EngineConfig
from fdql.proc.memory import BELL_TRAINER, RECORD_TRAINER
from fdql.profile import Counter
from fdql.shm.ring import FLAG_INCARNATION
from fdql.trial import ENDLESS
from partner import report
from peers.runs import ROOT
from rates import NULL
from rates.acting import random_policy
from rates.drain import Drain
from rates.processes import Processes, plan_of

IDLE_SECONDS = 10.0  # processor time is counted in hundredths of a second
IDLE_STEPS = 64


@pytest.fixture(autouse=True)
def null_env_for_children(monkeypatch: pytest.MonkeyPatch) -> None:
    path = [str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in path if p))


def succeed(folder: Path) -> float:
    """Seconds from SIGKILL of a worker at full speed to the first chunk of its successor."""
    plan = plan_of(Config(env=NULL, ratio="free", workers=1, total_timesteps=ENDLESS), str(folder))
    with Processes(plan) as processes:
        memory = processes.memory
        drain, bell = Drain(memory), memory.bell(BELL_TRAINER)
        memory.weights_writer().publish(random_policy(plan), 1)
        memory.record(RECORD_TRAINER).set(Counter.ALLOWED, ENDLESS)

        def take() -> None:
            if not drain.take():
                ticket = bell.arm()
                if drain.rings[0].peek():
                    bell.disarm()
                else:
                    bell.sleep(ticket, 1_000_000)

        chunks = drain.kept[0]
        worker = processes.start("worker 0")
        processes.start("inference")
        processes.wait_ready(take)
        processes.until(lambda: len(chunks) > 100, take, 60.0)
        worker.kill()
        start = time.monotonic()
        worker.process.wait()  # the supervisor hears of it by pidfd, as quickly
        processes.children.remove(worker)
        worker.close()
        processes.start("worker 0", incarnation=2)
        processes.until(lambda: chunks[-1].head.incarnation == 2, take, 60.0)
        took = time.monotonic() - start
        processes.until(lambda: chunks[-1].head.seq > 300, take, 60.0)
        processes.leave(take)
        drain.take()
        assert drain.steps == drain.rings[0].committed_steps  # not one that was committed is lost
        assert [c.head.seq for c in chunks] == list(range(1, len(chunks) + 1))
        first = next(c for c in chunks if c.head.incarnation == 2)
        assert first.head.flags & FLAG_INCARNATION
        for chunk in chunks[: chunks.index(first)]:
            assert chunk.head.incarnation == 1
        drain.close()
    return took


def test_successor_of_a_killed_worker(benchmark: Any, tmp_path: Path) -> None:
    """B14: at most 1 s beyond making the environments, which cost nothing here."""
    taken: list[float] = []
    benchmark.pedantic(lambda: taken.append(succeed(tmp_path)), rounds=3)
    report(benchmark, seconds=statistics.median(taken), slowest=max(taken))


def outlive(folder: Path) -> float:
    """Seconds from SIGKILL of a training run's supervisor until none of its processes is left."""
    words = [sys.executable, str(ROOT / "main.py"), "--env", NULL, "--stop-at-return", "never"]
    run = subprocess.Popen(
        [*words, "--run-dir", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert time.monotonic() < deadline, "the run did not start"
            assert run.poll() is None, "the run ended"
            time.sleep(0.05)
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) >= 3, children  # worker, inference, trainer; the evaluator too
        run.send_signal(signal.SIGKILL)
        start = time.monotonic()
        run.wait()
        while any(alive(child) for child in children):
            assert time.monotonic() - start < 60, [c for c in children if alive(c)]
            time.sleep(0.001)
        return time.monotonic() - start
    finally:
        run.kill()
        run.wait()


def alive(process: psutil.Process) -> bool:
    """False for a zombie too: its memory is returned, its parent has yet to look."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nobody_outlives_the_supervisor(benchmark: Any, tmp_path: Path) -> None:
    """B15: at most 2 s."""
    taken: list[float] = []
    benchmark.pedantic(lambda: taken.append(outlive(tmp_path / f"run{len(taken)}")), rounds=3)
    report(benchmark, seconds=statistics.median(taken), slowest=max(taken))


def test_idle_engine(benchmark: Any, tmp_path: Path) -> None:
    """B16: worker, inference and trainer that wait for each other; at most 1 % of a core."""
    config = Config(env=NULL, workers=1, total_timesteps=IDLE_STEPS)
    plan = plan_of(config, str(tmp_path))
    with Processes(plan) as processes:
        for role in ("trainer", "worker 0", "inference"):
            processes.start(role)
        record = processes.memory.record(RECORD_TRAINER)

        def doze() -> None:
            time.sleep(0.05)

        processes.wait_ready(doze)
        due = IDLE_STEPS * 32 // config.sac.batch_size
        processes.until(lambda: record.get(Counter.UPDATES) == due, doze, 120.0)
        time.sleep(1.0)
        known = [psutil.Process(c.process.pid) for c in processes.children]

        def busy() -> float:
            return sum(sum(p.cpu_times()[:2]) for p in known)

        seconds = 1.0 if benchmark.disabled else IDLE_SECONDS
        before = busy()
        benchmark.pedantic(time.sleep, (seconds,), rounds=1)
        report(benchmark, percent_of_a_core=100 * (busy() - before) / seconds)
        processes.listen()  # raises when one has died
        assert record.get(Counter.INSERTED) == IDLE_STEPS
        assert record.get(Counter.UPDATES) == due
        processes.leave(doze)


def test_help(benchmark: Any) -> None:
    """At most 0.5 s."""
    words = [sys.executable, str(ROOT / "main.py"), "--help"]
    taken: list[float] = []

    def ask() -> None:
        start = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        taken.append(time.monotonic() - start)
        assert "--env" in done.stdout

    benchmark.pedantic(ask, rounds=5, warmup_rounds=1)
    report(benchmark, seconds=statistics.median(taken), slowest=max(taken))


def first_step(folder: Path) -> float:
    """Seconds from starting the command to the first step of a worker."""
    folder.mkdir()
    stamps = folder / "stamps"
    words = [sys.executable, str(ROOT / "main.py"), "--env", "rates.null_env:Stamping"]
    words += ["--total-timesteps", "8", "--run-dir", str(folder / "run")]
    variables = os.environ | {"FDQL_BENCH_STAMPS": str(stamps)}
    start = time.monotonic()
    subprocess.run(words, env=variables, stdout=subprocess.DEVNULL, check=True, timeout=120)
    return min(float(at) for at in stamps.read_text().splitlines()) - start


def test_first_step(benchmark: Any, tmp_path: Path) -> None:
    """At most 2.5 s, caches warm."""
    taken: list[float] = []
    benchmark.pedantic(
        lambda: taken.append(first_step(tmp_path / f"run{len(taken)}")), rounds=5, warmup_rounds=1
    )
    report(benchmark, seconds=statistics.median(taken[-5:]), slowest=max(taken[-5:]))


def test_memory_of_a_worker(benchmark: Any, tmp_path: Path) -> None:
    """At most 60 MB above a process that steps the same environment without us."""
    alone = """
import gymnasium, sys
made = gymnasium.make("CartPole-v1")
made.reset()
made.step(0)
print(flush=True)
sys.stdin.read()
"""
    plan = plan_of(Config(workers=1, envs_per_worker=1, total_timesteps=ENDLESS, ratio="free",
                          engine=EngineConfig(groups=1)), str(tmp_path))  # fmt: skip
    bare = subprocess.Popen(
        [sys.executable, "-c", alone], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with Processes(plan) as processes, bare:
        assert bare.stdin
        assert bare.stdout
        bare.stdout.readline()
        memory = processes.memory
        memory.weights_writer().publish(random_policy(plan), 1)
        memory.record(RECORD_TRAINER).set(Counter.ALLOWED, ENDLESS)
        drain = Drain(memory)
        worker = processes.start("worker 0")
        processes.start("inference")
        processes.until(lambda: drain.steps > 500, drain.take, 60.0)
        sizes: list[int] = []

        def weigh() -> None:
            ours = psutil.Process(worker.process.pid).memory_full_info().uss
            sizes.append(ours - psutil.Process(bare.pid).memory_full_info().uss)

        benchmark.pedantic(weigh, rounds=1)
        processes.leave(drain.take)
        drain.close()
        bare.stdin.close()
    report(benchmark, megabytes_above=sizes[0] / 1e6)
