"""Child processes of the two-process tests: python shm_children.py ROLE FD [NUMBER ...]."""

from __future__ import annotations

import sys
import zlib

from fdql.shm.layout import (
    KIND_BELL,
    KIND_CONTROL,
    KIND_RING,
    KIND_SLOTS,
    KIND_WEIGHTS,
    layout_hash,
)
from fdql.shm.ring import Doorbell, RingReader, RingWriter
from fdql.shm.segment import Segment
from fdql.shm.slots import SlotClient, SlotServer
from fdql.shm.weights import WeightsReader, WeightsWriter

SCHEMA = 0x5EED
SECOND = 1_000_000_000


def body(number: int, nbytes: int) -> bytes:
    """Bytes that depend on number throughout, behind their CRC32."""
    content = (number.to_bytes(8, "little") * (nbytes // 8 + 1))[: nbytes - 4]
    return zlib.crc32(content).to_bytes(4, "little") + content


def number_of(data: memoryview) -> int:
    """The number that body() was made of; ValueError when the bytes are torn."""
    if zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        raise ValueError("torn message")
    return int.from_bytes(data[4:12], "little")


def write_ring(segment: Segment, bell: Doorbell, chunks: int) -> None:
    """Commit chunks numbered on from what the ring has seen, until it has seen `chunks`."""
    control = segment.section(KIND_CONTROL, 0)
    writer = RingWriter(segment.section(KIND_RING, 0), SCHEMA, bell, control)
    while writer.committed < chunks:
        if writer.reserve() < 0 and not writer.wait_not_full(SECOND):
            continue
        slot, number = writer.reserve(), writer.committed
        writer.payload(slot)[:] = body(number, writer.payload_bytes)
        writer.commit(2, 1 + number % 3, number)


def read_ring(segment: Segment, bell: Doorbell, chunks: int) -> None:
    """Read until chunk number `chunks` - 1; checks number and CRC of each."""
    reader = RingReader(segment.section(KIND_RING, 0), SCHEMA)
    last = -1
    while last < chunks - 1:
        ticket = bell.arm()
        n = reader.peek()
        if n == 0:
            bell.sleep(ticket, SECOND)
            continue
        bell.disarm()
        for k in range(n):
            last = reader.chunk(k).seq - 1
            assert number_of(reader.payload(k)) == last
        reader.release(n)


def sleep_on_bell(segment: Segment, bell: Doorbell, times: int) -> None:
    """Sleep until rung, `times` times."""
    for _ in range(times):
        wakes = bell.wakes
        while bell.wakes == wakes:
            bell.sleep(bell.arm(), 600 * SECOND)


def ask(segment: Segment, bell: Doorbell, worker: int, requests: int) -> None:
    """Requests of one worker in both groups at once; reply must be number + 1 in every row."""
    control = segment.section(KIND_CONTROL, 0)
    client = SlotClient(segment.section(KIND_SLOTS, 0), worker, bell, control)
    obs = [client.obs(g) for g in range(client.groups)]
    actions = [client.actions(g) for g in range(client.groups)]
    for i in range(requests):
        for g in range(client.groups):
            number = (worker << 32) + (i << 1) + g
            for e in range(client.envs):
                at = e * client.obs_stride
                obs[g][at : at + client.obs_bytes] = body(number, client.obs_bytes)
            client.submit(g)
        for g in range(client.groups):
            number = (worker << 32) + (i << 1) + g
            while not client.wait(g, SECOND):
                pass
            for e in range(client.envs):
                at = e * client.action_stride
                data = actions[g][at : at + client.action_bytes]
                assert number_of(data) == number + 1, (number_of(data), number)


def serve(segment: Segment, bell: Doorbell, rounds: int) -> None:
    """Answer `rounds` rounds with the observation's number + 1."""
    import numpy as np

    control = segment.section(KIND_CONTROL, 0)
    server = SlotServer(segment.section(KIND_SLOTS, 0), bell, control)
    ids = np.zeros(server.groups * server.workers, np.int32)
    while rounds:
        n = server.collect(ids, len(ids), 1_000_000, SECOND)
        answer(server, ids[:n])
        server.reply(ids, n, rounds)
        rounds -= 1


def answer(server: SlotServer, ids: object) -> None:
    """Action rows of these slots: the observation's number + 1."""
    obs, actions = server.obs, server.actions
    for slot in ids:  # type: ignore[attr-defined]
        for row in range(slot * server.envs, (slot + 1) * server.envs):
            at, to = row * server.obs_stride, row * server.action_stride
            try:
                number = number_of(obs[at : at + server.obs_bytes])
            except ValueError:
                number = 0  # a dead worker's request, half overwritten by its successor
            actions[to : to + server.action_bytes] = body(number + 1, server.action_bytes)


def write_weights(segment: Segment, bell: Doorbell, versions: int) -> None:
    """Publish on from the latest version to `versions`."""
    writer = WeightsWriter(segment.section(KIND_WEIGHTS, 0))
    while writer.version < versions:
        writer.publish(body(writer.version + 1, writer.nbytes), writer.version + 1)


def read_weights(segment: Segment, bell: Doorbell, reader_number: int, until: int) -> None:
    """Acquire until version `until`; versions never fall, contents fit, pins hold for a while."""
    reader = WeightsReader(segment.section(KIND_WEIGHTS, 0), reader_number)
    last = 0
    while last < until:
        version, data = reader.acquire()
        assert version >= last
        last = version
        if version:
            assert number_of(data) == version
            assert number_of(data) == version
        if version % 2:
            reader.release()


ROLES = {
    f.__name__: f
    for f in (write_ring, read_ring, sleep_on_bell, ask, serve, write_weights, read_weights)
}

if __name__ == "__main__":
    role, fd, *numbers = sys.argv[1:]
    with Segment.attach(int(fd), layout_hash()) as shared:
        doorbell = Doorbell(shared.section(KIND_BELL, 0), shared.section(KIND_CONTROL, 0))
        print("attached", flush=True)
        ROLES[role](shared, doorbell, *map(int, numbers))
        print("done", flush=True)
