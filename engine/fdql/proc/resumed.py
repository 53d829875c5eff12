"""What the supervisor takes from a checkpoint's manifest for a run that goes on: its counters, and
which rows of metrics still hold. Imports neither torch nor numba.
"""

from __future__ import annotations

from typing import Any

from fdql.checkpoint import CheckpointError
from fdql.config import Config, ConfigError
from fdql.config_file import from_dict
from fdql.env_spec import EnvSpec
from fdql.manifest import Manifest
from fdql.proc.governor import Governor
from fdql.proc.memory import RECORD_TRAINER, RunMemory
from fdql.profile import Counter

_COUNTERS = {
    "updates": Counter.UPDATES,
    "env_steps": Counter.INSERTED,
    "replay": Counter.REPLAY,
    "stale": Counter.STALE,
    "episodes": Counter.EPISODES,
    "dropped": Counter.DROPPED,
}
_LATER = {"dropped": 0}  # facts that checkpoints of earlier versions lack


def count_of(manifest: Manifest, name: str) -> int:
    """A count among the facts. Raises CheckpointError when it is none."""
    value = manifest.facts.get(name, _LATER.get(name))
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise CheckpointError(
            f"{manifest.where}: its {name} is {str(value)[:40]!r}, must be a count"
        )
    return value


def config_of(manifest: Manifest) -> Config:
    """The settings that it was taken with, derived ones included. Raises CheckpointError."""
    try:
        config = from_dict(manifest.facts["config"])
    except (ConfigError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{manifest.where}: its settings cannot be read ({error})") from None
    assert isinstance(config, Config)
    return config


def env_of(manifest: Manifest) -> EnvSpec | None:
    """The environment that it was taken with; None: a version that did not say. Raises
    CheckpointError.
    """
    values = manifest.facts.get("env")
    try:
        return None if values is None else EnvSpec.from_dict(values)
    except ValueError as error:
        raise CheckpointError(
            f"{manifest.where}: its environment cannot be read ({error})"
        ) from None


def base_of(manifest: Manifest, config: Config) -> tuple[int, int]:
    """The governor's base of a run that goes on with `config`: another one where ratio or batch
    size are others, so that these hold from here on. Raises CheckpointError.
    """
    saved, value = config_of(manifest), manifest.facts.get("base", [0, 0])
    counts = isinstance(value, list) and [type(n) for n in value] == [int, int]
    if not counts or not all(0 <= n < 1 << 62 for n in value):
        raise CheckpointError(
            f"{manifest.where}: its base is {str(value)[:40]!r}, must be two counts"
        )
    base = (value[0], value[1])
    same = saved.samples_per_insert == config.samples_per_insert
    if same and saved.sac.batch_size == config.sac.batch_size:
        return base
    steps, updates = count_of(manifest, "env_steps"), updates_of(manifest)
    return Governor(saved, base).base_for(steps, updates)


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
