"""The processes of a run: started, listened to, watched, restarted within a budget, and then gone.

Reads the events and the output of every child and the heartbeats in their records. Death is decided
by the kernel (pidfd), never by a timer; a silent process is killed, then reaped, only then
replaced.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable

from fdql.checkpoint_folder import CheckpointFolder
from fdql.children import Child
from fdql.proc.child import EXIT_BAD_VALUE, EXIT_CORRUPT
from fdql.proc.memory import READER_EVALUATOR, RunMemory
from fdql.profile import Counter, Stage
from fdql.report import Report
from fdql.shm.layout import KIND_RING
from fdql.shm.records import Record, now_ns
from fdql.shm.ring import clear_writer
from fdql.stop_request import StopRequest

POLL_MS = 100  # longest sleep of the supervisor
MOST_PRINTED = 4 << 20  # bytes of a process's output that go into log.txt


class Crew:
    """Owned by the supervisor.

    children  role -> process, of those that live or are not reaped yet
    started   role -> when it was last started, time.monotonic; of every role that ever was
    leaving   set once they were told to leave: then a death is no fault
    problem   what failed while leaving, one sentence
    end       called with (exit reason, problem) when a death ends the run
    """

    def __init__(
        self, memory: RunMemory, report: Report, end: Callable[[str, str], None]
    ) -> None:  # fmt: skip
        self.plan, self.memory, self.report, self.end = memory.plan, memory, report, end
        self.folder, self.board = report.folder, report.board
        self.plan_json = self.plan.to_json()
        self.children: dict[str, Child] = {}
        self.started: dict[str, float] = {}
        self.deaths: dict[str, deque[float]] = {}
        self.leaving = False
        self.problem: str | None = None

    @property
    def all_ready(self) -> bool:
        """Every process that was started so far has reported."""
        return all(child.ready for child in self.children.values())

    def spawn(self, role: str, incarnation: int = 1) -> None:
        """Start the process of a role; `incarnation` counts its lives from 1."""
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

    def pump(self) -> None:
        """Sleep until a child speaks or dies, at most POLL_MS; take in what there is."""
        watched = [fd for child in self.children.values() for fd in child.descriptors()]
        poll = select.poll()  # no limit to the number of a descriptor, unlike select
        for fd in watched:
            poll.register(fd, select.POLLIN)
        poll.poll(POLL_MS)
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
        before = child.printed
        for line in child.read_output():
            if child.printed < MOST_PRINTED:
                self.folder.log(f"[{child.role}] {line}")
        if before < MOST_PRINTED <= child.printed:
            most = f"{MOST_PRINTED >> 20} MiB"
            self.folder.log(f"[{child.role}] printed {most}; no more of it is kept here")
        for event in child.read_events():
            if event["event"] == "error":
                self.folder.log(f"[{child.role}] {event['message']}")
            self.report.event(event)

    def _forget(self, role: str, child: Child) -> None:
        child.close()
        del self.children[role]

    def _died(self, role: str, child: Child) -> None:
        """A child ended without being told to: restart it, or end the run and say why."""
        code = child.process.returncode
        account = child.account(self._stage(role) if child.ready else None)
        self.folder.log(f"[{role}] ended: {account}")
        if child.output:
            self.board.problem("\n".join(f"[{role}] {line}" for line in child.output))
        if role == "evaluator":
            self.memory.clear_pin(READER_EVALUATOR)
        elif role.startswith("worker"):
            # Its pid may be another process's by now: that one does not write the ring.
            clear_writer(self.memory.segment.section(KIND_RING, int(role.split()[1])))
        engine = self.plan.config.engine
        if code == EXIT_BAD_VALUE:
            self.end("bad_value", f"{role}: {account}")
        elif code == EXIT_CORRUPT:
            self.end("corrupt", f"{role} found what nobody wrote: {account}")
        elif role in ("trainer", "inference"):
            self.end("crash", f"the {role} process ended: {account}")
        elif not child.ready and child.incarnation == 1:
            self.end("crash", f"{role} could not start: {account}")
        else:
            deaths = self.deaths.setdefault(role, deque())
            deaths.append(time.monotonic())
            while deaths and deaths[0] < time.monotonic() - engine.restart_window:
                deaths.popleft()
            if len(deaths) > engine.restarts:
                self.end(
                    "crash",
                    f"{role} ended {len(deaths)} times within {engine.restart_window:g} s (last: "
                    f"{account}); "
                    f"engine.restarts = {engine.restarts} is the most that is allowed; log.txt "
                    "tells of each",
                )
                return
            self.report.restarts += 1
            self.board.problem(
                f"{role} ended ({account}); restart {len(deaths)} of {engine.restarts}"
            )
            self.spawn(role, child.incarnation + 1)

    def _left_badly(self, role: str, child: Child) -> None:
        """A child failed after it was told to leave, the trainer while saving perhaps."""
        self.problem = self.problem or f"the {role} process failed at the end: {child.account()}"
        self.folder.log(f"[{role}] ended: {child.account()}")
        self.board.problem("\n".join(f"[{role}] {line}" for line in child.output))

    def check_silence(self) -> None:
        """Kill what gave no sign of life for too long; its death is then noticed like any other."""
        engine = self.plan.config.engine
        for role, child in self.children.items():
            # What its predecessor left in the record is older than its own start.
            since = child.ready_at if child.ready else self.started[role]
            sign = self._record(role).heartbeat_ns
            age = min(time.monotonic() - since, (now_ns() - sign) / 1e9)
            name = "heartbeat_timeout" if child.ready else "start_timeout"
            limit = float(getattr(engine, name))
            if age > limit:
                stage = Stage(self._stage(role)).name.lower() if child.ready else "its start"
                child.error = (
                    f"no sign of life for {age:.0f} s in {stage} (engine.{name} = {limit:g}), "
                    "killed; a larger one waits longer"
                )
                child.kill()

    def _record(self, role: str) -> Record:
        return self.memory.record(self.plan.roles.index(role))

    def _stage(self, role: str) -> int:
        """Stage of its last sign of life."""
        return self._record(role).stage

    def wait_for(self, roles: list[str], seconds: float, stop: StopRequest) -> None:
        """Until these are gone; who still lives after `seconds`, or is asked twice, is killed. The
        trainer's begin again with all that it writes of its checkpoint.
        """
        deadline, written, saves = time.monotonic() + seconds, 0, "trainer" in roles
        while any(r in self.children for r in roles):
            self.pump()
            self.report.show()  # the last checkpoint may take its time
            if saves and written != (now := self.report.trainer.get(Counter.SAVED)):
                deadline, written = time.monotonic() + seconds, now
            if time.monotonic() > deadline or stop.impatient:
                break
        late = "wrote nothing for" if saves else "did not leave within"
        how = "asked twice" if stop.impatient else f"{late} {seconds:g} s"
        for role in roles:
            if role in self.children:
                child = self.children[role]
                child.error = f"{how}, killed"
                if role == "trainer":
                    kept = CheckpointFolder(self.folder.path / "checkpoints").names()
                    left = f"{kept[-1]} is the newest" if kept else "there is no"
                    child.error += f" while it saved: {left} checkpoint"
                    if not stop.impatient:
                        self.problem = self.problem or f"the trainer process {child.error}"
                self.folder.log(f"[{role}] {child.error}")
                child.kill()

    def kill_all(self) -> None:
        """Whatever happened: no child is left."""
        for child in self.children.values():
            child.kill()
        for role, child in list(self.children.items()):
            child.process.wait()
            self._listen(child)
            self._forget(role, child)
