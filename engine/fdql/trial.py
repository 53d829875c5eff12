"""A trial: a real run, timed from the end of its warm-up for some seconds, then ended and removed.

Same processes as any run, but for the evaluator. For `fdql autotune` and bench/scale.py.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from fdql.board import Board
from fdql.config import Config
from fdql.core_time import core_time
from fdql.envs import EnvSpec
from fdql.machine import allowed_cores, check_memory, resolve
from fdql.proc.memory import RunPlan
from fdql.profile import Counter
from fdql.run_folder import RunFolder
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

    seconds     length of the window
    duty        share of it that the trainer spent inside updates
    cpu_s       CPU seconds of each kind of process: worker, inference, trainer, supervisor
    ready_s     from the trial's start until every process was ready
    stages_us   the stage table of the whole trial, microseconds
    """

    seconds: float
    updates: int
    env_steps: int
    duty: float
    cpu_s: dict[str, float]
    ready_s: float
    stages_us: dict[str, dict[str, float]]

    @property
    def updates_per_s(self) -> float:
        """Updates per second of the window."""
        return self.updates / self.seconds

    @property
    def steps_per_s(self) -> float:
        """Environment steps stored per second of the window."""
        return self.env_steps / self.seconds


@dataclass(frozen=True, slots=True)
class _Reading:
    """Counters and clocks at one moment."""

    at_s: float
    updates: int
    env_steps: int
    update_ns: int
    cpu_s: dict[str, float]


class TimedRun(Supervisor):
    """A run that ends by itself once it was timed; `measured` is None when something else ended it.

    window_s   seconds to time
    limit_s    seconds from readiness in which the warm-up must be through
    """

    def __init__(
        self, plan: RunPlan, folder: RunFolder, stop: StopRequest, cores: int,
        window_s: float, limit_s: float,
    ) -> None:  # fmt: skip
        super().__init__(plan, folder, Board("", quiet=True), stop, cores)
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
            if all(child.ready for child in self.children.values()):
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
        seconds = time.monotonic() - first.at_s
        enough = self.report.updates - first.updates >= ENOUGH_UPDATES
        if seconds < self.window_s or (not enough and seconds < LONGEST * self.window_s):
            return
        last = self._read()
        seconds = last.at_s - first.at_s
        if last.updates == first.updates:
            self._end("too_slow", None)
            return
        self.measured = Measurement(
            seconds=seconds,
            updates=last.updates - first.updates,
            env_steps=last.env_steps - first.env_steps,
            duty=min(1.0, (last.update_ns - first.update_ns) / (1e9 * seconds)),
            cpu_s={k: last.cpu_s[k] - first.cpu_s.get(k, 0.0) for k in last.cpu_s},
            ready_s=ready - self._began,
            stages_us=self.report.stages(),
        )
        self._end("measured", None)

    def _read(self) -> _Reading:
        cpu_s: dict[str, float] = {}
        for role, child in self.children.items():
            kind = role.partition(" ")[0]
            main, others = core_time(child.process.pid)
            cpu_s[kind] = cpu_s.get(kind, 0.0) + main[0] + others[0]
        cpu_s["supervisor"] = time.process_time()
        report = self.report
        return _Reading(
            time.monotonic(), report.updates, report.env_steps,
            report.trainer.get(Counter.UPDATE_NS), cpu_s,
        )  # fmt: skip


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
            explore=replace(config.explore, warmup_steps=warmup),
        )
        config, _ = check_memory(resolve(config, cores=cores), env)
        folder = RunFolder(config)
        plan = RunPlan(config=config, env=env, run_dir=str(folder.path))
        run = TimedRun(plan, folder, stop, cores, window_s, limit_s)
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
