"""`fdql resume RUN` and `--resume auto`: which run goes on, with which settings, from which
checkpoint.

The same folder goes on: rows are appended to its metrics (those that were written after the
checkpoint are dropped first), counters and the clock continue, config.toml holds the settings as
they are now.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fdql.callbacks import Callback
from fdql.checkpoint_folder import CheckpointFolder
from fdql.config import Config, ConfigError
from fdql.config_file import load_toml
from fdql.ending import RunResult
from fdql.manifest import Manifest
from fdql.run_folder import is_written, parent_of_runs
from fdql.supervisor import train

# Settings that a run keeps for its life: networks, rows and draws are made for them.
FIXED = ("env", "seed", "run_dir")
FINISHED = ("solved", "no_improvement", "total_timesteps")


def run_config(run_dir: Path) -> Config:
    """The settings that a run has in its config.toml. Raises ConfigError."""
    if not (run_dir / "config.toml").is_file():
        raise ConfigError(
            f"run = {str(run_dir)!r}: there is no config.toml in it, so it is no run's folder; "
            "runs/<env>/<time>-<seed> works"
        )
    return replace(load_toml(run_dir / "config.toml"), run_dir=str(run_dir))


def newest_checkpoint(run_dir: Path, say: Callable[[str], None]) -> tuple[Path, Manifest]:
    """The newest sound checkpoint of a run. Raises ConfigError when there is none."""
    found = CheckpointFolder(run_dir / "checkpoints").newest(say)
    if found is None:
        raise ConfigError(
            f"run = {str(run_dir)!r}: it has no checkpoint to go on from (one is written every "
            "checkpoint_every seconds after the first update); "
            f"fdql train --config {run_dir / 'config.toml'} begins again"
        )
    return found


def with_changes(kept: Config, wanted: Config) -> Config:
    """`wanted`, a changed copy of the run's settings `kept`, as the run will go on.

    A changed number of workers shares the environments anew unless their number is changed too.
    Raises ConfigError for a change of what a run keeps.
    """
    for name in FIXED:
        if getattr(kept, name) != getattr(wanted, name):
            raise ConfigError(
                f"{name} = {getattr(wanted, name)!r}: a run keeps its {name} "
                f"({getattr(kept, name)!r}) when it goes on; fdql train begins a new one"
            )
    if kept.workers != wanted.workers and kept.envs_per_worker == wanted.envs_per_worker:
        wanted = replace(wanted, envs_per_worker=None)
    return wanted


def resume(
    run_dir: Path | str, config: Config | None = None, *, callbacks: Sequence[Callback] = (),
    quiet: bool = False, began: float | None = None,
) -> RunResult:  # fmt: skip
    """Let a run go on from its newest sound checkpoint; a broken one is said.

    config   its settings (run_config) with changes, a larger total_timesteps for example; None:
             as they are
    callbacks, quiet, began: see fdql.train
    Raises ConfigError for everything that cannot work.
    """
    path = Path(run_dir)
    kept = run_config(path)
    config = kept if config is None else with_changes(kept, config)
    if is_written(path):
        raise ConfigError(f"run = {str(path)!r}: a process is still writing it; wait for its end")
    checkpoint, manifest = newest_checkpoint(path, lambda line: print(line, file=sys.stderr))
    steps = manifest.facts.get("env_steps")
    if isinstance(steps, int) and steps >= config.total_timesteps:
        raise ConfigError(
            f"total_timesteps = {config.total_timesteps}: the run has made its {steps} steps; "
            f"--total-timesteps {2 * steps} goes on"
        )
    if _exit_reason(path) == "solved" and kept.stop_at_return == config.stop_at_return:
        raise ConfigError(
            f"run = {str(path)!r} is solved: stop_at_return = {config.stop_at_return!r} was "
            "reached; --stop-at-return never goes on"
        )
    return train(
        config, callbacks=callbacks, quiet=quiet, began=began, checkpoint=checkpoint
    )  # fmt: skip


def unfinished(env: str, seed: int) -> Path | None:
    """The newest run of this environment and seed in `runs` that has a checkpoint, is not finished,
    and that no process writes. None when there is none.
    """
    parent = parent_of_runs(env)
    found = [p for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True):
        if _exit_reason(path) in FINISHED or not CheckpointFolder(path / "checkpoints").names():
            continue
        try:
            kept = run_config(path)
        except ConfigError:
            continue
        if (kept.env, kept.seed) == (env, seed) and not is_written(path):
            return path
    return None


def _exit_reason(run_dir: Path) -> str | None:
    """How the run ended last; None when it did not get to say."""
    try:
        values = json.loads((run_dir / "summary.json").read_text())
        return str(values["exit_reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
