"""SIGKILL at every named point of every protocol; a successor takes over and everything is checked.

The structures alone. kill_engine.py builds what this needs, runs it, and does the same to runs.

For each point and for its 1st, 2nd and 5th passage: a child runs until it kills itself there, its
partner meanwhile goes on, a successor finishes the work. Lost, doubled or torn messages, a refused
successor, a point never reached and a hang (20 s) all fail.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from fdql.shm.ring import FLAG_INCARNATION, RingReader, RingWriter
from fdql.shm.slots import SlotClient, SlotServer
from fdql.shm.weights import WeightsReader, WeightsWriter, clear_pin
from shm_blocks import SCHEMA, SECOND, Block, ring_block, slots_block, weights_block
from shm_children import answer, body, number_of

FOREVER, MORE = 1 << 40, 500
TENTH = SECOND // 10


def run(
    block: Block, role: str, *numbers: int, meanwhile: Callable[[], None], kill: str = ""
) -> int:
    """Exit code of a child, while this process plays its partner."""
    with block.child(role, *numbers, env={**os.environ, "FDQL_KILL_AT": kill}) as child:
        deadline = time.monotonic() + 20
        while child.poll() is None:
            meanwhile()
            if time.monotonic() > deadline:
                child.kill()
                raise TimeoutError(f"{role} {numbers} hangs, or {kill} is never reached")
        return child.returncode


def writer_dies(point: str) -> None:
    block = ring_block(4, 3000, shared=True)
    reader, bell = RingReader(block.memory, SCHEMA), block.bell
    seen: list[tuple[int, int]] = []

    def drain() -> None:
        ticket = bell.arm()
        n = reader.peek()
        if n == 0:
            bell.sleep(ticket, TENTH)
            return
        bell.disarm()
        for k in range(n):
            chunk = reader.chunk(k)
            assert number_of(reader.payload(k)) == chunk.seq - 1 == len(seen)
            seen.append((chunk.incarnation, chunk.flags))
        reader.release(n)

    assert run(block, "write_ring", FOREVER, meanwhile=drain, kill=point) == -9
    committed = len(seen) + reader.peek()
    assert run(block, "write_ring", committed + MORE, meanwhile=drain) == 0
    drain()
    assert len(seen) == committed + MORE
    assert (
        reader.consumed_steps == reader.committed_steps == sum(1 + i % 3 for i in range(len(seen)))
    )
    if seen[committed][0] > 1:  # 1: the dead one never became a writer
        assert seen[committed][1] == FLAG_INCARNATION
    assert len({incarnation for incarnation, _ in seen[committed:]}) == 1


def reader_dies(point: str) -> None:
    block = ring_block(4, 3000, shared=True)
    writer = RingWriter(block.memory, SCHEMA, block.bell, block.control)

    def write() -> None:
        if writer.wait_not_full(TENTH):
            writer.payload(writer.reserve())[:] = body(writer.committed, 3000)
            writer.commit(1, 1, 1)

    assert run(block, "read_ring", FOREVER, meanwhile=write, kill=point) == -9
    assert run(block, "read_ring", writer.committed + MORE, meanwhile=write) == 0


def server_of(block: Block) -> tuple[SlotServer, Callable[[], None]]:
    server = SlotServer(block.memory, block.bell, block.control)
    ids = np.zeros(server.groups * server.workers, np.int32)

    def serve() -> None:
        n = server.collect(ids, len(ids), 100_000, TENTH)
        answer(server, ids[:n])
        server.reply(ids, n, 1)

    return server, serve


def worker_dies(point: str) -> None:
    block = slots_block(1, 2, 2, 500, 300, shared=True)
    _, serve = server_of(block)
    assert run(block, "ask", 0, FOREVER, meanwhile=serve, kill=point) == -9
    assert run(block, "ask", 0, MORE, meanwhile=serve) == 0


def server_dies(point: str) -> None:
    block = slots_block(1, 1, 1, 500, 300, shared=True)
    client = SlotClient(block.memory, 0, block.bell, block.control)
    state = {"number": 0, "waiting": False}

    def ask() -> None:
        if not state["waiting"]:
            client.obs(0)[:500] = body(state["number"], 500)
            client.submit(0)
            state["waiting"] = True
        if client.wait(0, TENTH):
            assert number_of(client.actions(0)[:300]) == state["number"] + 1
            state.update(number=state["number"] + 1, waiting=False)

    assert run(block, "serve", FOREVER, meanwhile=ask, kill=point) == -9
    assert run(block, "serve", MORE, meanwhile=ask) == 0


def weights_writer_dies(point: str) -> None:
    block = weights_block(1, 50_000, shared=True)
    reader = WeightsReader(block.memory, 0)

    def read() -> None:
        version, data = reader.acquire()
        assert version == 0 or number_of(data) == version

    assert run(block, "write_weights", FOREVER, meanwhile=read, kill=point) == -9
    read()
    assert run(block, "write_weights", reader.latest + MORE, meanwhile=read) == 0


def weights_reader_dies(point: str) -> None:
    block = weights_block(1, 50_000, shared=True)
    writer = WeightsWriter(block.memory)

    def publish() -> None:
        writer.publish(body(writer.version + 1, 50_000), writer.version + 1)

    assert run(block, "read_weights", 0, FOREVER, meanwhile=publish, kill=point) == -9
    clear_pin(block.memory, 0)
    assert run(block, "read_weights", 0, writer.version + MORE, meanwhile=publish) == 0


POINTS: dict[Callable[[str], None], list[str]] = {
    writer_dies: [
        "ring.attach.before_incarnation",
        "ring.commit.before_header",
        "ring.commit.before_head",
        "ring.commit.before_steps",
        "ring.commit.before_bell",
        "bell.ring.before_bump",
        "bell.ring.before_wake",
        "bell.arm.armed",
        "bell.sleep.before_wait",
    ],
    reader_dies: [
        "ring.release.before_steps",
        "ring.release.before_tail",
        "ring.release.before_bell",
        "bell.ring.before_bump",
        "bell.ring.before_wake",
        "bell.arm.armed",
        "bell.sleep.before_wait",
    ],
    worker_dies: [
        "slots.submit.before_req",
        "slots.submit.before_bell",
        "slots.await.before_sleep",
        "slots.await.woken",
        "bell.ring.before_bump",
        "bell.ring.before_wake",
    ],
    server_dies: [
        "slots.collect.taken",
        "slots.reply.before_rep",
        "slots.reply.before_wake",
        "bell.arm.armed",
        "bell.sleep.before_wait",
    ],
    weights_writer_dies: [
        "weights.publish.before_copy",
        "weights.publish.before_latest",
        "weights.publish.after_latest",
    ],
    weights_reader_dies: ["weights.acquire.pinned", "weights.release.before_clear"],
}


def main() -> int:
    done = failed = 0
    for death, points in POINTS.items():
        for point in points:
            passages = (1,) if point.startswith("ring.attach") else (1, 2, 5)
            for passage in passages:
                done += 1
                try:
                    death(f"{point}:{passage}")
                except (AssertionError, TimeoutError) as error:
                    failed += 1
                    print(f"{death.__name__} {point}:{passage}: {type(error).__name__} {error}")
    print(f"{done} deaths, {failed} wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
