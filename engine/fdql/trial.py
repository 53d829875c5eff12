"""A trial: a real run, timed from the end of its warm-up for some seconds, then ended and removed.

Same processes as any run, but for the evaluator. For `fdql autotune` and bench/scale.py.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from fdql.board import Board
from fdql.budget import Account, Snapshot, budget
from fdql.callbacks import Calls
from fdql.config import Config
from fdql.env_spec import EnvSpec
from fdql.machine import allowed_cores, check_memory, resolve
from fdql.proc.memory import RunMemory, RunPlan
from fdql.report import Report
from fdql.run_folder import RunFolder
from fdql.shm.records import now_ns
from fdql.stop_request import StopRequest
from fdql.supervisor import Supervisor

SETTLE_SECONDS = 0.2  # after the warm-up's updates: rings, slots and clocks find their pace
ENOUGH_UPDATES = 100  # a window with fewer is prolonged ...
LONGEST = 4.0  # ... up to this many windows
ENDLESS = 10**12  # environment steps


class TooSlowError(RuntimeError):
    """A trial did not come through its warm-up in the time it had."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a trial did within its window.

    seconds       length of the window
    accounts      time budget of every role over the window, a worker's the mean of the workers'
    supervisor_s  CPU seconds of the supervisor
    sentence      what limited the trial
    ready_s       from the trial's start until every process was ready
    """

    seconds: float
    updates: int
    env_steps: int
    accounts: dict[str, Account]
    supervisor_s: float
    sentence: str
    ready_s: float

    @property
    def updates_per_s(self) -> float:
        """Updates per second of the window."""
        return self.updates / self.seconds

    @property
    def steps_per_s(self) -> float:
        """Environment steps stored per second of the window."""
        return self.env_steps / self.seconds

    @property
    def duty(self) -> float:
        """Share of the window that the trainer was busy."""
        return self.accounts["trainer"].busy


@dataclass(frozen=True, slots=True)
class _Reading:
    """Counters and clocks at one moment."""

    snapshot: Snapshot
    updates: int
    env_steps: int
    supervisor_s: float


class TimedRun(Supervisor):
    """A run that ends by itself once it was timed; `measured` is None when something else ended it.

    window_s   seconds to time
    limit_s    seconds from readiness in which the warm-up must be through
    """

    def __init__(
        self, plan: RunPlan, folder: RunFolder, stop: StopRequest,
        window_s: float, limit_s: float,
    ) -> None:  # fmt: skip
        memory = RunMemory.create(plan, shared=True)
        report = Report(plan, memory, folder, Board("", quiet=True))
        super().__init__(report, Calls([], report, memory), stop)
        self.window_s, self.limit_s = window_s, limit_s
        self.measured: Measurement | None = None
        self._began = time.monotonic()
        self._ready: float | None = None
        self._warm: float | None = None
        self._first: _Reading | None = None

    def _start_evaluator(self) -> None:
        """None: an evaluation in the window would be timed with it."""

    def _check_end(self) -> None:
        now = time.monotonic()
        if self.stop.requested:
            self._end("interrupted", None)
        elif self._ready is None:
            if self.crew.all_ready:
                self._ready = now
        elif self._first is not None:
            self._look_at_the_window(self._first, self._ready)
        elif self._warm is not None:
            if now - self._warm >= SETTLE_SECONDS:
                self._first = self._read()
        elif self.report.updates >= max(1, self._warm_up_updates()):
            self._warm = now
        elif now - self._ready > self.limit_s:
            self._end("too_slow", None)

    def _warm_up_updates(self) -> int:
        governor, config = self.report.governor, self.plan.config
        return 1 if governor.free else governor.due(config.explore.warmup_steps)

    def _look_at_the_window(self, first: _Reading, ready: float) -> None:
        seconds = now_ns() / 1e9 - first.snapshot.seconds
        enough = self.report.updates - first.updates >= ENOUGH_UPDATES
        if seconds < self.window_s or (not enough and seconds < LONGEST * self.window_s):
            return
        last = self._read()
        if last.updates == first.updates:
            self._end("too_slow", None)
            return
        window = last.snapshot.since(first.snapshot)
        accounts = budget(window.by_role(), self.report.ledger.processes)
        self.measured = Measurement(
            seconds=window.seconds,
            updates=last.updates - first.updates,
            env_steps=last.env_steps - first.env_steps,
            accounts=accounts,
            supervisor_s=last.supervisor_s - first.supervisor_s,
            sentence=self.report.limit(accounts).sentence,
            ready_s=ready - self._began,
        )
        self._end("measured", None)

    def _read(self) -> _Reading:
        report = self.report
        snapshot = Snapshot.take(report.ledger.records, report.ledger.pids)
        return _Reading(snapshot, report.updates, report.env_steps, time.process_time())


def timed_run(
    config: Config, env: EnvSpec, stop: StopRequest, *, window_s: float, limit_s: float
) -> Measurement:
    """Run `config` in a folder that is removed again, and time it for `window_s` seconds.

    The warm-up is shortened to two batches' worth of steps. Raises ConfigError; TooSlowError;
    RuntimeError with the reason when the run failed; KeyboardInterrupt when `stop` was requested.
    """
    warmup = min(config.explore.warmup_steps, 2 * config.sac.batch_size)
    cores = allowed_cores()
    with tempfile.TemporaryDirectory(prefix="fdql-trial-") as parent:
        config = replace(
            config,
            run_dir=str(Path(parent) / "run"),
            total_timesteps=ENDLESS,
            stop_at_return="never",
            stop_without_improvement=None,
            trace_seconds=None,
            tensorboard=False,
            wandb=False,
            checkpoint_keep=0,
            explore=replace(config.explore, warmup_steps=warmup),
        )
        config, _ = check_memory(resolve(config, cores=cores, env=env), env)
        folder = RunFolder(config)
        plan = RunPlan(config=config, env=env, run_dir=str(folder.path))
        run = TimedRun(plan, folder, stop, window_s, limit_s)
        result = run.run()
    if stop.requested:
        raise KeyboardInterrupt
    if result.problem:
        raise RuntimeError(result.problem)
    if run.measured is None:
        raise TooSlowError(
            f"{plan.workers} worker(s) made {result.summary['env_steps']:,} steps and "
            f"{result.summary['updates']:,} updates in {limit_s:.0f} s"
        )
    return run.measured
