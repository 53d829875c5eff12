"""The search of `fdql autotune`: which settings are tried, and when a change has won.

Starts from the defaults and changes one setting at a time, each time in a short real run (a trial,
trial.py). A change is kept only where it wins by more than the machine's own noise. What the
learner computes from its batches is not touched.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fdql.config import Config, ConfigError
from fdql.trial import Measurement

MARGIN = 0.05  # a change that gains less is not worth a setting
WARM_START_S = 6.0  # a first start that takes longer compiles kernels; that is not counted
MOST_LANES = 128  # environments of a run: more change what is learned from
PUBLISH_MOST = 40  # updates between policies: more would make them stale

Change = tuple[str, int]
Setting = tuple[Change, ...]  # sorted; () is the defaults
Trial = Callable[[Config], Measurement]

KEYS = (
    "workers",
    "envs_per_worker",
    "engine.groups",
    "engine.learner_threads",
    "engine.commit_rows",
    "engine.publish_updates",
)
# Which settings are tried first: those that bring steps sooner, or those that leave the trainer
# more of the cores.
STEPS_FIRST = (0, 1, 3, 2, 4, 5)
TRAINER_FIRST = (3, 0, 2, 1, 4, 5)
TRAINER_BUSY = 0.9  # share of its time inside updates


def value_of(config: Config, key: str) -> int:
    """The setting's value in a resolved configuration."""
    group, _, name = key.rpartition(".")
    value = getattr(getattr(config, group) if group else config, name)
    assert isinstance(value, int)
    return value


def changed(config: Config, setting: Setting) -> Config:
    """`config` with the setting's values. Raises ConfigError where they do not go together."""
    top: dict[str, Any] = {key: value for key, value in setting if "." not in key}
    engine = {key.partition(".")[2]: value for key, value in setting if "." in key}
    return replace(config, engine=replace(config.engine, **engine), **top)


def shown(setting: Setting) -> str:
    """For people."""
    return ", ".join(f"{key} = {value}" for key, value in setting) or "defaults"


def with_change(setting: Setting, key: str, value: int) -> Setting:
    """`setting` with one value set or replaced."""
    return tuple(sorted([c for c in setting if c[0] != key] + [(key, value)]))


def moves(config: Config, key: str, cores: int, chunk_rows: int) -> list[int]:
    """Values near the configuration's that can be tried for one setting, the likeliest first.

    chunk_rows  that a chunk of this run holds: fewer for images than engine.chunk_rows
    """
    now = value_of(config, key)
    assert config.workers is not None
    assert config.envs_per_worker is not None
    if key == "workers":
        step = max(1, now // 2)
        return [w for w in (now + step, now - step) if w >= 1]
    if key == "envs_per_worker":
        lanes = config.workers * config.envs_per_worker
        return ([2 * now] if 2 * lanes <= MOST_LANES else []) + ([now // 2] if now >= 2 else [])
    if key == "engine.groups":
        return [g for g in (now // 2, 2 * now) if 1 <= g <= 8]
    if key == "engine.learner_threads":
        return [3 - now] if cores > 1 and config.learner == "compiled" else []
    if key == "engine.commit_rows":
        return [c for c in (min(now, chunk_rows) // 2, 2 * now) if 1 <= c <= chunk_rows]
    return [2 * now] if 2 * now <= PUBLISH_MOST else []


def spread(rates: Sequence[float]) -> float:
    """Relative difference between the fastest and the slowest run."""
    return (max(rates) - min(rates)) / max(rates)


def gain(challenger: Sequence[float], holder: Sequence[float]) -> float:
    """By which share the challenger's runs are faster, in the mean."""
    return statistics.fmean(challenger) / statistics.fmean(holder) - 1


def wins(challenger: Sequence[float], holder: Sequence[float]) -> bool:
    """True when the challenger is faster beyond doubt, each run twice or more and close in time.

    Its slowest run is faster than the holder's fastest, and the means differ by more than MARGIN
    and by more than two runs of the same setting.
    """
    if min(len(challenger), len(holder)) < 2 or min(challenger) <= max(holder):
        return False
    return gain(challenger, holder) > max(MARGIN, spread(challenger), spread(holder))


def open_keys(config: Config, keep: Collection[str] = ()) -> list[str]:
    """The settings that may be changed: those that `config` leaves at their defaults and `keep`
    does not name.
    """
    plain = Config()
    given = list(keep)
    for key in KEYS:
        group, _, name = key.rpartition(".")
        here, there = (config.engine, plain.engine) if group else (config, plain)
        if getattr(here, name) != getattr(there, name):
            given.append(key)
    return [key for key in KEYS if key not in given]


class Search:
    """The trials of one autotune, the best setting so far, and the time that is left.

    config   resolved: every setting of KEYS has a value
    keys     the settings that may be changed
    trial    runs one configuration: timed_run with everything else bound
    note     called with a line for the user
    rows     rows that a chunk holds in a run of a configuration
    """

    def __init__(
        self, config: Config, keys: Sequence[str], seconds: float, trial: Trial,
        note: Callable[[str], None], rows: Callable[[Config], int],
    ) -> None:  # fmt: skip
        self.config, self.keys, self.seconds = config, keys, seconds
        self.trial, self.note, self.rows = trial, note, rows
        self.runs: dict[Setting, list[float]] = {}
        self.measured: dict[Setting, list[Measurement]] = {}
        self.failed: dict[Setting, str] = {}
        self.began = time.monotonic()
        self.longest_s = 0.0  # of a trial so far
        self.best: Setting = ()

    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.began)

    def room(self, trials: int) -> bool:
        """True when so many more trials fit, those that judge the winner in the end included."""
        return self.left() > (trials + (2 if self.best else 0)) * self.longest_s

    def run(self, setting: Setting) -> bool:
        """One trial of a setting. False when the configuration or the run failed."""
        start = time.monotonic()
        try:
            measured = self.trial(changed(self.config, setting))
        except (ConfigError, RuntimeError, MemoryError) as error:
            if not setting:
                raise
            self.failed[setting] = str(error)
            self.note(f"{shown(setting)}: {error}")
            return False
        took = time.monotonic() - start
        if not self.runs and measured.ready_s > WARM_START_S:
            self.began += measured.ready_s
            took -= measured.ready_s - WARM_START_S
        self.longest_s = max(self.longest_s, took) if self.runs else took
        self.runs.setdefault(setting, []).append(measured.updates_per_s)
        self.measured.setdefault(setting, []).append(measured)
        self.note(
            f"{shown(setting)}: {measured.updates_per_s:,.0f} updates/s, "
            f"{measured.steps_per_s:,.0f} steps/s"
        )
        return True

    def defaults(self) -> Measurement:
        """Two trials of the defaults: the holder, and the noise. Raises what they raise."""
        self.run(())
        self.longest_s = 0.0  # the first start warms the disk's caches: no measure for the others
        if self.left() > 0:
            self.run(())
        return self.measured[()][0]

    def noise(self) -> float:
        """Median of the relative differences between two runs of one setting, one after another."""
        pairs = [spread(r[i : i + 2]) for r in self.runs.values() for i in range(len(r) - 1)]
        return statistics.median(pairs) if pairs else 0.0

    def order(self) -> list[str]:
        """The open settings, the likeliest to gain first."""
        busy = self.measured[()][-1].duty > TRAINER_BUSY
        return [KEYS[i] for i in (TRAINER_FIRST if busy else STEPS_FIRST) if KEYS[i] in self.keys]

    def climb(self, cores: int) -> None:
        """Try one change after the other while there is time; keep those that win."""
        for key in self.order():
            going = True
            while going:  # a direction that won is followed
                going = any(self._challenge(s) for s in self._neighbours(key, cores))

    def _neighbours(self, key: str, cores: int) -> Iterator[Setting]:
        config, threads = changed(self.config, self.best), "engine.learner_threads"
        rows = self.rows(config)
        values = moves(config, key, cores, rows)
        settings = [with_change(self.best, key, value) for value in values]
        if key == "workers" and threads in self.keys:
            # Both divide the cores: changes that lose alone may win together.
            for value in moves(config, threads, cores, rows):
                settings += [with_change(s, threads, value) for s in list(settings)]
        for setting in settings:
            if setting not in self.runs and setting not in self.failed:
                yield setting

    def _challenge(self, setting: Setting) -> bool:
        """Run a setting; when it looks better, once more, and the holder after it."""
        if not self.room(1) or not self.run(setting):
            return False
        # The machine's speed drifts: only runs side by side can be compared, so holder, challenger,
        # challenger, holder.
        if gain(self.runs[setting], self.runs[self.best][-1:]) <= MARGIN or not self.room(2):
            return False
        if not (self.run(setting) and self.run(self.best)):
            return False
        if not wins(self.runs[setting], self.runs[self.best][-2:]):
            return False
        self.best = setting
        return True

    def judge(self) -> Setting:
        """The best setting and the defaults in turns once more, twice if there is time: the best
        setting if it wins again, else the defaults.
        """
        for _ in range(2):
            if self.best and self.left() > 2 * self.longest_s:
                self.run(self.best)
                self.run(())
        won = wins(self.runs[self.best][-2:], self.runs[()][-2:])
        return self.best if won else ()
