"""What the supervisor takes from a checkpoint's manifest for a run that goes on: its counters, and
which rows of metrics still hold. Imports neither torch nor numba.
"""

from __future__ import annotations

from typing import Any

from fdql.checkpoint import CheckpointError
from fdql.manifest import Manifest
from fdql.proc.memory import RECORD_TRAINER, RunMemory
from fdql.profile import Counter

_COUNTERS = {
    "updates": Counter.UPDATES,
    "env_steps": Counter.INSERTED,
    "replay": Counter.REPLAY,
    "stale": Counter.STALE,
    "episodes": Counter.EPISODES,
}


def count_of(manifest: Manifest, name: str) -> int:
    """A count among the facts. Raises CheckpointError when it is none."""
    value = manifest.facts.get(name)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise CheckpointError(f"checkpoint: its {name} is {value!r}, must be a count")
    return value


def updates_of(manifest: Manifest) -> int:
    """Updates made when it was taken."""
    return count_of(manifest, "updates")


def begin_counters(memory: RunMemory, manifest: Manifest) -> None:
    """Set the counters that go on, before the processes that own them are started: governor and
    report then begin where the run was. What was on its way to the replay is not counted.
    """
    counters = {counter: count_of(manifest, name) for name, counter in _COUNTERS.items()}
    worker = memory.worker_record(0)
    worker.set(Counter.BEFORE, counters[Counter.INSERTED])
    worker.set(Counter.STEPS, counters[Counter.INSERTED])
    worker.set(Counter.EPISODES, counters.pop(Counter.EPISODES))
    for counter, value in counters.items():
        memory.record(RECORD_TRAINER).set(counter, value)


def keeps_row(manifest: Manifest, index: int, row: dict[str, Any]) -> bool:
    """True for a row of metrics that was written before the checkpoint: the run will not write it
    again. Serial mode counts its rows, the asynchronous mode goes by the steps.
    """
    lockstep = manifest.facts.get("lockstep")
    if isinstance(lockstep, dict):
        return index < int(lockstep["report"]["rows"])
    return int(row["time/total_timesteps"]) <= count_of(manifest, "env_steps")
