"""What a contestant is, what one reading of it says, and the rows that many readings become."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

NOISY = 0.25  # spread (max - min) / median above which a row is marked


class Unavailable(Exception):
    """A contestant cannot be measured here; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One measurement: a value, facts beside it, and what was wrong with the result.

    stages  stage -> percentiles, microseconds
    """

    value: float
    facts: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """One line of the table.

    kind     acting, training or together
    subject  the environment, or the shape of the networks
    who      fdql, a peer, or "limit: ..."
    unit     of its value
    command  repeats it
    read     takes one reading
    """

    kind: str
    subject: str
    who: str
    unit: str
    command: str
    read: Callable[[], Reading]


@dataclass(kw_only=True, slots=True)
class Row:
    """A contestant's readings. `not_run` says why there are none."""

    kind: str
    subject: str
    who: str
    unit: str
    command: str
    values: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    not_run: str | None = None

    @property
    def median(self) -> float:
        """Of the readings; nan without."""
        return statistics.median(self.values) if self.values else float("nan")

    @property
    def spread(self) -> float:
        """(max - min) / median."""
        return (max(self.values) - min(self.values)) / self.median if self.values else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For the JSON line."""
        row = asdict(self)
        if not self.values:
            return row
        low, high = min(self.values), max(self.values)
        numbers = {"median": self.median, "min": low, "max": high, "noisy": self.spread > NOISY}
        return row | numbers


def take_turns(
    contestants: list[Contestant], repeats: int, note: Callable[[str], None]
) -> list[Row]:
    """Read the contestants of a group in turns, `repeats` times; facts and stages: the last's.

    Whoever cannot be measured is in the rows with the reason. Ours that fails is wrong, not absent.
    """
    rows = [
        Row(kind=c.kind, subject=c.subject, who=c.who, unit=c.unit, command=c.command)
        for c in contestants
    ]
    for turn in range(repeats):
        for contestant, row in zip(contestants, rows, strict=True):
            if row.not_run:
                continue
            try:
                reading = contestant.read()
            except Unavailable as error:
                row.not_run = str(error)
                note(f"{row.kind} {row.subject} {row.who}: not run: {error}")
                continue
            except Exception as error:
                row.wrong.append(f"{type(error).__name__}: {error}")
                row.not_run = "failed"
                note(f"{row.kind} {row.subject} {row.who}: {row.wrong[-1]}")
                continue
            row.values.append(reading.value)
            row.facts, row.stages = reading.facts, reading.stages
            row.wrong += [w for w in reading.wrong if w not in row.wrong]
            told = f"{reading.value:,.6g} {row.unit} ({turn + 1}/{repeats})"
            note(f"{row.kind} {row.subject} {row.who}: {told}")
    return rows
