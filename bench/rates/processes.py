"""Real child processes of fdql over one segment; the bench plays their supervisor."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from fdql.budget import Ledger
from fdql.children import Child
from fdql.config import Config
from fdql.machine import allowed_cores, check_memory, resolve
from fdql.probe import probe
from fdql.proc.memory import FINISH, RECORD_INFERENCE, RECORD_TRAINER, RunMemory, RunPlan

START_SECONDS = 600.0  # the first start compiles the kernels
LEAVE_SECONDS = 30.0


class ChildFailed(RuntimeError):
    """A process of ours ended, or did not start or leave, as it should."""


def plan_of(config: Config, run_dir: str) -> RunPlan:
    """A run's plan, resolved for this machine as the product does it."""
    env, step_us = probe(config)
    config = resolve(config, cores=allowed_cores(), step_us=step_us, env=env)
    config, _ = check_memory(config, env)
    return RunPlan(config=config, env=env, run_dir=run_dir)


class Processes:
    """Started one by one, told to leave together; killed when the block ends otherwise."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan, self.plan_json = plan, plan.to_json()
        self.memory = memory = RunMemory.create(plan, shared=True)
        records = {f"worker {w}": memory.worker_record(w) for w in range(plan.workers)}
        records["inference"] = memory.record(RECORD_INFERENCE)
        records["trainer"] = records["loader"] = memory.record(RECORD_TRAINER)
        self.ledger = Ledger(records)
        self.children: list[Child] = []
        self.leaving = False

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for child in self.children:
            child.kill()
            child.process.wait()
            child.close()
        self.children.clear()
        self.memory.close()

    def start(self, role: str, incarnation: int = 1) -> Child:
        """Start "trainer", "inference" or "worker N", as the supervisor starts it."""
        kind, _, index = role.partition(" ")
        module = {"worker": "env_worker"}.get(kind, kind)
        words = [index, str(incarnation)] if kind == "worker" else []
        fd = self.memory.segment.fd
        kernel_threads = (self.plan.config.engine.learner_threads or 1) if kind == "trainer" else 1
        child = Child(
            role, f"fdql.proc.{module}", words, fd, self.plan_json, kernel_threads, incarnation
        )
        self.children.append(child)
        return child

    def listen(self) -> list[dict[str, Any]]:
        """Events since the last call. Raises ChildFailed when a child ended and should not have."""
        events = []
        for child in self.children:
            gone = child.exited()
            child.read_output()
            events += child.read_events()
            if gone and (child.process.returncode or not self.leaving):
                last = "\n".join(child.output)
                raise ChildFailed(f"{child.role}: {child.account()}\n{last}")
        return events

    def until(self, done: Callable[[], bool], between: Callable[[], None], seconds: float) -> None:
        """Call `between` again and again until `done`, listening every 20 ms."""
        deadline, heard = time.monotonic() + seconds, 0.0
        while not done():
            between()
            if time.monotonic() - heard > 0.02:
                self.listen()
                heard = time.monotonic()
                if heard > deadline:
                    raise ChildFailed(
                        f"nothing after {seconds:g} s: {[c.role for c in self.children]}"
                    )

    def wait_ready(self, between: Callable[[], None]) -> None:
        """Until every child has said that it is ready."""
        self.until(lambda: all(c.ready for c in self.children), between, START_SECONDS)

    def leave(self, between: Callable[[], None]) -> list[dict[str, Any]]:
        """Tell everyone to leave and wait for it. Returns what they said at last."""
        self.leaving = True
        self.memory.stop(FINISH)
        self.until(lambda: all(c.exited() for c in self.children), between, LEAVE_SECONDS)
        return self.listen()

    def stages(self) -> dict[str, dict[str, float]]:
        """Percentiles of every stage over all processes, microseconds, as in summary.json."""
        return self.ledger.stage_table()
