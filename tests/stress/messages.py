"""Numbered, checksummed messages through every shared structure, between two real processes.

    python tests/stress/messages.py                       # 10^6
    python tests/stress/messages.py --messages 100000000
    python tests/stress/messages.py --corrupt             # one flipped bit each: every one is found

Rings of 2, 4 and 1024 chunks (1 is refused: a successor writing there would destroy the header that
says how many steps there were), slots of 1, 2 and 4 requests at once, weights for 1, 2 and 4
readers, counters and events of a record. A message that is lost, doubled, out of turn or does not
have its checksum is wrong. A round trip costs as much as many chunks, so slots get a twentieth of
the messages, whose replies count too; events are kept, so there are at most 2^20. Of weights and
counters a reader sees only the newest: it receives fewer than were sent.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fdql.shm import probe_messages as probe
from fdql.shm.layout import (
    KIND_BELL,
    KIND_RECORD,
    KIND_RING,
    KIND_SLOTS,
    KIND_TRACK,
    KIND_WEIGHTS,
    layout_hash,
)
from fdql.shm.records import record_bytes, track_bytes
from fdql.shm.ring import DOORBELL_BYTES, init_ring, ring_bytes
from fdql.shm.segment import Segment
from fdql.shm.slots import init_slots, slots_bytes
from fdql.shm.weights import init_weights, weights_bytes

Tally = tuple[int, int, int | None]
EVENTS = 1 << 20
SNAPSHOT = 4096  # bytes: the writer must not be done before a reader looked
FIRST_COUNTER = 128  # bytes from a record's start


def send(segment: Segment, role: str, *numbers: int) -> Tally | None:
    """The other process: its end of one structure, numbers as the probe wants them."""
    bell = segment.section(KIND_BELL, 0)
    if role == "ring":
        return probe.ring_send(segment.section(KIND_RING, 0), bell, *numbers)
    if role == "slots":
        return probe.slots_send(segment.section(KIND_SLOTS, 0), bell, 0, *numbers)
    if role == "weights":
        return probe.weights_send(segment.section(KIND_WEIGHTS, 0), *numbers)
    if role == "reader":
        return probe.weights_receive(segment.section(KIND_WEIGHTS, 0), *numbers)
    if role == "counters":
        return probe.counters_send(segment.section(KIND_RECORD, 0)[FIRST_COUNTER:], *numbers)
    return probe.track_send(segment.section(KIND_TRACK, 0), *numbers)


def exchange(
    kind: int, nbytes: int, init: Callable[[memoryview], None], others: list[tuple[object, ...]],
    receive: Callable[[memoryview, memoryview], Tally],
) -> Tally:  # fmt: skip
    """Run the other processes' ends and `receive` here; the tallies of all, added up."""
    sections = [(KIND_BELL, 0, DOORBELL_BYTES), (kind, 0, nbytes)]
    with Segment.create(sections, layout_hash(), shared=True) as segment:
        memory, bell = segment.section(kind, 0), segment.section(KIND_BELL, 0)
        init(memory)
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--role", *map(str, (segment.fd, *words))],
                pass_fds=[segment.fd], stdout=subprocess.PIPE, text=True,
            )
            for words in others
        ]  # fmt: skip
        try:
            tallies = [receive(memory, bell)]
            for process in processes:
                out, _ = process.communicate(timeout=600)
                if process.returncode:
                    raise RuntimeError(f"{process.args} ended with {process.returncode}")
                tallies += [tuple(json.loads(out))] if out.strip() != "null" else []
        finally:
            for process in processes:
                process.kill()
                process.wait()
        firsts = [first for _, _, first in tallies if first is not None]
        return sum(t[0] for t in tallies), sum(t[1] for t in tallies), min(firsts, default=None)


def ring(capacity: int, n: int, corrupt: int) -> Tally:
    def init(memory: memoryview) -> None:
        init_ring(memory, capacity, 64, 0, True)

    return exchange(
        KIND_RING, ring_bytes(capacity, 64), init, [("ring", n, corrupt)],
        lambda memory, bell: probe.ring_receive(memory, bell, n),
    )  # fmt: skip


def slots(groups: int, n: int, corrupt: int) -> Tally:
    shape = (1, groups, 2, 40, 16)
    n -= n % groups

    def init(memory: memoryview) -> None:
        init_slots(memory, *shape, True)

    return exchange(
        KIND_SLOTS, slots_bytes(*shape), init, [("slots", n, corrupt)],
        lambda memory, bell: probe.slots_receive(memory, bell, n),
    )  # fmt: skip


def weights(readers: int, n: int, corrupt: int) -> Tally:
    def init(memory: memoryview) -> None:
        init_weights(memory, readers, SNAPSHOT, True)

    others = [("weights", n, corrupt), *(("reader", r, n) for r in range(1, readers))]
    return exchange(
        KIND_WEIGHTS, weights_bytes(readers, SNAPSHOT, True), init, others,
        lambda memory, bell: probe.weights_receive(memory, 0, n),
    )  # fmt: skip


def counters(_: int, n: int, corrupt: int) -> Tally:
    return exchange(
        KIND_RECORD, record_bytes(3, 1), lambda memory: None, [("counters", n, corrupt)],
        lambda memory, bell: probe.counters_receive(memory[FIRST_COUNTER:], n),
    )  # fmt: skip


def events(_: int, n: int, corrupt: int) -> Tally:
    return exchange(
        KIND_TRACK, track_bytes(n), lambda memory: None, [("events", n, corrupt)],
        lambda memory, bell: probe.track_receive(memory, n),
    )  # fmt: skip


def ring_of_one_is_refused() -> bool:
    try:
        ring_bytes(1, 64)
    except ValueError:
        return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--corrupt", action="store_true", help="flip a bit of one message")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        fd, role, *numbers = options.role
        with Segment.attach(int(fd), layout_hash()) as segment:
            print(json.dumps(send(segment, role, *map(int, numbers))))
        return 0
    n = options.messages
    plan = [(ring, c, n) for c in (2, 4, 1024)]
    plan += [(slots, g, n // 20) for g in (1, 2, 4)] + [(weights, r, n) for r in (1, 2, 4)]
    plan += [(counters, 2, n), (events, 0, min(n, EVENTS))]
    failed = 0 if ring_of_one_is_refused() else 1
    for run, size, messages in plan:
        corrupt = messages // 2 if options.corrupt else 0
        began = time.monotonic()
        received, wrong, first = run(size, messages, corrupt)
        named = f"{run.__name__} {size}".removesuffix(" 0")
        print(
            f"{named}: {messages} sent, {received} received, {wrong} wrong"
            + (f", the first is number {first}" if wrong else "")
            + f", {time.monotonic() - began:.1f} s",
            flush=True,
        )
        failed += wrong == 0 if options.corrupt else wrong > 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
