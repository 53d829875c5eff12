"""Your own code during a run: called by the supervisor, beside training, with a snapshot of it.

    class Stop(fdql.Callback):
        on_step_every = 10_000

        def on_step(self, snapshot):
            # False ends the run; there is no mean before an episode has ended
            return snapshot.metrics.get("rollout/ep_rew_mean", 0) < 400

    fdql.train(fdql.Config(), callbacks=[Stop()])

Calls come from the thread that called `train`, between two looks at the processes, so training goes
on meanwhile; a policy that a callback looks at is a copy with a version and changes no more. A
callback that takes long holds up nothing but the board, the metrics rows and the notice that a
process died: for more than a few seconds of work start a thread or a process of your own.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fdql.config import ConfigError
from fdql.proc.governor import next_due
from fdql.proc.memory import READER_CALLBACKS, RunMemory
from fdql.report import Report
from fdql.sac.nets import F32

if TYPE_CHECKING:
    from fdql.play import Policy


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment.

    version     updates behind the policy's weights
    env_steps   environment steps stored, updates made, seconds since the start, at this moment
    metrics     the row of metrics.jsonl for this moment; docs/metrics.md says what its keys mean
    run_dir     the run's folder; what is in it may be read
    facts       what a file of this policy would say
    weights     the policy's numbers, float32, a copy
    """

    version: int
    env_steps: int
    updates: int
    seconds: float
    metrics: dict[str, Any]
    run_dir: Path
    facts: dict[str, Any]
    weights: F32

    @property
    def policy(self) -> Policy:
        """The policy of this version, made anew at every call. Loads Numba, once, half a second.

        Raises ValueError when nothing was learned yet (version 0), which only on_end can meet.
        """
        if self.version == 0:
            raise ValueError("no policy yet: the run ended before its first one")
        from fdql.play import policy_from  # brings Numba, which no other run waits for

        return policy_from(self.facts, self.weights)


class Callback:
    """Override what you need. A method that returns False ends the run in order, with its
    checkpoint; the exit reason is then "callback". One that raises ends it too, and the summary
    names it.
    """

    on_step_every: int | None = None
    """Environment steps between two calls of on_step; None: it is not called."""

    def on_step(self, snapshot: Snapshot) -> bool | None:
        """Called once for every on_step_every steps, as soon as there is a policy. In the
        asynchronous mode steps come in groups: it is the first look behind the round number.
        """

    def on_evaluation(self, snapshot: Snapshot, evaluation: dict[str, Any]) -> bool | None:
        """Called after every evaluation: mean, std, episodes, length (mean), updates (the version
        that played), env_steps, seconds. The snapshot's policy may be newer than that version.
        """

    def on_end(self, snapshot: Snapshot, exit_reason: str) -> None:
        """Called at the end, however it came, before the summary is written."""


def checked(callbacks: Callback | Sequence[Callback]) -> list[Callback]:
    """The callbacks; one alone is taken too. Raises ConfigError for what is no callback, and for an
    interval that cannot be.
    """
    if isinstance(callbacks, Callback):
        callbacks = [callbacks]
    if not isinstance(callbacks, Iterable) or isinstance(callbacks, str):
        raise ConfigError(f"callbacks = {callbacks!r}: must be objects of fdql.Callback; [] works")
    out = list(callbacks)
    for callback in out:
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"callbacks: {callback!r} is no fdql.Callback; an object of a class that inherits "
                "from it works"
            )
        every, name = callback.on_step_every, type(callback).__name__
        if every is None:
            continue
        if not isinstance(every, Integral) or isinstance(every, bool) or every < 1:
            raise ConfigError(
                f"{name}.on_step_every = {every!r}: must be a whole number of at least 1; 1000 "
                "works"
            )
    return out


class Calls:
    """The callbacks of one run; `look` is called between two rounds, `finish` at the end."""

    def __init__(self, callbacks: Sequence[Callback], report: Report, memory: RunMemory) -> None:
        self.callbacks, self.report, self.memory = list(callbacks), report, memory
        self.weights = memory.weights_reader(READER_CALLBACKS) if callbacks else None
        self.evaluations: deque[dict[str, Any]] = deque()
        self.end: tuple[str, str | None] | None = None  # reason and problem, once one ended the run
        self.next_steps: dict[int, int] = {}  # of the callbacks that have on_step_every
        for i, callback in enumerate(self.callbacks):
            every, steps = callback.on_step_every, report.env_steps  # not 0 in a resumed run
            if every is not None:
                self.next_steps[i] = next_due(steps, every)
        if callbacks:
            report.listeners.append(self.evaluations.append)

    def look(self) -> tuple[str, str | None] | None:
        """Make the calls that are due. Returns (exit reason, problem) once one ends the run."""
        while self.evaluations:
            evaluation = self.evaluations.popleft()
            snapshot = self._snapshot()
            for callback in self.callbacks:
                self._call(callback, "on_evaluation", snapshot, dict(evaluation))
        steps = self.report.env_steps
        due = [i for i, at in self.next_steps.items() if steps >= at]
        if due and self.weights is not None and self.weights.latest > 0:
            snapshot = self._snapshot()
            for i in due:
                callback = self.callbacks[i]
                every = callback.on_step_every
                assert every is not None
                self.next_steps[i] = next_due(steps, every)
                self._call(callback, "on_step", snapshot)
        return self.end

    def finish(self, exit_reason: str, problem: str | None) -> tuple[str, str | None]:
        """The last calls. Returns the reason and the problem, the latter perhaps from one of
        them.
        """
        self.end = None  # what ended the run is known; a late False changes nothing
        self.look()
        if self.callbacks:
            snapshot = self._snapshot()
            for callback in self.callbacks:
                self._call(callback, "on_end", snapshot, exit_reason)
        return exit_reason, problem or (self.end[1] if self.end else None)

    def _snapshot(self) -> Snapshot:
        assert self.weights is not None
        version, data = self.weights.acquire()
        size = self.memory.plan.policy_size
        weights = np.zeros(size, dtype=np.float32)
        if version:
            weights[:] = np.frombuffer(data, dtype=np.float32)[:size]
        del data
        self.weights.release()
        report, plan = self.report, self.memory.plan
        facts = plan.policy_facts() | {"updates": version, "env_steps": report.env_steps}
        return Snapshot(
            version, report.env_steps, report.updates, report.elapsed(), report.row(),
            Path(plan.run_dir), facts, weights,
        )  # fmt: skip

    def _call(self, callback: Callback, method: str, *words: Any) -> None:
        """One call; what it raises or says becomes the end of the run."""
        name = f"{type(callback).__name__}.{method}"
        try:
            answer = getattr(callback, method)(*words)
            no = isinstance(answer, (bool, np.bool_)) and not answer  # a comparison of NumPy too
            if no and self.end is None:
                self.report.folder.log(f"{name} returned False: the run ends")
                self.end = "callback", None
        except Exception as error:
            for line in traceback.format_exc().splitlines():
                self.report.folder.log(line)
                self.report.board.problem(line)
            if self.end is None or self.end[1] is None:
                self.end = "callback", f"{name} raised {type(error).__name__}: {error}"
