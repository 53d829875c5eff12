"""The folder of a run: config.toml, metrics.jsonl, progress.csv, summary.json, log.txt. Never
overwrites one.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import tomli_w

from fdql.appended import Appended
from fdql.checkpoint import write_bytes, write_json
from fdql.checkpoint_folder import CannotGoOn, set_aside
from fdql.config import Config, ConfigError
from fdql.config_file import to_dict
from fdql.outlet import told
from fdql.past import Past, keep_rows
from fdql.trackers import Trackers

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")  # names of checkpoint.write_bytes
SUMMARY_FORMAT = 2  # 2: stages_us holds times only, `processes` the rest; see docs/adr/0008

# Columns of progress.csv; metrics.jsonl may hold more. Stable Baselines' names where it has one.
COLUMNS = (
    "time/time_elapsed",
    "time/total_timesteps",
    "time/fps",
    "train/n_updates",
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "eval/mean_reward",
    "eval/std_reward",
    "eval/interval_low",
    "eval/interval_high",
    "eval/mean_ep_length",
    "eval/q_bias",
    "train/samples_per_insert",
    "train/critic_loss",
    "train/actor_loss",
    "train/ent_coef",
    "train/entropy",
    "train/q_mean",
    "train/td_error",
    "train/reward_scale",
    "train/clipped_targets",
    "train/data_age",
    "train/priority_spread",
    "train/dead_units",
    "train/threads",
    "replay/size",
    "engine/duty_cycle",
    "engine/policy_lag_p50",
    "engine/policy_lag_p99",
    "engine/restarts",
    "engine/memory_mib",
)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its NaNs and infinities, which are no JSON: an average of the learner before
    the first update.
    """
    return {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}


def run_dir_exists(path: Path | str) -> str:
    """The message for a run folder that is there already."""
    return (
        f"run_dir = {str(path)!r} exists, and a run is never overwritten; {str(path) + '-2'!r} "
        "works, or leave --run-dir out"
    )


def parent_of_runs(env: str) -> Path:
    """Where the runs of an environment are that were given no folder."""
    return Path("runs") / env.replace("/", "-").replace(":", "-")


class _Opened(Protocol):
    def fileno(self) -> int: ...


def _locked(file: _Opened) -> bool:
    """One process at a time writes a run: False when another does. The lock goes with the process,
    however it ends.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


def is_written(run_dir: Path) -> bool:
    """True while a process writes this run."""
    try:
        with (run_dir / "log.txt").open("a") as file:
            return not _locked(file)
    except OSError:
        return False


class RunFolder:
    """Creates the folder; one writer, the supervisor (or serial mode).

    failed  what could not be written since, one sentence; None: everything was
    rows    rows of metrics written so far
    past    of a run that goes on: what its kept rows say
    """

    def __init__(
        self, config: Config, kept: Callable[[int, dict[str, Any]], bool] | None = None,
        broken: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        """`kept`: the run in config.run_dir goes on; says of every row of metrics (index, row)
        whether it is still true. Its files stay as they are until `begin`, which sets aside what of
        its checkpoints is `broken`.
        """
        self._trackers = Trackers(config)  # a missing extra is said before anything is written
        self.rows, self.past = 0, Past()
        self.failed: str | None = None
        self._files: list[Appended] = []
        self._config, self._kept, self._broken = config, kept, broken
        self.path = self._create(config) if kept is None else Path(str(config.run_dir))
        with self._explained():
            self._log = self._appended("log.txt")
        if not _locked(self._log):
            self._close_files()
            raise CannotGoOn(
                f"run_dir = {str(self.path)!r}: a process is still writing it; wait for its end"
            )
        with self._explained():
            self._trackers.open(self.path)
        if kept is None:
            self.begin()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """While nothing runs yet a folder that cannot be written is a wrong one."""
        try:
            yield
        except ConfigError:
            self.give_up()
            raise
        except OSError as error:
            self.give_up()
            works = "a folder on another disk works: --run-dir"
            if self._kept is not None:
                works = "once it can be, the same command goes on"
            raise ConfigError(
                f"run_dir = {str(self.path)!r}: cannot be written ({error.strerror}); {works}"
            ) from None

    def _appended(self, name: str) -> Appended:
        self._files.append(Appended(self.path / name))
        return self._files[-1]

    def begin(self) -> None:
        """Write config.toml and begin the metrics. Of a run that goes on, to be called once nothing
        can be refused any more: its metrics are cut, and how it ended before is true no longer.
        """
        path, kept = self.path, self._kept
        with self._explained():
            if kept is not None:
                for each in self._broken:
                    set_aside(each)
                self.past = keep_rows(path, COLUMNS, kept)
                self.rows = self.past.rows
                (path / "summary.json").unlink(missing_ok=True)
                self._sweep()
            shown = to_dict(self._config)
            # The folder itself is left out so that --config <run>/config.toml works.
            shown.pop("run_dir", None)
            write_bytes(path / "config.toml", tomli_w.dumps(shown).encode())
            self._metrics = self._appended("metrics.jsonl")
            progress = self._appended("progress.csv")
            self._csv = csv.DictWriter(progress, COLUMNS, extrasaction="ignore")
            if kept is None:
                self._csv.writeheader()
        self._left_out(self._trackers.goes_on(self.past.steps))
        if self.past.unreadable:
            self._say([f"{self.past.unreadable} line(s) of metrics.jsonl were no rows: left out"])

    def _sweep(self) -> None:
        """Remove the temporary files that a killed process left."""
        for path in self.path.iterdir():
            if _TEMPORARY.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)

    @staticmethod
    def _create(config: Config) -> Path:
        if config.run_dir is None:
            stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.seed}"
            parent = parent_of_runs(config.env)
            path, n = parent / stem, 1
            while path.exists():  # two runs started in the same second
                n += 1
                path = parent / f"{stem}-{n}"
        else:
            path = Path(config.run_dir)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"run_dir = {str(path)!r}: {path.parent} cannot be created ({error.strerror})"
            ) from None
        try:
            path.mkdir()
        except FileExistsError:
            raise ConfigError(run_dir_exists(path)) from None
        except OSError as error:
            raise ConfigError(
                f"run_dir = {str(path)!r}: cannot be created ({error.strerror})"
            ) from None
        return path

    def metrics(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl (all keys), progress.csv (COLUMNS) and to the trackers.
        Numbers that are not finite are left out.
        """
        row = _finite(row)
        with self._noted():
            self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
            self.rows += 1
            self._csv.writerow(row)
        self._left_out(self._trackers.row(row))

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """A disk that is full costs what was to be written, not the run."""
        try:
            yield
        except OSError as error:
            self.failed = self.failed or (
                f"the run folder {self.path} cannot be written ({error.strerror}); rows, log lines "
                "and files are missing from here on"
            )

    def _left_out(self, problems: list[str]) -> None:
        """Trackers that failed."""
        self._say(problems)
        self.failed = self.failed or next(iter(problems), None)

    def _say(self, problems: list[str]) -> None:
        for problem in problems:
            self.log(problem)
            told(problem)

    def log(self, line: str) -> None:
        """Append a line to log.txt."""
        with self._noted():
            self._log.write(f"{time.strftime('%H:%M:%S')} {line.rstrip()}\n")

    def summary(self, values: dict[str, Any]) -> None:
        """Write summary.json, atomically."""
        with self._noted():
            write_json(self.path / "summary.json", {"format": SUMMARY_FORMAT} | values)

    def close(self, exit_code: int = 0) -> None:
        """Close the trackers, which are told how the run ended, and the files."""
        self._left_out(self._trackers.close(exit_code))
        self._close_files()

    def _close_files(self) -> None:
        while self._files:
            self._files.pop().close()

    def give_up(self) -> None:
        """Nothing was started: a new folder goes, that of a run that was to go on stays."""
        self.discard() if self._kept is None else self.close(1)

    def discard(self) -> None:
        """Remove the folder of a run that took no step, and the parents it was alone in."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in (self.path.parent, self.path.parent.parent):
            if parent.name in ("", "..") or any(parent.iterdir()):
                break
            if parent.parts[:1] == ("runs",):
                parent.rmdir()
