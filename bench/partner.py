"""The other process of a two-process benchmark: forked, on a core of its own if there are two."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Any

import numpy as np
import pytest
from fdql.shm.segment import Segment

try:
    import faster_fifo
except ImportError:
    faster_fifo = None

needs_faster_fifo = pytest.mark.skipif(faster_fifo is None, reason="faster-fifo is not installed")
SECOND = 1_000_000_000
FORK = multiprocessing.get_context("fork")


@contextlib.contextmanager
def partner(work: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Run work(*arguments) in a process beside the block; both pinned. It must end by itself."""
    cores = sorted(os.sched_getaffinity(0))

    def pinned() -> None:
        os.sched_setaffinity(0, {cores[-1]})
        work(*arguments)

    child = FORK.Process(target=pinned)
    child.start()
    os.sched_setaffinity(0, {cores[0]})
    try:
        yield
        child.join(60)
        assert child.exitcode == 0, "the partner found a wrong message"
    finally:
        os.sched_setaffinity(0, cores)
        if child.is_alive():
            child.kill()
        child.join()


def percentiles(ns: Any) -> dict[str, float]:
    """p50, p99 and p99.9 of durations in ns, for a benchmark's extra_info."""
    return {f"p{p}_ns": float(np.percentile(ns, p)) for p in (50, 99, 99.9)}


def timed(send: Callable[[], None], receive: Callable[[], None]) -> float:
    """ns from the receiver's readiness until it has everything; it runs in the partner process."""
    out, into = FORK.Pipe(duplex=False)

    def receiving() -> None:
        into.send_bytes(b"ready")
        receive()
        into.send_bytes(b"done")

    with partner(receiving):
        out.recv_bytes()
        start = monotonic_ns()
        send()
        out.recv_bytes()
        return monotonic_ns() - start


def memory(*sizes: int) -> list[memoryview]:
    segment = Segment.create([(1, i, size) for i, size in enumerate(sizes)], 0)
    return [segment.section(1, i) for i in range(len(sizes))]


def report(benchmark: Any, **facts: float) -> None:
    """Keep facts with the benchmark's numbers, and print them."""
    benchmark.extra_info.update(facts)
    print(f"\n{benchmark.name}: " + ", ".join(f"{k} {v:,.4g}" for k, v in facts.items()))


def side_by_side(
    benchmark: Any, ours: Callable[[], float], peers: dict[str, Callable[[], float]], rounds: int
) -> None:
    """Run ours and the peers in turn, so that all meet the same machine; report what each returns.

    The fastest of each, in ns, and the median over the rounds of ours / peer. Two cores of a
    virtual machine may be 120 ns apart in one second and 400 ns in the next.
    """
    taken: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}

    def run_peers() -> None:
        for name, peer in peers.items():
            taken[name].append(peer())

    benchmark.pedantic(lambda: taken["ours"].append(ours()), setup=run_peers, rounds=rounds)
    facts = {f"{name}_ns": min(ns) for name, ns in taken.items()}
    for name in peers:
        ratios = np.divide(taken["ours"], taken[name])
        facts[f"ours/{name}"] = float(np.median(ratios))
    report(benchmark, **facts)
