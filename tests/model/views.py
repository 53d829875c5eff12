"""Numbers for values, and views: what a thread knows of every word, as arithmetic on numbers."""

from __future__ import annotations

from functools import cache
from typing import Any


class Table:
    """Numbers for values, in the order in which they are met."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        """The same for the same value."""
        if value not in self._numbers:
            self._numbers[value] = len(self.values)
            self.values.append(value)
        return self._numbers[value]


class Views(Table):
    """Views of so many places. Every operation is remembered; number 0 is the view of all zeros."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.number((0,) * places)
        for method in ("join", "at", "least", "less", "unknown"):
            setattr(self, method, cache(getattr(self, method)))

    def join(self, a: int, b: int) -> int:
        """What both know together."""
        return self.number(tuple(map(max, self.values[a], self.values[b])))

    def at(self, view: int, place: int, age: int) -> int:
        """The same view, but for one place."""
        v = self.values[view]
        return self.number((*v[:place], age, *v[place + 1 :]))

    def least(self, views: tuple[int, ...]) -> int:
        """What everyone knows."""
        return self.number(tuple(map(min, zip(*(self.values[v] for v in views), strict=True))))

    def less(self, view: int, base: int) -> int:
        """Renumbered: `base` is forgotten."""
        pairs = zip(self.values[view], self.values[base], strict=True)
        return self.number(tuple([a - b if a > b else 0 for a, b in pairs]))

    def unknown(self, view: int, places: tuple[int, ...]) -> int:
        """There is something new at these places."""
        return self.number(
            tuple([0 if p in places else a for p, a in enumerate(self.values[view])])
        )
