"""`fdql resume RUN` and `--resume auto`: which run goes on, with which settings, from which
checkpoint.

The same folder goes on: rows are appended to its metrics (those that were written after the
checkpoint are dropped first), counters and the clock continue, config.toml holds the settings as
they are now.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fdql.callbacks import Callback
from fdql.checkpoint_folder import CannotGoOn, CheckpointFolder, Found
from fdql.config import Config, ConfigError
from fdql.config_file import load_toml
from fdql.ending import RunResult
from fdql.manifest import MANIFEST
from fdql.outlet import told
from fdql.proc.resumed import count_of
from fdql.run_folder import is_written, parent_of_runs
from fdql.supervisor import train

# Settings that a run keeps for its life: networks, rows and draws are made for them.
FIXED = ("env", "seed")
FINISHED = ("solved", "no_improvement", "total_timesteps")


class Finished(CannotGoOn):
    """It has done what it was to do."""


class NeverSaved(CannotGoOn):
    """It ended before its first checkpoint."""


def run_config(run_dir: Path | str) -> Config:
    """The settings that a run has in its config.toml. Raises ConfigError.

    One that names no `eval.epsilon` was evaluated greedily and stays so: its scores are compared.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.toml").is_file():
        raise ConfigError(
            f"run = {str(run_dir)!r}: there is no config.toml in it, so it is no run's folder; "
            "runs/<env>/<time>-<seed> works"
        )
    kept = load_toml(run_dir / "config.toml")
    if kept.eval.epsilon is None:
        kept = replace(kept, eval=replace(kept.eval, epsilon=0.0))
    return replace(kept, run_dir=str(run_dir))


def newest_checkpoint(run_dir: Path, say: Callable[[str], None]) -> Found:
    """The newest sound checkpoint of a run. Raises CannotGoOn when there is none."""
    folder = CheckpointFolder(run_dir / "checkpoints")
    anew = f"fdql train --config {run_dir / 'config.toml'} begins again"
    if not folder.names():
        raise NeverSaved(
            f"run = {str(run_dir)!r}: it has no checkpoint to go on from (one is written every "
            f"checkpoint_every seconds after the first update); {anew}"
        )
    found = folder.newest(say)
    if found is None:
        raise CannotGoOn(f"run = {str(run_dir)!r}: all its checkpoints are broken; {anew}")
    return found


def with_changes(kept: Config, wanted: Config) -> Config:
    """`wanted`, a changed copy of the run's settings `kept`, as the run will go on.

    A changed number of workers, one with `serial`, shares the environments anew unless their number
    is changed too. Raises ConfigError for a change of what a run keeps.
    """
    for name in FIXED:
        _same(name, getattr(kept, name), getattr(wanted, name))
    here, there = kept.run_dir or "", wanted.run_dir or ""
    if os.path.realpath(here) != os.path.realpath(there):
        _same("run_dir", here, there)
    wanted = replace(wanted, run_dir=kept.run_dir)
    workers = 1 if wanted.serial else wanted.workers
    old = 1 if kept.serial else kept.workers, kept.envs_per_worker
    if workers == old[0] or wanted.envs_per_worker != old[1] or None in (workers, *old):
        return wanted
    assert old[0] is not None
    assert old[1] is not None
    assert workers is not None
    groups = wanted.engine.groups
    shared = groups * max(1, round(old[0] * old[1] / workers / groups))
    return replace(wanted, envs_per_worker=shared)


def _same(name: str, kept: object, wanted: object) -> None:
    if kept != wanted:
        raise ConfigError(
            f"{name} = {wanted!r}: a run keeps its {name} ({kept!r}) when it goes on; fdql train "
            "begins a new one"
        )


def resume(
    run_dir: Path | str, config: Config | None = None, *, callbacks: Sequence[Callback] = (),
    quiet: bool = False, began: float | None = None,
) -> RunResult:  # fmt: skip
    """Let a run go on from its newest sound checkpoint; a broken one is said.

    config   its settings (fdql.run_config) with changes, a larger total_timesteps for example;
             None: as they are, which does not start code that config.toml alone names
    callbacks, quiet, began: see fdql.train
    Raises ConfigError for everything that cannot work; CannotGoOn where it is the run's fault.
    """
    path = Path(run_dir)
    kept = run_config(path)
    if config is None and ":" in kept.env:
        raise ConfigError(
            f"{path / 'config.toml'}: env = {kept.env!r} is code of that module, which a file "
            f"alone never starts; fdql.resume({str(path)!r}, fdql.run_config({str(path)!r})) does"
        )
    config = kept if config is None else with_changes(kept, config)
    if is_written(path):
        raise CannotGoOn(f"run = {str(path)!r}: a process is still writing it; wait for its end")
    found = newest_checkpoint(path, told)
    _check_unfinished(path, kept, config, count_of(found.manifest, "env_steps"))
    return train(
        config, callbacks=callbacks, quiet=quiet, began=began, checkpoint=found.folder,
        broken=found.broken,
    )  # fmt: skip


def _check_unfinished(path: Path, kept: Config, config: Config, steps: int) -> None:
    """Raises Finished. A run that was killed behind its last step still has an end to make."""
    reason, total = _exit_reason(path), config.total_timesteps
    enough = steps >= total
    if enough and (reason in FINISHED or total != kept.total_timesteps):
        raise Finished(
            f"total_timesteps = {total}: the run has made its {steps} steps; "
            f"--total-timesteps {2 * steps} goes on"
        )
    if reason == "solved" and kept.stop_at_return == config.stop_at_return:
        raise Finished(
            f"run = {str(path)!r} is solved: stop_at_return = {config.stop_at_return!r} was "
            "reached; --stop-at-return never goes on"
        )
    allowed = config.stop_without_improvement
    if reason == "no_improvement" and allowed and allowed == kept.stop_without_improvement:
        raise Finished(
            f"run = {str(path)!r} is finished: {allowed} evaluations improved nothing "
            f"(stop_without_improvement); --stop-without-improvement {2 * allowed} goes on"
        )


def unfinished(env: str, seed: int) -> list[Path]:
    """Runs of this environment and seed in `runs` that have a checkpoint, are not finished, and
    that no process writes; the one with the newest checkpoint first.
    """
    parent = parent_of_runs(env)
    found: list[tuple[float, Path]] = []
    for path in parent.iterdir() if parent.is_dir() else ():
        try:
            folder = path / "checkpoints"
            names = CheckpointFolder(folder).names()
            if not names or _exit_reason(path) in FINISHED:
                continue
            kept = run_config(path)
            manifests = [folder / name / MANIFEST for name in names]
            written = max((m.stat().st_mtime for m in manifests if m.exists()), default=0.0)
        except (ConfigError, OSError):
            continue
        if (kept.env, kept.seed) == (env, seed) and not is_written(path):
            found.append((written, path))
    return [path for _, path in sorted(found, reverse=True)]


def is_stub(run_dir: Path) -> bool:
    """True for a folder that holds no more than a run that was killed before its settings stood."""
    return run_dir.is_dir() and all(
        path.name in ("log.txt", "tensorboard", "wandb") or path.name.startswith(".config.toml.")
        for path in run_dir.iterdir()
    )


def set_aside(run_dir: Path) -> Path:
    """Rename the folder of a run that has nothing to go on from. Returns its new name. Raises
    ConfigError.
    """
    if is_written(run_dir):
        raise ConfigError(f"run = {str(run_dir)!r}: a process is still writing it")
    place, number = Path(os.path.abspath(run_dir)), 1
    while os.path.lexists(to := place.with_name(f"{place.name}-unsaved-{number}")):
        number += 1
    try:
        place.rename(to)
    except OSError as error:
        raise ConfigError(
            f"run_dir = {str(run_dir)!r}: cannot be renamed to {to} ({error.strerror}), and a new "
            "run never overwrites it"
        ) from None
    return to


def _exit_reason(run_dir: Path) -> str | None:
    """How the run ended last; None when it did not get to say."""
    try:
        values = json.loads((run_dir / "summary.json").read_text())
        return str(values["exit_reason"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
