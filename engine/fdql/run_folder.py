"""The folder of a run: config.toml, metrics.jsonl, progress.csv, summary.json, log.txt. Never
overwrites one.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import tomli_w

from fdql.appended import Appended
from fdql.checkpoint import write_bytes, write_json
from fdql.config import Config, ConfigError
from fdql.config_file import to_dict
from fdql.outlet import told
from fdql.trackers import Trackers

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

    failed    what could not be written since, one sentence; None: everything was
    rows      rows of metrics written so far
    last_row  of a run that goes on: its newest row that is kept
    """

    def __init__(self, config: Config, kept: Callable[[int, dict[str, Any]], bool] | None = None):
        """`kept`: the run in config.run_dir goes on; says of every row of metrics (index, row)
        whether it is still true.
        """
        self._trackers = Trackers(config)  # a missing extra is said before anything is written
        self.rows, self.last_row = 0, dict[str, Any]()
        self.failed: str | None = None
        self._files: list[Appended] = []
        self.path = self._create(config) if kept is None else Path(str(config.run_dir))
        try:
            self._open(config, kept)
        except OSError as error:
            self._close_files()
            if kept is None:
                shutil.rmtree(self.path, ignore_errors=True)
            raise ConfigError(
                f"run_dir = {str(self.path)!r}: cannot be written ({error.strerror}); a folder on "
                "another disk works: --run-dir"
            ) from None

    def _appended(self, name: str, *, fresh: bool = False) -> Appended:
        self._files.append(Appended(self.path / name, fresh=fresh))
        return self._files[-1]

    def _open(self, config: Config, kept: Callable[[int, dict[str, Any]], bool] | None) -> None:
        path = self.path
        self._log = self._appended("log.txt")
        if not _locked(self._log):
            self._close_files()
            raise ConfigError(
                f"run_dir = {str(path)!r}: a process is still writing it; wait for its end"
            )
        old = [] if kept is None else self._kept_rows(kept)
        shown = to_dict(config)
        # The folder itself is left out so that --config <run>/config.toml works.
        shown.pop("run_dir", None)
        write_bytes(path / "config.toml", tomli_w.dumps(shown).encode())
        lines = "".join(json.dumps(row) + "\n" for row in old)
        write_bytes(path / "metrics.jsonl", lines.encode())
        self._metrics = self._appended("metrics.jsonl")
        progress = self._appended("progress.csv", fresh=True)
        self._csv = csv.DictWriter(progress, COLUMNS, extrasaction="ignore")
        self._csv.writeheader()
        self._csv.writerows(old)
        self.rows = len(old)
        self.last_row = old[-1] if old else {}
        try:
            self._trackers.open(path)
        except ConfigError:
            self.close() if kept else self.discard()
            raise
        self._say(self._trackers.goes_on(int(self.last_row.get("time/total_timesteps", 0))))

    def _kept_rows(self, kept: Callable[[int, dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl up to the first that is not kept, or that a kill cut short."""
        rows: list[dict[str, Any]] = []
        try:
            for line in (self.path / "metrics.jsonl").read_text().splitlines():
                row = json.loads(line)
                if not kept(len(rows), row):
                    break
                rows.append(row)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return rows

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
        self.rows += 1
        with self._noted():
            self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
            self._csv.writerow(row)
        self._say(self._trackers.row(row))

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
        self._say(self._trackers.close(exit_code))
        self._close_files()

    def _close_files(self) -> None:
        for file in self._files:
            file.close()

    def discard(self) -> None:
        """Remove the folder of a run that took no step, and the parents it was alone in."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in (self.path.parent, self.path.parent.parent):
            if parent.name in ("", "..") or any(parent.iterdir()):
                break
            if parent.parts[:1] == ("runs",):
                parent.rmdir()
