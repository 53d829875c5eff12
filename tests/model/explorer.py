"""Looks at every state of a model: its rules hold, nobody sleeps for ever, and it can always end.

A model that reaches its bound has not been looked at whole, and that is a failure too.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from model.machine import Machine, State
from model.weak_memory import Built, Site, Violation

BOUND, LONG_BOUND = 400_000, 4_000_000  # states
_planted: set[str] = set()


def planted(fault: str) -> bool:
    """True while this fault is planted: what a model asks where it could be wrong."""
    return fault in _planted


@contextmanager
def plant(fault: str) -> Iterator[None]:
    """Plant a fault that models ask for by name."""
    _planted.add(fault)
    try:
        yield
    finally:
        _planted.discard(fault)


@dataclass(frozen=True)
class Model:
    """One protocol at one size. `build` gives its words, payload and actors."""

    name: str
    build: Callable[[], Built]
    long: bool = False  # only by command


@dataclass
class Result:
    """What an exploration found. `verdict` is "holds", or what is wrong."""

    verdict: str
    states: int
    sites: set[Site]
    trace: list[str] = field(default_factory=list)  # what led to a wrong state

    @property
    def holds(self) -> bool:
        return self.verdict == "holds"


def explore(model: Model, site: Site | None = None, bound: int = 0) -> Result:
    """Breadth first through all states, with a fault at `site` where one is given."""
    machine = Machine(model.build(), site)
    numbers: dict[State, int] = {machine.begin: 0}
    order = [machine.begin]
    came_from = array("q", [-1])
    sources, targets, ends = array("q"), array("q"), array("q")  # steps without kills

    def result(verdict: str, at: int) -> Result:
        sites = {site for program in machine.programs for site in program.sites}
        return Result(verdict, len(order), sites, _trace(machine, order, came_from, at))

    for at, state in enumerate(order):
        try:
            steps = machine.steps(state)
        except Violation as wrong:
            return result(str(wrong), at)
        going_on = False
        for step in steps:
            to = numbers.get(step.state)
            if to is None:
                to = numbers[step.state] = len(order)
                order.append(step.state)
                came_from.append(at)
            if not step.kill:
                going_on = True
                sources.append(at)
                targets.append(to)
        if machine.ended(state):
            ends.append(at)
        elif not going_on:
            return result("for ever asleep: " + ", ".join(machine.asleep(state)), at)
        if len(order) > (bound or (LONG_BOUND if model.long else BOUND)):
            return result(f"stopped at {len(order) - 1:,} states", -1)
    stuck = _cannot_end(len(order), sources, targets, ends)
    if stuck >= 0:
        return result(", ".join(["can never end", *machine.asleep(order[stuck])]), stuck)
    return result("holds", -1)


def _cannot_end(n: int, sources: array[int], targets: array[int], ends: array[int]) -> int:
    """A state from which no end can be reached, or -1."""
    before: list[list[int]] = [[] for _ in range(n)]
    for source, target in zip(sources, targets, strict=True):
        before[target].append(source)
    can = bytearray(n)
    todo = list(ends)
    while todo:
        at = todo.pop()
        if not can[at]:
            can[at] = 1
            todo += [b for b in before[at] if not can[b]]
    return can.find(0)


def _trace(machine: Machine, order: list[State], came_from: array[int], at: int) -> list[str]:
    """The steps from the beginning to a state, one line each."""
    path = []
    while at > 0:
        path.append(at)
        at = came_from[at]
    lines, state = [], order[0]
    for at in reversed(path):
        step = next(s for s in machine.steps(state) if s.state == order[at])
        lines.append(f"{machine.actors[step.actor].name}: {step.what}")
        state = step.state
    return lines
