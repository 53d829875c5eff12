"""States of a model and the steps between them, by the semantics that weak_memory.py tells of.

A state is a tuple of numbers: the messages of each word, the cell of each payload, the view of the
fences, each thread. What a number stands for (views, message lists, cells, threads) is kept once in
a table, and every operation on views is remembered, so a step is a handful of look-ups.

Messages that no thread can read any more are forgotten and the rest renumbered; that makes loops
finite. A view has a place for every word (age of the oldest readable message), for every payload
(1: knows the last write) and for every reader of one (1: knows that reader's last read).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from model.views import Table, Views
from model.weak_memory import ACQUIRE, RELEASE, TORN, Built, Op, Program, Site, Violation

State = tuple[int, ...]
Change = tuple[str, Any]  # of all views: ("less", base) or ("unknown", places), as Views has them
Changes = list[tuple[int, int]]  # of a state: (position, number)
AWAKE = -1
VISIBLE = ("store", "add", "write", "read", "wake")  # steps after which a death makes a difference


class Step(NamedTuple):
    state: State
    actor: int
    what: str
    kill: bool = False


class Machine:
    """The steps of one model, as it is or with one fault planted."""

    def __init__(self, built: Built, planted: Site | None) -> None:
        words, payload, actors = built
        self.actors = actors
        self.programs = [Program(a.start, planted) for a in actors]
        self._words = {name: i for i, name in enumerate(words)}
        self._cells = {name: len(words) + i for i, name in enumerate(payload)}
        self._payload = payload
        places = len(words) + len(payload)
        self._marks: dict[tuple[str, str], int] = {}
        for name, p in payload.items():
            for reader in p.readers:
                self._marks[name, reader] = places
                places += 1
        self._sc = len(words) + len(payload)  # position in a state, as the cells are
        self._views = Views(places)
        self._lists, self._cell, self._thread = Table(), Table(), Table()
        begin: list[int] = [self._lists.number(((v, 0),)) for v in words.values()]
        begin += [self._cell.number((p.value, 0, ())) for p in payload.values()]
        begin.append(0)
        for program in self.programs:
            begin.append(self._thread.number((program.first(1), 0, 0, 0, AWAKE, 1)))
        self.begin: State = tuple(begin)
        for method in ("_map_list", "_map_thread"):
            setattr(self, method, cache(getattr(self, method)))  # of this machine, dies with it

    # ---- what a state is ----------------------------------------------------------------------
    def ended(self, state: State) -> bool:
        """Everyone has left who does not serve for ever."""
        return all(
            actor.serves or self._op(i, state[self._sc + 1 + i]).kind == "end"
            for i, actor in enumerate(self.actors)
        )

    def asleep(self, state: State) -> list[str]:
        """Who sleeps where."""
        names = list(self._words)
        found = []
        for actor, number in zip(self.actors, state[self._sc + 1 :], strict=True):
            where = self._thread.values[number][4]
            if where != AWAKE:
                found.append(f"{actor.name} on {names[where]}")
        return found

    def _op(self, i: int, number: int) -> Op:
        return self.programs[i].ops[self._thread.values[number][0]]

    # ---- views ----------------------------------------------------------------------------------
    def _latest(self, state: State) -> int:
        """The view of one who knows everything."""
        view = [len(self._lists.values[state[w]]) - 1 for w in range(len(self._words))]
        cells = [self._cell.values[state[c]] for c in self._cells.values()]
        view += [latest for _, latest, _ in cells]
        for name, (_, _, reading) in zip(self._cells, cells, strict=True):
            view += [int(r in reading) for r in self._payload[name].readers]
        return self._views.number(tuple(view))

    def _map_view(self, view: int, change: Change) -> int:
        how, what = change
        return self._views.less(view, what) if how == "less" else self._views.unknown(view, what)

    def _map_list(self, number: int, first: int, change: Change) -> int:
        messages = self._lists.values[number][first:]
        return self._lists.number(tuple([(v, self._map_view(w, change)) for v, w in messages]))

    def _map_thread(self, number: int, change: Change) -> int:
        local, cur, acq, rel, where, life = self._thread.values[number]
        cur, acq, rel = (self._map_view(v, change) for v in (cur, acq, rel))
        return self._thread.number((local, cur, acq, rel, where, life))

    def _map(self, state: list[int], change: Change) -> list[int]:
        base = self._views.values[change[1]] if change[0] == "less" else None
        n, sc = len(self._words), self._sc
        return [
            *(self._map_list(state[w], base[w] if base else 0, change) for w in range(n)),
            *state[n:sc],
            self._map_view(state[sc], change),
            *(self._map_thread(t, change) for t in state[sc + 1 :]),
        ]

    def _forget(self, state: list[int]) -> State:
        """The same state without what no live thread can tell apart any more."""
        live = []
        for i, number in enumerate(state[self._sc + 1 :]):
            local, cur, _, _, _, life = self._thread.values[number]
            if self.programs[i].ops[local].kind == "end":
                state[self._sc + 1 + i] = self._thread.number((local, 0, 0, 0, AWAKE, life))
            else:
                live.append(cur)
        base = self._views.least(tuple(live)) if live else self._latest(state)
        if base == 0:
            return tuple(state)
        known = self._views.values[base]
        state = self._map(state, ("less", base))
        for name, at in self._cells.items():
            value, latest, reading = self._cell.values[state[at]]
            reading = tuple(r for r in reading if not known[self._marks[name, r]])
            state[at] = self._cell.number((value, latest - known[at], reading))
        return tuple(state)

    # ---- steps ----------------------------------------------------------------------------------
    def steps(self, state: State) -> list[Step]:
        """Every step that can come next. Raises Violation.

        Payload without races commutes with all that others do, and so do a choice and a look at
        one's own word: where one of these comes next, nobody else need go first.
        """
        moves: list[Step] = []
        for i, number in enumerate(state[self._sc + 1 :]):
            op = self._op(i, number)
            alone = op.kind in ("choose", "nothing", "own") or (
                op.kind in ("read", "write") and not self._payload[op.word].races
            )
            mine = list(self._moves(state, i, op))
            if op.kind in VISIBLE:
                mine += [k for step in mine for k in self._killed(step)]
            if alone:
                return mine
            moves += mine
        return moves or list(self._time_outs(state))

    def _time_outs(self, state: State) -> Iterator[Step]:
        for i, number in enumerate(state[self._sc + 1 :]):
            if self._thread.values[number][4] != AWAKE and self._op(i, number).loose:
                yield self._step(state, i, "time-out", [self._awake(i, number)])

    def _awake(self, i: int, number: int) -> tuple[int, int]:
        """The change that ends a thread's sleep."""
        local, cur, acq, rel, _, life = self._thread.values[number]
        to = self.programs[i].after(local, None)
        return self._sc + 1 + i, self._thread.number((to, cur, acq, rel, AWAKE, life))

    def _moves(self, state: State, i: int, op: Op) -> Iterator[Step]:
        at = self._sc + 1 + i
        local, cur, acq, rel, where, life = self._thread.values[state[at]]
        if op.kind == "end":
            return
        if where != AWAKE:
            return
        for value, what, views, changes in self._effects(state, op, cur, acq, rel):
            sleeps = what.startswith("asleep")
            to = local if sleeps else self.programs[i].after(local, value)
            place = self._words[op.word] if sleeps else AWAKE
            changes.append((at, self._thread.number((to, *views, place, life))))
            yield self._step(state, i, what, changes, unknown=self._unknown(op))

    def _killed(self, step: Step) -> Iterator[Step]:
        """The same step, after which its actor is killed and its successor begins.

        To be killed later, when others have moved or when it has only looked, leads to nothing
        new: the memory is the same, and a successor that knows less can do whatever one can that
        knows more.
        """
        at = self._sc + 1 + step.actor
        local, cur, acq, _, _, life = self._thread.values[step.state[at]]
        program, actor = self.programs[step.actor], self.actors[step.actor]
        if life < actor.lives and program.ops[local].kind != "end":
            known = self._views.join(cur, acq)
            born = (program.first(life + 1), known, known, known, AWAKE, life + 1)
            after = list(step.state)
            after[at] = self._thread.number(born)
            yield Step(self._forget(after), step.actor, f"{step.what}; killed", kill=True)

    def _unknown(self, op: Op) -> tuple[int, ...]:
        """Places of which nobody knows the newest after this operation, but who did it."""
        if op.kind == "read":
            return (self._marks[op.word, op.value],)
        if op.kind == "write":
            readers = self._payload[op.word].readers
            return (self._cells[op.word], *(self._marks[op.word, r] for r in readers))
        return ()

    def _step(
        self, state: State, i: int, what: str, changes: Changes, unknown: tuple[int, ...] = ()
    ) -> Step:
        after = list(state)
        for position, number in changes:
            after[position] = number
        if unknown:
            after = self._map(after, ("unknown", unknown))
            t = self._sc + 1 + i
            local, cur, acq, rel, where, life = self._thread.values[after[t]]
            cur, acq = self._views.at(cur, unknown[0], 1), self._views.at(acq, unknown[0], 1)
            after[t] = self._thread.number((local, cur, acq, rel, where, life))
        return Step(self._forget(after), i, what)

    def _effects(
        self, state: State, op: Op, cur: int, acq: int, rel: int
    ) -> Iterator[tuple[Any, str, tuple[int, int, int], Changes]]:
        """(value returned, description, the thread's views, other changes) of every outcome."""
        kind, word = op.kind, op.word
        if kind in ("load", "own", "store", "add", "wait"):
            w = self._words[word]
            messages = self._lists.values[state[w]]
        if kind == "load":
            for age in range(self._views.values[cur][w], len(messages)):
                value, view = messages[age]
                c, a = (
                    self._views.at(cur, w, age),
                    self._views.join(acq, view),
                )
                if op.order == ACQUIRE:
                    c = self._views.join(c, view)
                yield value, f"load {word} = {value}", (c, a, rel), []
        elif kind == "own":
            if self._views.values[cur][w] != len(messages) - 1:
                raise Violation(f"{word} is written by two")
            yield messages[-1][0], f"own {word} = {messages[-1][0]}", (cur, acq, rel), []
        elif kind in ("store", "add"):
            age = len(messages)
            c, last = self._views.at(cur, w, age), messages[-1]
            value = op.value if kind == "store" else last[0] + op.value
            view = c if op.order == RELEASE else self._views.at(rel, w, age)
            acq = self._views.at(acq, w, age)
            if kind == "add":  # the release sequence goes on
                view, acq = self._views.join(view, last[1]), self._views.join(acq, last[1])
            new = self._lists.number((*messages, (value, view)))
            old = last[0] if kind == "add" else None
            yield old, f"{kind} {word} := {value}", (c, acq, rel), [(w, new)]
        elif kind == "fence":
            c = self._views.join(self._views.join(cur, acq), state[self._sc])
            yield None, "fence", (c, c, c), [(self._sc, c)]
        elif kind in ("wait", "wake"):
            c = self._views.join(self._views.join(cur, acq), state[self._sc])
            if kind == "wake":
                yield None, f"wake {word}", (c, c, rel), [(self._sc, c), *self._woken(state, word)]
                return
            for age in range(self._views.values[c][w], len(messages)):
                d = self._views.at(c, w, age)
                a = self._views.join(d, messages[age][1])
                same = messages[age][0] == op.value
                what = f"asleep on {word}" if same else f"{word} changed"
                yield None, what, (d, a, rel), [(self._sc, c)]
        elif kind == "choose":
            for value in (False, True):
                yield value, f"choose {value}", (cur, acq, rel), []
        elif kind == "nothing":
            yield None, "nothing", (cur, acq, rel), []
        else:
            yield self._access(state, op, cur, acq, rel)

    def _woken(self, state: State, word: str) -> Iterator[tuple[int, int]]:
        for i, number in enumerate(state[self._sc + 1 :]):
            if self._thread.values[number][4] == self._words[word]:
                yield self._awake(i, number)

    def _access(
        self, state: State, op: Op, cur: int, acq: int, rel: int
    ) -> tuple[Any, str, tuple[int, int, int], Changes]:
        at, view = self._cells[op.word], self._views.values[cur]
        value, latest, reading = self._cell.values[state[at]]
        raced = view[at] != latest
        if op.kind == "read":
            if raced and not op.loose:
                raise Violation(f"{op.word} is read while it is written")
            new = self._cell.number((value, latest, tuple(sorted({*reading, op.value}))))
            value = TORN if raced else value
            return value, f"read {op.word} = {value}", (cur, acq, rel), [(at, new)]
        if raced:
            raise Violation(f"{op.word} is written by two")
        if not op.loose and any(not view[self._marks[op.word, r]] for r in reading):
            raise Violation(f"{op.word} is written while it is read")
        new = self._cell.number((op.value, 1, ()))
        return None, f"write {op.word} := {op.value}", (cur, acq, rel), [(at, new)]
