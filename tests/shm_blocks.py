"""Initialised shared structures for tests, and the start of child processes that use them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fdql.shm.layout import (
    KIND_BELL,
    KIND_CONTROL,
    KIND_RING,
    KIND_SLOTS,
    KIND_WEIGHTS,
    layout_hash,
)
from fdql.shm.records import CONTROL_BYTES, Control
from fdql.shm.ring import DOORBELL_BYTES, Doorbell, init_ring, ring_bytes
from fdql.shm.segment import Segment
from fdql.shm.slots import init_slots, slots_bytes
from fdql.shm.weights import init_weights, weights_bytes

SCHEMA = 0x5EED
SECOND = 1_000_000_000
CHILDREN = Path(__file__).parent / "shm_children.py"


class Block:
    """A segment with a control word, a doorbell, and one structure of the test's choice."""

    def __init__(self, kind: int, nbytes: int, *, shared: bool) -> None:
        sections = [(KIND_CONTROL, 0, CONTROL_BYTES), (KIND_BELL, 0, DOORBELL_BYTES)]
        self.segment = Segment.create([*sections, (kind, 0, nbytes)], layout_hash(), shared=shared)
        self.memory = self.segment.section(kind, 0)
        self.control = self.segment.section(KIND_CONTROL, 0)
        self.bell_memory = self.segment.section(KIND_BELL, 0)

    @property
    def bell(self) -> Doorbell:
        return Doorbell(self.bell_memory, self.control)

    def stop(self) -> None:
        control = Control(self.control)
        control.stop = 1
        control.wake([self.bell_memory])

    def child(self, role: str, *arguments: int, env: dict[str, str] | None = None):
        """Start a role of shm_children.py on this segment; its standard output is a pipe."""
        fd = self.segment.fd
        command = [sys.executable, str(CHILDREN), role, str(fd), *map(str, arguments)]
        return subprocess.Popen(command, pass_fds=[fd], stdout=subprocess.PIPE, text=True, env=env)


def ring_block(capacity: int, payload_bytes: int, *, shared: bool = False) -> Block:
    block = Block(KIND_RING, ring_bytes(capacity, payload_bytes), shared=shared)
    init_ring(block.memory, capacity, payload_bytes, SCHEMA)
    return block


def slots_block(
    workers: int, groups: int, envs: int, obs: int, action: int, *, shared: bool = False
) -> Block:
    block = Block(KIND_SLOTS, slots_bytes(workers, groups, envs, obs, action), shared=shared)
    init_slots(block.memory, workers, groups, envs, obs, action)
    return block


def weights_block(readers: int, nbytes: int, *, shared: bool = False) -> Block:
    block = Block(KIND_WEIGHTS, weights_bytes(readers, nbytes), shared=shared)
    init_weights(block.memory, readers, nbytes)
    return block


def wait_until_armed(block: Block) -> None:
    """Until somebody announced sleep on the block's doorbell (byte 4 is `waiting`)."""
    while not block.bell_memory[4]:
        pass
