"""How far a run is, and the memory it takes: what the board shows beside the metrics.

Reads the plan, counters of the records and the sizes of the processes; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from fdql.proc.governor import Governor
from fdql.proc.memory import RECORD_EVALUATOR, RECORD_TRAINER, RunMemory, RunPlan
from fdql.profile import Counter


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that takes a while: `done` of `total`."""

    name: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Progress:
    """returns: mean of every evaluation so far; seconds_left: to the last step, where known."""

    bars: tuple[Bar, ...] = ()
    returns: tuple[float, ...] = ()
    seconds_left: float | None = None


class ProgressMeter:
    """Fed with the evaluations by the report; asked by it for the rest."""

    def __init__(self, plan: RunPlan, memory: RunMemory) -> None:
        config = plan.config
        self.shared = memory.segment.nbytes
        self.trainer, self.evaluator = (
            memory.record(r) for r in (RECORD_TRAINER, RECORD_EVALUATOR)
        )
        self.total = config.total_timesteps
        self.warmup = min(config.explore.warmup_steps, self.total)
        governor = Governor(config, plan.base)
        self.warmup_updates = 0 if governor.free else governor.due(self.warmup)
        self.capacity = config.replay.capacity or 0
        self.episodes = config.eval.episodes or plan.env.eval_episodes
        self.returns: list[float] = []
        self._processes: dict[int, psutil.Process] = {}

    def look(self, steps_per_second: float) -> Progress:
        """The progress as the counters stand. `steps_per_second`: the run's speed of late."""
        get = self.trainer.get
        steps, updates = get(Counter.INSERTED), get(Counter.UPDATES)
        if steps < self.warmup:
            first = Bar("warm-up steps", steps, self.warmup)
        elif updates < self.warmup_updates:
            first = Bar("warm-up updates", updates, self.warmup_updates)
        else:
            first = Bar("steps", min(steps, self.total), self.total)
        left = max(0, self.total - steps) / steps_per_second if steps_per_second > 0 else None
        bars = [
            first,
            Bar("replay", get(Counter.REPLAY), self.capacity),
            Bar("evaluation", self.evaluator.get(Counter.EPISODES), self.episodes),
        ]
        if to_save := get(Counter.TO_SAVE):
            bars.append(Bar("checkpoint", min(get(Counter.SAVED), to_save), to_save))
        return Progress(tuple(bars), tuple(self.returns), left)

    def memory(self, pids: Iterable[int]) -> int:
        """Bytes of this process and of `pids` together: what each has alone, and what they share.

        Files that are mapped, libraries above all, count as shared and are left out.
        """
        wanted = {psutil.Process().pid, *pids}
        total = self.shared
        for pid in wanted:
            try:
                process = self._processes.setdefault(pid, psutil.Process(pid))
                info = process.memory_info()
            except psutil.Error:
                continue  # it has just ended
            total += info.rss - getattr(info, "shared", 0)
        self._processes = {pid: p for pid, p in self._processes.items() if pid in wanted}
        return int(total)
