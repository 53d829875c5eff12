"""Metrics for TensorBoard and for Weights & Biases, where a run asks for them.

Fed by the run folder, so in the supervisor alone; torch is not imported. The names of the values
are those of metrics.jsonl, which are Stable Baselines' where it has one.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fdql.checkpoint import write_bytes
from fdql.config import Config, ConfigError
from fdql.config_file import to_dict
from fdql.extras import require

Row = Mapping[str, Any]

FINISH_SECONDS = 120.0  # W&B may upload at the end; what is left stays in wandb/ for `wandb sync`


def points(row: Row) -> list[tuple[int, dict[str, float]]]:
    """The finite numbers of a row of metrics, each set with its environment step.

    An evaluation stands once, at the step of the policy that was evaluated: the rows after it
    repeat its values.
    """
    numbers = {
        k: float(v)
        for k, v in row.items()
        if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
    }
    evaluated = {k: v for k, v in numbers.items() if k.startswith("eval/")}
    found = [
        (int(row["time/total_timesteps"]), {k: numbers[k] for k in numbers.keys() - evaluated})
    ]
    if "eval/updates" in evaluated:
        found.append((int(evaluated["eval/env_steps"]), evaluated))
    return found


class Tracker(Protocol):
    """Where metrics go beside the run folder's own files; `name`: its setting, and its folder."""

    name: str

    def open(self, folder: Path) -> None:
        """Begin; `folder` is the run's. Raises ConfigError when that does not work."""

    def goes_on(self, step: int) -> None:
        """What was written behind this environment step will be written again; 0: all of it."""

    def row(self, row: Row) -> None:
        """Take a row of metrics."""

    def close(self, exit_code: int) -> None:
        """End."""


class TensorBoard:
    """Event files in <run>/tensorboard, written by the tensorboard package's own record writer."""

    name = "tensorboard"

    def __init__(self) -> None:
        wanted = "tensorboard = True"
        proto = "tensorboard.compat.proto"
        events = require(f"{proto}.event_pb2", "tensorboard", wanted)
        self._event, self._session = events.Event, events.SessionLog
        self._summary = require(f"{proto}.summary_pb2", "tensorboard", wanted).Summary
        writer = require("tensorboard.summary.writer.record_writer", "tensorboard", wanted)
        self._writer: Any = writer.RecordWriter

    def open(self, folder: Path) -> None:
        at = folder / "tensorboard"
        at.mkdir(exist_ok=True)
        # TensorBoard reads a folder's files in the order of their names, so of two within a second
        # the later has the later name.
        name = f"events.out.tfevents.{time.time_ns() / 1e9:.6f}.fdql.{os.getpid()}"
        self._records = self._writer((at / name).open("ab"))
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def goes_on(self, step: int) -> None:
        # Readers drop, of the files before, what has this step or a later one.
        began, first = self._session(status=self._session.START), step + 1 if step else 0
        self._write(self._event(wall_time=time.time(), step=first, session_log=began))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()

    def row(self, row: Row) -> None:
        for step, numbers in points(row):
            values = [
                self._summary.Value(tag=k, simple_value=v) for k, v in sorted(numbers.items())
            ]
            summary = self._summary(value=values)
            self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self, exit_code: int) -> None:
        self._records.close()


class WeightsAndBiases:
    """A run of the project `fdql` at Weights & Biases; WANDB_MODE=offline keeps it on the disk.

    Sends the metrics, the settings and the folder's name, no path above it, no code, nothing of
    git and of the machine but what the client tells of itself: its version, Python's, and
    linux-x86_64. A run that goes on does so there too: its id is kept in wandb/id.txt.
    """

    name = "wandb"

    def __init__(self, config: Config) -> None:
        self._wandb = require("wandb", "wandb", "wandb = True")
        self._config = config

    def open(self, folder: Path) -> None:
        settings = self._wandb.Settings(
            silent=True, console="off", finish_timeout=FINISH_SECONDS, disable_git=True,
            disable_code=True, x_disable_meta=True, x_disable_machine_info=True,
            x_disable_stats=True, x_save_requirements=False, host="", program="",
        )  # fmt: skip
        try:
            self._run = self._wandb.init(
                project="fdql",
                group=self._config.env,
                name=f"{self._config.env} {folder.name}",
                dir=str(folder),
                config={k: v for k, v in to_dict(self._config).items() if k != "run_dir"},
                settings=settings,
                id=_kept_id(folder / "wandb" / "id.txt"),
                resume="allow",
            )
        except Exception as error:  # its many: no account, no network, a file that is not writable
            raise ConfigError(
                f"wandb = True: no run could be begun ({error}); `wandb login` before it, or the "
                "environment variable WANDB_MODE=offline, works"
            ) from None
        self._run.define_metric("*", step_metric="time/total_timesteps")
        self._run.define_metric("eval/*", step_metric="eval/env_steps")

    def goes_on(self, step: int) -> None:
        pass  # what was sent stays

    def row(self, row: Row) -> None:
        for _, numbers in points(row):
            self._run.log(numbers)

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


def _kept_id(file: Path) -> str:
    """The run's name at W&B: what the file says, else a new one, written there."""
    if file.is_file() and not file.is_symlink():
        found = file.read_text(encoding="utf-8", errors="replace").strip()
        if re.fullmatch(r"[0-9a-f]{16}", found):
            return found
    file.parent.mkdir(exist_ok=True)
    made = secrets.token_hex(8)
    write_bytes(file, f"{made}\n".encode())  # takes the place of a link
    return made


class Trackers:
    """Those that a run asks for. What fails while the run goes on is said and left out after."""

    def __init__(self, config: Config) -> None:
        self._open: list[Tracker] = []
        self._wanted: list[Tracker] = []
        if config.tensorboard:
            self._wanted.append(TensorBoard())
        if config.wandb:
            self._wanted.append(WeightsAndBiases(config))

    def open(self, folder: Path) -> None:
        """Begin all. Raises ConfigError."""
        for tracker in self._wanted:
            if (folder / tracker.name).is_symlink():
                raise ConfigError(
                    f"{tracker.name} = True: {folder / tracker.name} is a link, and a run writes "
                    f"into its own folder only; without it, or with --no-{tracker.name}, it goes on"
                )
            tracker.open(folder)
            self._open.append(tracker)

    def goes_on(self, step: int) -> list[str]:
        """The run goes on after `step`, 0 when it begins. Returns what is to be said of those that
        failed.
        """
        return self._each(lambda tracker: tracker.goes_on(step))

    def row(self, row: Row) -> list[str]:
        """Hand a row of metrics on. Returns what is to be said of those that failed."""
        return self._each(lambda tracker: tracker.row(row))

    def _each(self, act: Callable[[Tracker], None]) -> list[str]:
        problems = []
        for tracker in list(self._open):
            try:
                act(tracker)
            except Exception as error:
                self._open.remove(tracker)
                problems.append(f"{type(tracker).__name__} gets no more metrics: {error!r}")
        return problems

    def close(self, exit_code: int) -> list[str]:
        """End all. Returns what is to be said of those that failed."""
        problems = []
        for tracker in self._open:
            try:
                tracker.close(exit_code)
            except Exception as error:
                problems.append(f"{type(tracker).__name__} did not end well: {error!r}")
        self._open.clear()
        return problems
