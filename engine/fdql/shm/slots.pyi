"""Observations to the inference server (stage 7) and actions back (stage 8 of 8, `act`).

    worker: write client.obs(g); client.submit(g); client.wait(g, ns); read client.actions(g)
    server: n = server.collect(ids, ...); read server.obs, write server.actions;
            server.reply(ids, n, version)

Rows lie [group][worker][env]; slot id = group * workers + worker holds rows id * envs onwards.
Row strides are obs_bytes rounded up to 64 and action_bytes rounded up to 16.
"""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from fdql.shm.ring import Doorbell

OFFSETS: dict[str, dict[str, tuple[int, int]]]

class SlotError(RuntimeError):
    """Bytes that are no slots, a request before the last reply, a reply nobody asked for."""

def slots_bytes(workers: int, groups: int, envs: int, obs_bytes: int, action_bytes: int) -> int:
    """Bytes for workers x groups slots of `envs` rows each."""

def init_slots(
    buf: Buffer,
    workers: int,
    groups: int,
    envs: int,
    obs_bytes: int,
    action_bytes: int,
    checked: bool = False,
) -> None:
    """Lay out the slots in zeroed, 128-aligned bytes. Once, by the creator.

    checked: requests and replies carry checksums, which the other side verifies.
    """

class _Slots:
    workers: int
    groups: int
    envs: int
    obs_bytes: int
    action_bytes: int
    obs_stride: int
    action_stride: int
    spin_ns: int
    """Look this long before each sleep; 0, the default, where processes outnumber cores."""

class SlotClient(_Slots):
    """One worker's end. A successor may take over from a dead worker at any moment."""

    worker: int
    def __init__(
        self, buf: Buffer, worker: int, bell: Doorbell, control: Buffer | None = None
    ) -> None: ...
    def obs(self, group: int) -> memoryview:
        """This worker's rows of a group: writable bytes, envs x obs_stride."""
    def actions(self, group: int) -> memoryview:
        """This worker's rows of a group: bytes, envs x action_stride; valid once wait() is True."""
    def submit(self, group: int) -> None:
        """Ask for actions for the rows now in obs(group). SlotError before the last reply came."""
    def wait(self, group: int, timeout_ns: int) -> bool:
        """True once the reply to the last submit(group) is there. Without the GIL.

        False at the time-out, a signal or stop. SlotError without a submit(); CorruptError when
        slots are checked and the rows are not those of the reply.
        """
    def request_id(self, group: int) -> int:
        """Number of the last submit(group), unique in the run: slot << 32 | its number, u64."""
    def policy_version(self, group: int) -> int:
        """Version of the weights behind the last reply."""

class SlotServer(_Slots):
    """The server's end. A successor sees from the numbers alone what is unanswered."""

    oldest_ns: int
    """When the oldest request of the last collect() that returned any was submitted, now_ns."""
    def __init__(self, buf: Buffer, bell: Doorbell, control: Buffer | None = None) -> None: ...
    @property
    def obs(self) -> memoryview:
        """All rows: bytes, groups x workers x envs x obs_stride."""
    @property
    def actions(self) -> memoryview:
        """All rows: writable bytes, groups x workers x envs x action_stride."""
    def ready(self) -> int:
        """Slots that wait for a reply now."""
    def collect(self, out: NDArray[np.int32], target: int, dwell_ns: int, timeout_ns: int) -> int:
        """Ids of all ready slots, ascending, to out (groups x workers); returns how many. No GIL.

        Returns when `target` are ready, when the oldest request is older than dwell_ns, at the
        time-out, a signal or stop.
        """
    def request_id(self, slot: int) -> int:
        """The same number for the request that collect() saw in a slot. IndexError."""
    def admit(self, slots: NDArray[np.int32], n: int) -> int:
        """Answer at once those of the first n slots whose request a dead worker made, once its
        successor is there: nobody takes that answer. Returns how many are left, at the front.

        CorruptError when slots are checked and the rows of one are not those of its request.
        """
    def reply(self, slots: NDArray[np.int32], n: int, policy_version: int) -> None:
        """Hand over the action rows of the first n slots; one wake per worker that sleeps.

        SlotError when a slot was not collected since its last reply; then nothing was replied.
        """
