"""What a run that goes on keeps of its metrics: one pass writes the rows that still hold and
remembers what the report goes on with. Called by the run folder, read by the report.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fdql.checkpoint import sync_folder, temporary
from fdql.config import ConfigError

Row = dict[str, Any]


class Past:
    """Fed with the kept rows in order; of a new run it stays as it begins.

    rows        so many
    unreadable  lines that were no rows, left out
    steps       environment steps at the newest
    elapsed     seconds on the run's clock at the newest row
    restarts    of workers
    returns     mean of every evaluation
    unimproved  evaluations since the best one
    evaluation  the newest, as the evaluator sent it
    """

    def __init__(self) -> None:
        self.rows = self.unreadable = self.steps = 0
        self.elapsed, self.restarts = 0.0, 0
        self.returns: list[float] = []
        self.unimproved = 0
        self.evaluation: Row = {}
        self._bests: list[Row] = []  # evaluations that were better than all before

    def take(self, row: Row) -> None:
        """The next row. Raises what a row of another kind raises; then nothing has changed."""
        elapsed = float(row.get("time/time_elapsed", self.elapsed))
        restarts = int(row.get("engine/restarts", self.restarts))
        steps = int(row.get("time/total_timesteps", self.steps))
        if "eval/updates" in row:
            self._evaluated(row, elapsed)
        self.steps, self.elapsed, self.restarts = steps, elapsed, restarts
        self.rows += 1

    def _evaluated(self, row: Row, elapsed: float) -> None:
        low, high = row.get("eval/interval_low"), row.get("eval/interval_high")
        e: Row = {
            "mean": float(row["eval/mean_reward"]),
            "std": float(row["eval/std_reward"]),
            "interval": None if low is None else (low, high),
            "episodes": row.get("eval/episodes"),
            "length": float(row["eval/mean_ep_length"]),
            "q_bias": row.get("eval/q_bias"),
            "updates": int(row["eval/updates"]),
            "env_steps": int(row["eval/env_steps"]),
        }
        best = not self._bests or e["mean"] > self._bests[-1]["mean"]
        self._bests += [e | {"seconds": elapsed}] if best else []
        self.unimproved = 0 if best else self.unimproved + 1
        self.returns.append(e["mean"])
        self.evaluation = e

    def first_at(self, threshold: float | None) -> Row | None:
        """The first evaluation whose mean reached `threshold`, for summary.json; None: none did."""
        for e in self._bests:
            if threshold is not None and e["mean"] >= threshold:
                found = {key: e[key] for key in ("seconds", "env_steps", "updates")}
                return found | {"return": e["mean"]}
        return None


def keep_rows(
    folder: Path, columns: Sequence[str], kept: Callable[[int, Row], bool]
) -> Past:  # fmt: skip
    """Cut metrics.jsonl in `folder` at the first row that is not `kept` (index, row), and write
    progress.csv anew from what stays; one row at a time is in memory.

    Raises ConfigError when metrics.jsonl is there and cannot be read, and OSError when the disk
    does not take the new one; then the old one stays.
    """
    past = Past()
    with _replacing(folder / "progress.csv") as progress:
        text = io.TextIOWrapper(progress, "utf-8", "replace", newline="", write_through=True)
        table = csv.DictWriter(text, columns, extrasaction="ignore")
        table.writeheader()
        with _replacing(folder / "metrics.jsonl") as metrics:
            for line in _kept_lines(folder / "metrics.jsonl", kept, past, table):
                metrics.write(line)
        text.detach()
    return past


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once everything is in it and on the disk."""
    work = temporary(path)
    try:
        with work.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _kept_lines(
    path: Path, kept: Callable[[int, Row], bool], past: Past, table: csv.DictWriter[str]
) -> Iterator[bytes]:
    for index, line in enumerate(_lines(path)):
        try:
            row = json.loads(line.decode())  # of bytes it would guess other encodings
            holds = kept(index, row)
            if holds:
                past.take(row)
        except (
            ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
        ):  # fmt: skip
            past.unreadable += line.endswith(b"\n")  # what a kill cut short was never a row
            continue
        if not holds:
            return
        table.writerow(row)
        yield line if line.endswith(b"\n") else line + b"\n"


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}), and the run goes on in it; a copy of the "
            "folder on a sound disk works, or without this file, which gives its rows up"
        ) from None
