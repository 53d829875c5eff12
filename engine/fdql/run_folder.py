"""The folder of a run: config.toml, metrics.jsonl, progress.csv, summary.json, log.txt. Never
overwrites one.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import tomli_w

from fdql.checkpoint import write_json
from fdql.config import Config, ConfigError
from fdql.config_file import to_dict
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
    "replay/size",
    "engine/duty_cycle",
    "engine/policy_lag_p50",
    "engine/policy_lag_p99",
    "engine/restarts",
    "engine/memory_mib",
)


def run_dir_exists(path: Path | str) -> str:
    """The message for a run folder that is there already."""
    return (
        f"run_dir = {str(path)!r} exists, and a run is never overwritten; {str(path) + '-2'!r} "
        "works, or leave --run-dir out"
    )


class RunFolder:
    """Creates the folder; one writer, the supervisor (or serial mode)."""

    def __init__(self, config: Config) -> None:
        self._trackers = Trackers(config)  # a missing extra is said before anything is written
        if config.run_dir is None:
            stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.seed}"
            parent = Path("runs") / config.env.replace("/", "-").replace(":", "-")
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
        self.path = path
        shown = to_dict(config)
        shown.pop(
            "run_dir", None
        )  # the folder itself; left out so that --config <run>/config.toml works
        (path / "config.toml").write_text(tomli_w.dumps(shown))
        self._metrics: TextIO = (path / "metrics.jsonl").open("w", encoding="utf-8", buffering=1)
        self._progress: TextIO = (path / "progress.csv").open(
            "w", encoding="utf-8", buffering=1, newline=""
        )
        self._csv = csv.DictWriter(self._progress, COLUMNS, extrasaction="ignore")
        self._csv.writeheader()
        self._log: TextIO = (path / "log.txt").open("w", encoding="utf-8", buffering=1)
        try:
            self._trackers.open(path)
        except ConfigError:
            self.discard()
            raise

    def metrics(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl (all keys), progress.csv (COLUMNS) and to the trackers."""
        self._metrics.write(json.dumps(row) + "\n")
        self._csv.writerow(row)
        self._say(self._trackers.row(row))

    def _say(self, problems: list[str]) -> None:
        for problem in problems:
            self.log(problem)
            print(problem, file=sys.stderr, flush=True)

    def log(self, line: str) -> None:
        """Append a line to log.txt."""
        self._log.write(f"{time.strftime('%H:%M:%S')} {line.rstrip()}\n")

    def summary(self, values: dict[str, Any]) -> None:
        """Write summary.json, atomically."""
        write_json(self.path / "summary.json", {"format": SUMMARY_FORMAT} | values)

    def close(self, exit_code: int = 0) -> None:
        """Close the trackers, which are told how the run ended, and the files."""
        self._say(self._trackers.close(exit_code))
        for file in (self._metrics, self._progress, self._log):
            file.close()

    def discard(self) -> None:
        """Remove the folder of a run that took no step, and the parents it was alone in."""
        import shutil

        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in (self.path.parent, self.path.parent.parent):
            if parent.name in ("", "..") or any(parent.iterdir()):
                break
            if parent.parts[:1] == ("runs",):
                parent.rmdir()
