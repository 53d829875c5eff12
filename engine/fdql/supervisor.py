"""The supervisor: create the memory, start the processes, stop in order, report.

Reads every record; writes the control block. It is in no one's data path: training goes on while it
sleeps. The processes themselves are watched by its crew (crew.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fdql.board import Board
from fdql.callbacks import Callback, Calls, checked
from fdql.clock import monotonic
from fdql.config import Config, ConfigError
from fdql.crew import Crew
from fdql.ending import RunResult, conclude
from fdql.envs import check_train_call
from fdql.fit import check_fit
from fdql.machine import allowed_cores, banner, check_descriptors, check_memory, resolve
from fdql.manifest import read_manifest
from fdql.probe import probe
from fdql.proc.memory import FINISH, LAST, STOP, RunMemory, RunPlan
from fdql.proc.resumed import base_of, begin_counters, count_of, keeps_row
from fdql.profile import Counter
from fdql.report import Report
from fdql.run_folder import RunFolder, run_dir_exists
from fdql.stop_request import StopRequest
from fdql.trace import TraceRecorder

METRICS_SECONDS = 1.0  # between two rows of metrics
QUIET_SECONDS = 5.0  # a start that takes longer is explained
LEAVE_SECONDS = 20.0  # a process told to leave is killed after this
SAVE_SECONDS = 300.0  # the trainer, which saves when it leaves, after so long without a byte
LAST_SECONDS = 3600.0  # the evaluator may play the last policy this long


def train(
    config: Config, *, callbacks: Callback | Sequence[Callback] = (), quiet: bool = False,
    began: float | None = None, until_traced: bool = False, checkpoint: Path | None = None,
    broken: Sequence[Path] = (),
) -> RunResult:  # fmt: skip
    """Train once, as `config` says, and return how it ended.

    callbacks     one or many, called beside training; see fdql.Callback
    quiet         print nothing
    began         when the run's clock started, on fdql.clock.monotonic; None: now
    until_traced  end once the timeline is recorded
    checkpoint    a verified one of the run in config.run_dir, which goes on there (going_on.py)
    broken        of that run, set aside once nothing can be refused any more

    Raises ConfigError for everything that cannot work, before anything is started or written.
    """
    began = monotonic() if began is None else began
    if not isinstance(config, Config):
        works = f"fdql.Config(env={config!r})" if isinstance(config, str) else "fdql.Config()"
        raise ConfigError(f"config = {config!r}: must be a fdql.Config; {works} works")
    check_train_call(config)
    callbacks = checked(callbacks)
    cores = allowed_cores()
    manifest = None if checkpoint is None else read_manifest(checkpoint)
    if manifest is None and config.run_dir is not None and os.path.lexists(config.run_dir):
        raise ConfigError(run_dir_exists(config.run_dir))
    env, step_us = probe(config, quiet=quiet)
    config = resolve(config, cores=cores, step_us=step_us, env=env)
    config, replay_bytes = check_memory(config, env)
    check_descriptors(config)
    if manifest is not None:
        check_fit(manifest, config, env)
    with StopRequest() as stop:  # from here on Ctrl-C ends in order: there is a folder to clear up
        kept = None if manifest is None else partial(keeps_row, manifest)
        folder = RunFolder(config, kept, broken)
        plan = RunPlan(
            checkpoint=None if checkpoint is None else str(checkpoint.resolve()),
            resumes=0 if manifest is None else count_of(manifest, "resumes") + 1,
            base=(0, 0) if manifest is None else base_of(manifest, config),
            config=replace(config, run_dir=str(folder.path)),
            env=env,
            run_dir=str(folder.path.resolve()),
            began=began,
        )
        board = Board(f"fdql  {config.env}  seed {config.seed}", quiet=quiet)
        for line in banner(plan, cores, replay_bytes, step_us):
            folder.log(line)
            board.note(line)
        try:
            memory = RunMemory.create(plan, shared=not config.serial)
            if manifest is not None:
                folder.begin()
                begin_counters(memory, manifest)
            report = Report(plan, memory, folder, board)
            calls = Calls(callbacks, report, memory)
            supervisor = None if config.serial else Supervisor(report, calls, stop, until_traced)
        except BaseException:  # no memory for it: nothing was started, nothing new is kept
            board.close()
            folder.give_up()
            raise
        if supervisor is not None:
            return supervisor.run()
        from fdql.serial import train_serial  # brings Numba: no other run waits for it

        return train_serial(report, calls, stop)


class Supervisor:
    """One asynchronous run."""

    def __init__(
        self, report: Report, calls: Calls, stop: StopRequest, until_traced: bool = False
    ) -> None:
        self.report, self.calls, self.stop, self.until_traced = report, calls, stop, until_traced
        self.plan, self.memory = report.plan, report.memory
        self.folder, self.board = report.folder, report.board
        traced = self.plan.config.trace_seconds is not None
        self.trace = TraceRecorder(self.memory, self.folder.path, report.say) if traced else None
        self.crew = Crew(self.memory, report, self._end)
        self.told_compiling = False
        self.exit_reason = ""
        self.problem: str | None = None

    def run(self) -> RunResult:
        """Start, watch until something ends the run, stop in order, write the summary."""
        try:
            self.crew.spawn("trainer")
            for w in range(self.plan.workers):
                self.crew.spawn(f"worker {w}")
            self.crew.spawn("inference")
            wrote = time.monotonic()
            while not self.exit_reason:
                self.crew.pump()
                self.crew.check_silence()
                self._check_end()
                self._start_evaluator()
                self._look_at_trace()
                if time.monotonic() - wrote >= METRICS_SECONDS:
                    wrote = time.monotonic()
                    self.report.write()
                else:
                    self.report.show()
            self.report.ledger.close()
            self._leave()
        except OSError as error:  # the system's limits: processes, descriptors, memory
            self._end("crash", f"the supervisor could not go on: {error}")
        finally:
            self.crew.kill_all()
        # Nothing runs any more: what tracks and counters say now is final.
        if self.trace is not None:
            self.trace.finish()
            if self.trace.failed:
                self.report.tell(self.trace.failed)
        problem = self.problem or self.crew.problem
        result = conclude(self.report, *self.calls.finish(self.exit_reason, problem))
        self.memory.close()
        return result

    def _start_evaluator(self) -> None:
        """Last of all: its start must not take a core from what the first step waits for. Says why
        when that takes long.
        """
        if self.exit_reason:
            return
        crew = self.crew
        if "evaluator" not in crew.started and crew.all_ready:
            crew.spawn("evaluator")
        elif not self.told_compiling and time.monotonic() - crew.started["trainer"] > QUIET_SECONDS:
            self.told_compiling = True
            if "trainer" in crew.children and not crew.children["trainer"].ready:
                self.board.note("compiling the kernels; this happens once, then they are cached")

    def _look_at_trace(self) -> None:
        if self.trace is not None:
            ready = sum(child.ready for child in self.crew.children.values())
            self.trace.look(all_run=ready == len(self.plan.roles))
            if self.until_traced and self.trace.done:
                self._end("traced", None)

    def _check_end(self) -> None:
        report, ended = self.report, self.calls.look()
        if self.stop.requested:
            self._end("interrupted", None)
        elif ended is not None:
            self._end(*ended)
        elif report.verdict:
            self._end(report.verdict, None)
        elif report.governor.complete(
            report.env_steps, report.updates, report.trainer.get(Counter.REPLAY)
        ):
            self._end("total_timesteps", None)

    def _end(self, reason: str, problem: str | None) -> None:
        """End the run; what is said first stays."""
        if not self.exit_reason:
            self.exit_reason, self.problem = reason, problem

    def _leave(self) -> None:
        """Workers, inference and trainer leave (the trainer saves); then the evaluator."""
        crew, stop = self.crew, self.stop
        crew.leaving = True
        self.memory.stop(FINISH)
        others = [r for r in crew.children if r not in ("trainer", "evaluator")]
        crew.wait_for(others, LEAVE_SECONDS, stop)
        crew.wait_for(["trainer"], SAVE_SECONDS, stop)
        last = self.exit_reason == "total_timesteps"
        self.memory.stop(LAST if last else STOP)
        crew.wait_for(["evaluator"], LAST_SECONDS if last else LEAVE_SECONDS, stop)
