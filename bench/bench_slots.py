"""One observation of 28 KB to the server, into its batch row, and an action back, in Python.

    pytest bench/bench_slots.py --benchmark-group-by=group -s

Two pinned processes. Beside it in the same run: multiprocessing.Pipe with the same bytes, and the
bare wake-up of a sleeping process, the part of a sleeping exchange that no protocol can save.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fdql.shm.ring import DOORBELL_BYTES, Doorbell
from fdql.shm.segment import Segment
from fdql.shm.slots import SlotClient, SlotServer, init_slots, slots_bytes
from partner import FORK, partner, percentiles

OBS, ACTION, TRIPS, SECOND = 28_224, 4, 4_000, 1_000_000_000


def report(benchmark: Any, ns: np.ndarray) -> None:
    benchmark.extra_info.update(percentiles(ns))
    print(f"\n{benchmark.name}: " + ", ".join(f"{k} {v:,.0f}" for k, v in percentiles(ns).items()))


def timed(exchange: Any, halves: list[np.ndarray]) -> None:
    from time import perf_counter_ns

    ns = np.empty(TRIPS)
    for i in range(TRIPS):
        start = perf_counter_ns()
        exchange(i)
        ns[i] = perf_counter_ns() - start
    halves.append(ns[TRIPS // 10 :])


@pytest.mark.benchmark(group="28 KB there, action back")
@pytest.mark.parametrize("spin_ns", [10 * SECOND, 0], ids=["spinning", "sleeping"])
def test_slots(benchmark, spin_ns):
    segment = Segment.create([(1, 0, slots_bytes(1, 1, 1, OBS, ACTION)), (1, 1, DOORBELL_BYTES)], 0)
    memory, bell = segment.section(1, 0), segment.section(1, 1)
    init_slots(memory, 1, 1, 1, OBS, ACTION)
    obs, all_ns = np.random.default_rng(0).integers(0, 256, OBS, np.uint8), []

    def serve() -> None:
        server = SlotServer(memory, Doorbell(bell))
        server.spin_ns = spin_ns
        row = np.frombuffer(server.obs, np.uint8)[:OBS]
        action = np.frombuffer(server.actions, np.int32)
        batch, ids = np.empty(OBS, np.uint8), np.zeros(1, np.int32)
        for i in range(TRIPS):
            while server.collect(ids, 1, 0, SECOND) == 0:
                pass
            batch[:] = row
            assert batch[0] == i % 256
            action[0] = i
            server.reply(ids, 1, 1)

    def trips() -> None:
        with partner(serve):
            client = SlotClient(memory, 0, Doorbell(bell))
            client.spin_ns = spin_ns
            row = np.frombuffer(client.obs(0), np.uint8)[:OBS]
            action = np.frombuffer(client.actions(0), np.int32)

            def exchange(i: int) -> None:
                obs[0] = i % 256
                row[:] = obs
                client.submit(0)
                while not client.wait(0, SECOND):
                    pass
                assert action[0] == i

            timed(exchange, all_ns)

    benchmark.pedantic(trips, rounds=4)
    report(benchmark, np.concatenate(all_ns))


@pytest.mark.benchmark(group="28 KB there, action back")
def test_pipe(benchmark):
    obs, all_ns = np.random.default_rng(0).integers(0, 256, OBS, np.uint8), []
    here, there = FORK.Pipe()

    def serve() -> None:
        batch = np.empty(OBS, np.uint8)
        for i in range(TRIPS):
            batch[:] = np.frombuffer(there.recv_bytes(), np.uint8)
            assert batch[0] == i % 256
            there.send_bytes(i.to_bytes(4, "little"))

    def trips() -> None:
        with partner(serve):

            def exchange(i: int) -> None:
                obs[0] = i % 256
                here.send_bytes(obs.data)
                assert int.from_bytes(here.recv_bytes(), "little") == i

            timed(exchange, all_ns)

    benchmark.pedantic(trips, rounds=4)
    report(benchmark, np.concatenate(all_ns))


@pytest.mark.benchmark(group="28 KB there, action back")
def test_two_bare_wake_ups(benchmark):
    """A byte through a pipe and one back: both sides asleep, nothing to carry."""
    all_ns: list[np.ndarray] = []
    import os

    (out, into), (out_back, into_back) = os.pipe(), os.pipe()

    def serve() -> None:
        for _ in range(TRIPS):
            os.write(into_back, os.read(out, 1))

    def trips() -> None:
        with partner(serve):

            def exchange(i: int) -> None:
                os.write(into, b"x")
                os.read(out_back, 1)

            timed(exchange, all_ns)

    benchmark.pedantic(trips, rounds=4)
    for fd in (out, into, out_back, into_back):
        os.close(fd)
    report(benchmark, np.concatenate(all_ns))
