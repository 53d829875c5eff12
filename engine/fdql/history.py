"""What a run left, read back: its settings, curves, summary, leaderboard, videos.

Read by `fdql plot` and `fdql report`, also while the run goes on. Everything in these files is data
of unknown origin: what is not of the right kind is passed over, nothing is looked up by a name that
a file gives.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.checkpoint import CheckpointError
from fdql.config import ConfigError
from fdql.leaderboard import INDEX, Entry, read

LARGEST = 1 << 24  # bytes of a settings file or a summary
DEPTH = 3  # folders below an argument in which runs are looked for
DEEPEST = 16  # tables and lists within each other
MOST_DOTS = 256  # in a line of TOML: the time to read a key grows with the square of its parts
MOST_BITS = 4096  # of an integer
NOT_COMPARED = ("seed", "run_dir", "trace_seconds", "tensorboard", "wandb")


@dataclass(frozen=True, slots=True)
class Curve:
    """One value of one run over time, in the order it was written; all arrays (n,) float64."""

    seconds: NDArray[np.float64]
    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    def over(self, x: str) -> NDArray[np.float64]:
        """`steps` or `seconds`."""
        return self.seconds if x == "seconds" else self.steps


@dataclass(frozen=True, slots=True)
class History:
    """One run. settings: `sac.discount` -> value as in config.toml; summary: {} while it runs."""

    path: Path
    settings: dict[str, Any]
    summary: dict[str, Any]
    leaderboard: list[Entry]

    @property
    def env(self) -> str:
        """Its environment's name."""
        return str(self.settings.get("env", "?"))

    @property
    def videos(self) -> list[Path]:
        """Its videos, the newest last; no link to a file elsewhere, nothing that is no MP4 or is
        still written.
        """
        folder = self.path / "videos"
        if folder.is_symlink():
            return []
        found = [(p, _film_time(p)) for p in folder.glob("[!.]*.mp4")]
        films = [(time, p) for p, time in found if time is not None]
        return [p for _, p in sorted(films)]

    def curves(self, keys: Iterable[str]) -> tuple[dict[str, Curve], set[str]]:
        """The curves of `keys`, and every key that has numbers.

        An evaluation counts once, at the environment steps of the policy that was evaluated. Where
        a run went back to a checkpoint, what it had made after it is left out.
        """
        rows: dict[str, list[tuple[float, float, float]]] = {key: [] for key in keys}
        known: set[str] = set()
        for row in _rows(self.path / "metrics.jsonl"):
            known |= row.keys()
            at = row.get("time/time_elapsed"), row.get("time/total_timesteps")
            evaluated = "eval/updates" in row
            for key, found in rows.items():
                steps = row.get("eval/env_steps", at[1]) if key.startswith("eval/") else at[1]
                if key not in row or at[0] is None or steps is None:
                    continue
                if evaluated or not key.startswith("eval/"):
                    while found and found[-1][1] > steps:
                        found.pop()
                    found.append((at[0], steps, row[key]))
        return {k: _curve(v) for k, v in rows.items()}, known


def _curve(points: Sequence[tuple[float, float, float]]) -> Curve:
    array = np.array(points, dtype=np.float64).reshape(-1, 3)
    return Curve(array[:, 0], array[:, 1], array[:, 2])


def _rows(file: Path) -> Iterator[dict[str, float]]:
    """The finite numbers of each row; a row that is cut or damaged is passed over."""
    if file.is_symlink():
        return
    try:
        lines = file.open("rb")
    except OSError:
        return
    with lines:
        for line in lines:
            try:
                row = json.loads(line.decode())
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield {k: float(v) for k, v in row.items() if is_number(v)}


def is_number(value: Any) -> bool:
    """A finite number that a float64 holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tables within tables as one: `sac.discount` -> value."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        at = f"{prefix}{key}"
        out |= flat(value, f"{at}.") if isinstance(value, dict) else {at: value}
    return out


def _film_time(file: Path) -> float | None:
    """When it was written; None: it is no MP4 that can be read."""
    if file.is_symlink() or not file.is_file():
        return None
    try:
        with file.open("rb") as film:
            return file.stat().st_mtime if film.read(8)[4:] == b"ftyp" else None
    except OSError:
        return None


def _table(file: Path) -> dict[str, Any]:
    """A JSON or TOML file that holds a table; {} when there is none that can be read. A link is
    none: what it shows goes on a page that is passed on.
    """
    try:
        if file.is_symlink() or not file.is_file() or file.stat().st_size > LARGEST:
            return {}
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".toml" and any(s.count(".") > MOST_DOTS for s in text.splitlines()):
            return {}
        values = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) and _shown(values) else {}


def _shown(values: dict[str, Any]) -> bool:
    """False where text cannot be made of it all: nested too deep, an integer too long for Python to
    print.
    """
    layer: list[Any] = [values]
    for _ in range(DEEPEST):
        inner = [v for table in layer for v in (table.values() if type(table) is dict else table)]
        if any(isinstance(v, int) and v.bit_length() > MOST_BITS for v in inner):
            return False
        layer = [v for v in inner if isinstance(v, dict | list)]
        if not layer:
            return True
    return False


def load_history(path: Path) -> History:
    """Read a run folder, curves aside."""
    best, leaderboard = path / "best", list[Entry]()
    if not best.is_symlink() and not (best / INDEX).is_symlink():
        with suppress(CheckpointError):
            leaderboard = read(best)
    settings = flat(_table(path / "config.toml"))
    return History(path, settings, _table(path / "summary.json"), leaderboard)


def find_runs(arguments: Iterable[str]) -> list[History]:
    """Every run among the folders given and below them, each once, in the order of their names.

    Raises ConfigError for a folder without a run.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        here = Path(argument)
        runs = [here] if (here / "metrics.jsonl").is_file() else []
        for depth in range(1, DEPTH + 1):
            runs += [f.parent for f in here.glob("*/" * depth + "metrics.jsonl")]
        if not runs:
            raise ConfigError(
                f"runs = {argument!r}: there is no run, a folder with metrics.jsonl, there or "
                f"{DEPTH} folders below; runs works where the runs were made"
            )
        found |= {p.resolve(): p for p in sorted(runs)}
    return [load_history(p) for p in found.values()]


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one environment that differ in nothing but the seed. apart: the settings that set it
    apart from the others of the environment.
    """

    env: str
    apart: list[str]
    runs: list[History]

    def label(self, used: int | None = None) -> str:
        """What sets it apart, and its seeds; `used`: a mean has so many of them."""
        n = len(self.runs)
        seeds = f"seed {self.runs[0].settings.get('seed', '?')}" if n == 1 else f"{n} seeds"
        return ", ".join([*self.apart, seeds if used in (None, n) else f"{used} of {seeds}"])


def groups(runs: Sequence[History]) -> list[Group]:
    """Runs that share environment and settings."""
    by_settings: dict[str, list[History]] = {}
    for run in runs:
        by_settings.setdefault(repr(sorted(_compared(run).items())), []).append(run)
    found = list(by_settings.values())
    out = []
    for members in found:
        own = _compared(members[0])
        others = [_compared(g[0]) for g in found if g[0].env == members[0].env]
        keys = [k for k in own if any(o.get(k) != own[k] for o in others)]
        keys += [k for o in others for k in o if k not in own and k not in keys]
        apart = [f"{k} {own[k]}" if k in own else f"{k} unset" for k in dict.fromkeys(keys)]
        out.append(Group(members[0].env, apart, members))
    return out


def _compared(run: History) -> dict[str, Any]:
    return {k: v for k, v in run.settings.items() if k not in NOT_COMPARED}


def unknown_key(key: str, known: set[str]) -> ConfigError:
    """The error for a key of which no run has numbers."""
    near = difflib.get_close_matches(key, sorted(known), n=3)
    hint = " or ".join(near) if near else "eval/mean_reward"
    return ConfigError(f"key = {key!r}: no row of these runs has it; {hint} works")
