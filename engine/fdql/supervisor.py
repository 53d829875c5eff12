"""The supervisor: create the memory, start the processes, watch them, restart, stop in order,
report.

Reads every record and event; writes the control block. It is in no one's data path: training goes
on while it sleeps. Death is decided by the kernel (pidfd); a silent process is killed first, then
reaped.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from dataclasses import replace

from fdql.board import Board
from fdql.children import Child
from fdql.config import Config, ConfigError
from fdql.envs import describe, make_env
from fdql.machine import allowed_cores, banner, check_memory, resolve
from fdql.proc.child import EXIT_BAD_VALUE
from fdql.proc.memory import FINISH, LAST, READER_EVALUATOR, STOP, RunMemory, RunPlan
from fdql.profile import Counter
from fdql.report import Report, RunResult, conclude
from fdql.run_folder import RunFolder, run_dir_exists
from fdql.shm.records import now_ns
from fdql.step_cost import step_cost_us
from fdql.stop_request import StopRequest
from fdql.trace import TraceRecorder

POLL_MS = 100  # longest sleep of the supervisor
METRICS_SECONDS = 1.0  # between two rows of metrics
QUIET_SECONDS = 5.0  # a start that takes longer is explained
START_SECONDS = 600.0  # a process must be ready by then; the first start compiles the kernels
LEAVE_SECONDS = 20.0  # a process told to leave is killed after this
SAVE_SECONDS = 300.0  # the trainer writes its checkpoint when it leaves: its disk may be slow
LAST_SECONDS = 3600.0  # the evaluator may play the last policy this long


def train(config: Config, *, quiet: bool = False, until_traced: bool = False) -> RunResult:
    """Train once, as `config` says, and return how it ended. `until_traced`: no longer than that.

    Raises ConfigError for everything that cannot work, before anything is started or written.
    """
    cores = allowed_cores()
    if config.run_dir is not None and os.path.lexists(config.run_dir):
        raise ConfigError(run_dir_exists(config.run_dir))
    probe = make_env(config.env)
    try:
        env = describe(config.env, probe)
        step_us = 0.0 if config.serial else step_cost_us(probe, config.seed)
    finally:
        probe.close()
    config = resolve(config, cores=cores, step_us=step_us, env=env)
    config, replay_bytes = check_memory(config, env)
    with StopRequest() as stop:  # from here on Ctrl-C ends in order: there is a folder to clear up
        folder = RunFolder(config)
        plan = RunPlan(
            config=replace(config, run_dir=str(folder.path)),
            env=env,
            run_dir=str(folder.path.resolve()),
        )
        board = Board(f"fdql  {config.env}  seed {config.seed}", quiet=quiet)
        for line in banner(plan, cores, replay_bytes, step_us):
            folder.log(line)
            board.note(line)
        if config.serial:
            from fdql.serial import train_serial  # brings Numba: no other run waits for it

            return train_serial(plan, folder, board, stop)
        return Supervisor(plan, folder, board, stop, until_traced).run()


class Supervisor:
    """One asynchronous run."""

    def __init__(
        self, plan: RunPlan, folder: RunFolder, board: Board, stop: StopRequest,
        until_traced: bool = False,
    ) -> None:  # fmt: skip
        self.plan, self.folder, self.board, self.stop = plan, folder, board, stop
        self.memory = RunMemory.create(plan, shared=True)
        self.report = Report(plan, self.memory, folder, board)
        self.until_traced = until_traced
        traced = plan.config.trace_seconds is not None
        self.trace = TraceRecorder(self.memory, folder.path, self._say) if traced else None
        self.plan_json = plan.to_json()
        self.children: dict[str, Child] = {}
        self.started: dict[str, float] = {}
        self.deaths: dict[str, deque[float]] = {}
        self.poll = select.poll()
        self.leaving = self.told_compiling = False
        self.exit_reason = ""
        self.problem: str | None = None

    def run(self) -> RunResult:
        """Start, watch until something ends the run, stop in order, write the summary."""
        try:
            self._spawn("trainer")
            for w in range(self.plan.workers):
                self._spawn(f"worker {w}")
            self._spawn("inference")
            wrote = time.monotonic()
            while not self.exit_reason:
                self._pump()
                self._check_silence()
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
        finally:
            self._kill_all()
        # Nothing runs any more: what tracks and counters say now is final.
        if self.trace is not None:
            self.trace.finish()
        result = conclude(self.report, self.exit_reason, self.problem)
        self.memory.close()
        return result

    def _spawn(self, role: str, incarnation: int = 1) -> None:
        kind, _, index = role.partition(" ")
        module = {"worker": "env_worker"}.get(kind, kind)
        words = [index, str(incarnation)] if kind == "worker" else []
        child = Child(
            role,
            f"fdql.proc.{module}",
            words,
            self.memory.segment.fd,
            self.plan_json,
            (self.plan.config.engine.learner_threads or 1) if kind == "trainer" else 1,
            incarnation,
        )
        self.children[role] = child
        self.started[role] = time.monotonic()
        for fd in child.descriptors():
            self.poll.register(fd, select.POLLIN)

    def _start_evaluator(self) -> None:
        """Last of all: its start must not take a core from what the first step waits for. Says why
        when that takes long.
        """
        if self.exit_reason:
            return
        if "evaluator" not in self.started and all(c.ready for c in self.children.values()):
            self._spawn("evaluator")
        elif not self.told_compiling and time.monotonic() - self.started["trainer"] > QUIET_SECONDS:
            self.told_compiling = True
            if "trainer" in self.children and not self.children["trainer"].ready:
                self.board.note("compiling the kernels; this happens once, then they are cached")

    def _pump(self) -> None:
        """Sleep until a child speaks or dies, at most POLL_MS; take in what there is."""
        self.poll.poll(POLL_MS)
        for role, child in list(self.children.items()):
            gone = child.exited()  # before its pipes are read: nothing it said is missed
            self._listen(child)
            if gone:
                self._forget(role, child)
                if not self.leaving:
                    self._died(role, child)
                elif child.process.returncode:
                    self._left_badly(role, child)

    def _listen(self, child: Child) -> None:
        for line in child.read_output():
            self.folder.log(f"[{child.role}] {line}")
        for event in child.read_events():
            if event["event"] == "error":
                self.folder.log(f"[{child.role}] {event['message']}")
            self.report.event(event)

    def _say(self, line: str) -> None:
        self.folder.log(line)
        self.board.note(line)

    def _forget(self, role: str, child: Child) -> None:
        for fd in child.descriptors():
            self.poll.unregister(fd)
        child.close()
        del self.children[role]

    def _died(self, role: str, child: Child) -> None:
        """A child ended without being told to: restart it, or end the run and say why."""
        code, account = child.process.returncode, child.account()
        self.folder.log(f"[{role}] ended: {account}")
        if child.output:
            self.board.problem("\n".join(f"[{role}] {line}" for line in child.output))
        if role == "evaluator":
            self.memory.clear_pin(READER_EVALUATOR)
        engine = self.plan.config.engine
        if code == EXIT_BAD_VALUE:
            self._end("bad_value", f"{role}: {account}")
        elif role in ("trainer", "inference"):
            self._end("crash", f"the {role} process ended: {account}")
        elif not child.ready and child.incarnation == 1:
            self._end("crash", f"{role} could not start: {account}")
        else:
            deaths = self.deaths.setdefault(role, deque())
            deaths.append(time.monotonic())
            while deaths and deaths[0] < time.monotonic() - engine.restart_window:
                deaths.popleft()
            if len(deaths) > engine.restarts:
                self._end(
                    "crash",
                    f"{role} ended {len(deaths)} times within {engine.restart_window:g} s (last: "
                    f"{account}); "
                    f"engine.restarts = {engine.restarts} is the most that is allowed",
                )
                return
            self.report.restarts += 1
            self.board.problem(
                f"{role} ended ({account}); restart {len(deaths)} of {engine.restarts}"
            )
            self._spawn(role, child.incarnation + 1)

    def _left_badly(self, role: str, child: Child) -> None:
        """A child failed after it was told to leave, the trainer while saving perhaps."""
        self.problem = self.problem or f"the {role} process failed at the end: {child.account()}"
        self.folder.log(f"[{role}] ended: {child.account()}")
        self.board.problem("\n".join(f"[{role}] {line}" for line in child.output))

    def _check_silence(self) -> None:
        """Kill what gave no sign of life for too long; its death is then noticed like any other."""
        limit, roles = self.plan.config.engine.heartbeat_timeout, self.plan.roles
        for role, child in self.children.items():
            if child.ready:
                age = (now_ns() - self.memory.record(roles.index(role)).heartbeat_ns) / 1e9
                if age > limit and time.monotonic() - self.started[role] > limit:
                    setting = f"engine.heartbeat_timeout = {limit:g}"
                    child.error = f"no sign of life for {age:.0f} s ({setting}), killed"
                    child.kill()
            elif time.monotonic() - self.started[role] > START_SECONDS:
                child.error = f"not ready {START_SECONDS:.0f} s after its start, killed"
                child.kill()

    def _look_at_trace(self) -> None:
        if self.trace is not None:
            ready = sum(child.ready for child in self.children.values())
            self.trace.look(all_run=ready == len(self.plan.roles))
            if self.until_traced and self.trace.done:
                self._end("traced", None)

    def _check_end(self) -> None:
        report = self.report
        if self.stop.requested:
            self._end("interrupted", None)
        elif report.solved:
            self._end("solved", None)
        elif report.governor.complete(
            report.env_steps, report.updates, report.trainer.get(Counter.REPLAY)
        ):
            self._end("total_timesteps", None)

    def _end(self, reason: str, problem: str | None) -> None:
        if not self.exit_reason:
            self.exit_reason, self.problem = reason, problem

    def _leave(self) -> None:
        """Workers, inference and trainer leave (the trainer saves); then the evaluator."""
        self.leaving = True
        self.memory.stop(FINISH)
        self._wait_for(
            [r for r in self.children if r not in ("trainer", "evaluator")], LEAVE_SECONDS
        )
        self._wait_for(["trainer"], SAVE_SECONDS)
        last = self.exit_reason == "total_timesteps"
        self.memory.stop(LAST if last else STOP)
        self._wait_for(["evaluator"], LAST_SECONDS if last else LEAVE_SECONDS)

    def _wait_for(self, roles: list[str], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any(r in self.children for r in roles):
            self._pump()
            if time.monotonic() > deadline or self.stop.impatient:
                break
        for role in roles:
            if role in self.children:
                self.folder.log(f"[{role}] did not leave in time, killed")
                self.children[role].kill()

    def _kill_all(self) -> None:
        """Whatever happened: no child is left."""
        for child in self.children.values():
            child.kill()
        for role, child in list(self.children.items()):
            child.process.wait()
            self._listen(child)
            self._forget(role, child)
