"""Metrics for TensorBoard and for Weights & Biases, where a run asks for them.

Fed by the run folder, so in the supervisor alone; torch is not imported. The names of the values
are those of metrics.jsonl, which are Stable Baselines' where it has one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

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
    """Where metrics go beside the run folder's own files."""

    def open(self, folder: Path) -> None:
        """Begin; `folder` is the run's. Raises ConfigError when that does not work."""

    def row(self, row: Row) -> None:
        """Take a row of metrics."""

    def close(self, exit_code: int) -> None:
        """End."""


class TensorBoard:
    """Event files in <run>/tensorboard, written by the tensorboard package's own record writer."""

    def __init__(self) -> None:
        wanted = "tensorboard = True"
        proto = "tensorboard.compat.proto"
        self._event = require(f"{proto}.event_pb2", "tensorboard", wanted).Event
        self._summary = require(f"{proto}.summary_pb2", "tensorboard", wanted).Summary
        writer = require("tensorboard.summary.writer.record_writer", "tensorboard", wanted)
        self._writer: Any = writer.RecordWriter

    def open(self, folder: Path) -> None:
        at = folder / "tensorboard"
        at.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.fdql.{os.getpid()}"
        self._records = self._writer((at / name).open("ab"))
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))

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

    Sends the metrics and the settings, no code and nothing of git.
    """

    def __init__(self, config: Config) -> None:
        self._wandb = require("wandb", "wandb", "wandb = True")
        self._config = config

    def open(self, folder: Path) -> None:
        settings = self._wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True,
            finish_timeout=FINISH_SECONDS,
        )  # fmt: skip
        try:
            self._run = self._wandb.init(
                project="fdql",
                group=self._config.env,
                name=f"{self._config.env} {folder.name}",
                dir=str(folder),
                config=to_dict(self._config),
                settings=settings,
            )
        except Exception as error:  # its many: no account, no network, a file that is not writable
            raise ConfigError(
                f"wandb = True: no run could be begun ({error}); `wandb login` before it, or the "
                "environment variable WANDB_MODE=offline, works"
            ) from None
        self._run.define_metric("*", step_metric="time/total_timesteps")
        self._run.define_metric("eval/*", step_metric="eval/env_steps")

    def row(self, row: Row) -> None:
        for _, numbers in points(row):
            self._run.log(numbers)

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


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
            tracker.open(folder)
            self._open.append(tracker)

    def row(self, row: Row) -> list[str]:
        """Hand a row of metrics on. Returns what is to be said of those that failed."""
        problems = []
        for tracker in list(self._open):
            try:
                tracker.row(row)
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
