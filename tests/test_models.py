"""The protocol models hold, find what is planted, and name the same SYNC pairs as ext/.

First the checker itself, on litmus tests whose outcomes the C++ standard tells.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
from model.check_models import (
    FAULTS,
    HARMLESS,
    MODELS,
    Sync,
    find,
    sync_of_models,
    sync_of_source,
)
from model.explorer import Model, Result, explore, plant
from model.weak_memory import (
    ACQUIRE,
    RELAXED,
    RELEASE,
    Actor,
    Payload,
    Thread,
    check,
    fence,
    load,
    read,
    store,
    wait,
    wake,
    write,
)

SUITE = {model.name: model for model in MODELS if not model.long}


# ---- the checker --------------------------------------------------------------------------------
def outcome(words, payload, *threads, lives: int = 1) -> str:
    actors = [Actor(f"thread {i}", lambda life, t=t: t(), lives) for i, t in enumerate(threads)]
    return explore(Model("litmus", lambda: (words, payload, actors)), bound=1_000).verdict


@pytest.mark.parametrize(("left", "right"), list(product([False, True], repeat=2)))
def test_store_buffering(left, right):
    # x = 1; read y beside y = 1; read x: both may read 0 unless both have a fence in between
    def thread(mine: str, other: str, fenced: bool, seen: str) -> Thread:
        yield store(mine, 1)
        if fenced:
            yield fence("")
        yield store(seen, (yield load(other)) + 1, RELEASE)

    def judge() -> Thread:
        a = yield load("a", ACQUIRE)
        b = yield load("b", ACQUIRE)
        check((a, b) != (1, 1), "both read 0")

    verdict = outcome(
        {"x": 0, "y": 0, "a": 0, "b": 0},
        {},
        lambda: thread("x", "y", left, "a"),
        lambda: thread("y", "x", right, "b"),
        judge,
    )
    assert verdict == ("holds" if left and right else "both read 0")


@pytest.mark.parametrize(("publish", "look"), list(product([RELAXED, RELEASE], [RELAXED, ACQUIRE])))
def test_message_passing(publish, look):
    def writer() -> Thread:
        yield write("data", 7)
        yield store("flag", 1, publish)

    def reader() -> Thread:
        if (yield load("flag", look)):
            check((yield read("data", "reader")) == 7, "stale")

    verdict = outcome({"flag": 0}, {"data": Payload(0, ("reader",))}, writer, reader)
    whole = publish == RELEASE and look == ACQUIRE
    assert verdict == ("holds" if whole else "data is read while it is written")


def test_a_word_never_goes_back():
    def writer() -> Thread:
        yield store("x", 1)
        yield store("x", 2)

    def reader() -> Thread:
        first = yield load("x")
        check((yield load("x")) >= first, "a word went back")

    assert outcome({"x": 0}, {}, writer, reader) == "holds"


def test_a_release_of_payload_that_is_still_read_is_a_race():
    # the value that is read is right in every order of steps; only happens-before tells
    def owner() -> Thread:
        while not (yield load("free", ACQUIRE)):
            pass
        yield write("data", 8)

    def reader(order: str) -> Thread:
        check((yield read("data", "reader")) == 7, "stale")
        yield store("free", 1, order)

    def verdict(order: str) -> str:
        data = {"data": Payload(7, ("reader",))}
        return outcome({"free": 0}, data, owner, lambda: reader(order))

    assert verdict(RELEASE) == "holds"
    assert verdict(RELAXED) == "data is written while it is read"


def test_who_sleeps_for_ever_and_who_can_never_end_is_told():
    def sleeper() -> Thread:
        yield wait("x", 0)

    def waker(late: bool) -> Thread:
        if late:
            yield wake("x")
        yield store("x", 1)
        if not late:
            yield wake("x")

    def spinner() -> Thread:
        while (yield load("x")) < 2:
            pass

    assert outcome({"x": 0}, {}, sleeper, lambda: waker(False)) == "holds"
    asleep = "for ever asleep: thread 0 on x"
    assert outcome({"x": 0}, {}, sleeper, lambda: waker(True)) == asleep
    assert outcome({"x": 0}, {}, spinner, lambda: waker(False)) == "can never end"


def test_a_death_comes_between_any_two_stores():
    def writer() -> Thread:
        yield store("x", (yield load("x")) + 1)
        yield store("y", (yield load("y")) + 1)

    def reader() -> Thread:
        check((yield load("x")) < 2, "x was stored twice")

    assert outcome({"x": 0, "y": 0}, {}, writer, reader) == "holds"
    assert outcome({"x": 0, "y": 0}, {}, writer, reader, lives=2) == "x was stored twice"


def test_a_bound_that_is_reached_is_no_proof():
    def counter() -> Thread:
        n = 0
        while True:
            n += 1
            yield store("x", n)

    assert outcome({"x": 0}, {}, counter) == "stopped at 1,000 states"


def test_a_value_that_the_state_does_not_show_is_refused():
    def thread() -> Thread:
        yield store("z", (yield load("x")) + (yield load("y")))

    def writer() -> Thread:
        yield store("x", 1)
        yield store("y", 1)

    with pytest.raises(RuntimeError, match="held in no variable"):
        outcome({"x": 0, "y": 0, "z": 0}, {}, thread, writer)


# ---- the models ---------------------------------------------------------------------------------
@cache
def explored(name: str) -> Result:
    return explore(SUITE[name])


@pytest.mark.parametrize("name", SUITE)
def test_a_protocol_holds(name):
    result = explored(name)
    assert result.holds, "\n".join([result.verdict, *result.trace])


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in HARMLESS])
def test_a_planted_fault_is_found(fault):
    model = next(model for model in MODELS if model.name == FAULTS[fault])
    with plant(fault):
        result = explore(model)
    assert not result.holds
    assert "stopped" not in result.verdict


def test_models_and_source_name_the_same_operations():
    """A SYNC that comes into ext/, goes or moves changes the model of its protocol too."""
    assert sync_of_models({name: explored(name) for name in SUITE}) == sync_of_source()


def test_every_dropped_fence_and_weakened_order_is_found_or_argued_for():
    results = {name: explored(name) for name in SUITE}
    sites = sorted({site for result in results.values() for site in result.sites})
    missed = [
        site
        for site in sites
        if Sync(*site[:3]) not in HARMLESS and find(site, results, list(SUITE.values())) is None
    ]
    assert not missed
    assert {h for h in HARMLESS if isinstance(h, Sync)} <= {Sync(*site[:3]) for site in sites}


def test_there_are_enough_faults():
    found = [fault for fault in FAULTS if fault not in HARMLESS]
    weakened = [sync for sync in sync_of_source() if sync not in HARMLESS]
    assert len(found) >= 20
    assert len(found) + len(weakened) >= 70
