"""The memory that the models run on: orders, fences, futex, races.

A thread is a generator that yields operations and is sent what they return, so that a model reads
like the Cython that it stands for. Its local state is where it stands (frames and their variables);
equal local states are one, whatever led there. That is true while variables hold values that can be
hashed, a `for` runs over distinct values, and no expression has a value in hand while it yields
again; a state that was reached twice goes on from both histories, and they are compared.

Semantics: views, as in the promising semantics without promises. A word keeps its messages in the
order in which they were written; every thread has a view, which says of every word how old a
message it may still read. An acquire takes over the view that a release left in the message; a
seq_cst fence exchanges views with all other fences. Payload (`write`, `read`) has no order: an
access that does not happen after the last write, or a write that does not happen after every read,
is a race and a violation, whatever the values are. Every word has one writer or is only added to,
so a message never goes between two others.

Not covered: load buffering (a load that returns what only a later store of its own thread made
possible), a number's return to an old value after 2**32 steps, and time, but for waits that end by
themselves once nobody else can go on (`timed`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

RELAXED, ACQUIRE, RELEASE = "relaxed", "acquire", "release"
TORN = "torn"  # what a read returns that was allowed to race


class Violation(Exception):
    """Something that must never be was reached."""


class Op(NamedTuple):
    """What a thread does next."""

    kind: str  # load own store add fence wait wake read write choose end
    word: str = ""
    value: Any = None  # stored, added, expected, written; or who reads
    order: str = RELAXED
    sync: str = ""  # name of the pair, as in the Cython source
    loose: bool = False  # wait: timed; read and write: may race


Thread = Generator[Op, Any, Any]


class Actor(NamedTuple):
    """One process of a model: `start(life)` is its program; it may be killed until its last life.

    A successor knows what its predecessor knew, for the supervisor has reaped that; no more.
    """

    name: str
    start: Callable[[int], Thread]
    lives: int = 1
    serves: bool = False  # for ever: a model has ended when all others have


class Payload(NamedTuple):
    """Bytes without an order of their own. `races`: some access of them says that it may race."""

    value: Any
    readers: tuple[str, ...]
    races: bool = False


Built = tuple[Mapping[str, Any], Mapping[str, Payload], Sequence[Actor]]  # words with their values


class Site(NamedTuple):
    """One ordered operation of a model: what a fault is planted at."""

    function: str
    sync: str
    order: str
    line: int


def load(word: str, order: str = RELAXED, sync: str = "") -> Op:
    """Any message that is not older than what the thread knows."""
    return Op("load", word, order=order, sync=sync)


def own(word: str) -> Op:
    """A relaxed load of a word that nobody but this thread writes: its newest message."""
    return Op("own", word)


def store(word: str, value: Hashable, order: str = RELAXED, sync: str = "") -> Op:
    return Op("store", word, value, order, sync)


def add(word: str, n: int, sync: str) -> Op:
    """fetch_add, release."""
    return Op("add", word, n, RELEASE, sync)


def fence(sync: str) -> Op:
    return Op("fence", order="seq_cst", sync=sync)


def wait(word: str, expected: Hashable, timed: bool = False) -> Op:
    """Sleep if the word still has this value. `timed`: until nobody else can go on, at the most."""
    return Op("wait", word, expected, loose=timed)


def wake(word: str) -> Op:
    return Op("wake", word)


def write(word: str, value: Hashable, may_race: bool = False) -> Op:
    """Payload. `may_race`: a read that is still going on is no violation."""
    return Op("write", word, value, loose=may_race)


def read(word: str, reader: str, may_race: bool = False) -> Op:
    """Payload, by one of its declared readers. `may_race`: TORN instead of a violation."""
    return Op("read", word, reader, loose=may_race)


def choose() -> Op:
    """False or True, both are explored: a clock, an environment, a scheduler."""
    return Op("choose")


def check(condition: bool, rule: str) -> None:
    """The rule of a model; `rule` says what must hold."""
    if not condition:
        raise Violation(rule)


class Program:
    """All local states of one thread, numbered as they are met; state 0 begins its first life."""

    def __init__(self, start: Callable[[int], Thread], planted: Site | None) -> None:
        self._start, self._planted = start, planted
        self.ops: list[Op] = []
        self.sites: set[Site] = set()
        self._histories: list[tuple[Any, ...]] = []  # life, then everything that was sent
        self._others: dict[int, tuple[Any, ...]] = {}  # another history of the same state
        self._numbers: dict[Hashable, int] = {}
        self._next: list[dict[Any, int]] = []
        self._doubts: list[tuple[int, Any]] = []  # transitions to compare from the other history

    def first(self, life: int) -> int:
        """Local state in which a life begins."""
        return self._reach((life,))

    def after(self, state: int, value: Any) -> int:
        """Local state after the operation of `state` returned `value`; may raise Violation."""
        known = self._next[state]
        if value not in known:
            known[value] = self._reach((*self._histories[state], value))
            self._doubts.append((state, value))
            while self._doubts:
                at, sent = self._doubts.pop()
                other = self._others.get(at)
                if other and self._reach((*other, sent)) != self._next[at][sent]:
                    raise RuntimeError(f"{self.ops[at]}: a value is held in no variable")
        return known[value]

    def _reach(self, history: tuple[Any, ...]) -> int:
        thread = self._start(history[0])
        try:
            op = next(thread)
            for value in history[1:]:
                op = thread.send(value)
            frames = tuple(_frames(thread))
        except StopIteration:
            op, frames = Op("end"), ()
        key = (history[0], op, frames)
        if key not in self._numbers:
            self._numbers[key] = len(self.ops)
            self.ops.append(self._plant(op, frames))
            self._histories.append(history)
            self._next.append({})
        number = self._numbers[key]
        if number not in self._others and self._histories[number] != history:
            self._others[number] = history
            self._doubts += [(number, value) for value in self._next[number]]
        return number

    def _plant(self, op: Op, frames: tuple[Any, ...]) -> Op:
        if not op.sync:
            return op
        function, line = frames[-1][:2]
        site = Site(function, op.sync, op.order, line)
        self.sites.add(site)
        if site != self._planted:
            return op
        return Op("nothing") if op.kind == "fence" else op._replace(order=RELAXED)


def _frames(thread: Any) -> Iterator[tuple[Any, ...]]:
    """(function, line, place, variables) of a generator and of all that it delegates to."""
    while thread is not None:
        frame = thread.gi_frame
        variables = tuple(frame.f_locals.items())
        yield thread.gi_code.co_qualname, frame.f_lineno, frame.f_lasti, variables
        thread = thread.gi_yieldfrom
