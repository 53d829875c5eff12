"""Stage 2 of 8, `ring`: chunks of transitions from one env worker to the trainer; and the doorbell.

    writer: slot = w.reserve(); fill w.payload(slot); w.commit(n_rows, n_steps, policy_version)
    reader: for k in range(r.peek()): r.chunk(k), r.payload(k) ...; r.release(n)

One writer and one reader per ring, no lock; slots are filled and read in place. A writer killed at
any instruction leaves a chunk whole or absent. Called per chunk, never per transition.
"""

from typing import NamedTuple

from typing_extensions import Buffer

DOORBELL_BYTES: int
FLAG_INCARNATION: int
"""Set by the ring on the first chunk of every writer but the first: its predecessor died, so the
episodes open in this ring's lanes have lost their continuation."""
FLAG_PARTIAL: int
"""For the writer to set: the chunk is shorter than it could be."""
OFFSETS: dict[str, dict[str, tuple[int, int]]]

class RingError(RuntimeError):
    """Two live writers, another schema, bytes that are no ring, or a commit without a free slot."""

class Chunk(NamedTuple):
    """Header of a chunk."""

    seq: int
    """Number of the chunk in its ring, from 1."""
    incarnation: int
    """Of the writer, from 1."""
    flags: int
    n_rows: int
    n_steps: int
    policy_version: int
    t_commit_ns: int

def ring_bytes(capacity: int, payload_bytes: int) -> int:
    """Bytes of a ring of `capacity` slots (a power of two, at least 2) of payload_bytes each."""

def init_ring(
    buf: Buffer, capacity: int, payload_bytes: int, schema_hash: int, checked: bool = False
) -> None:
    """Lay out a ring in zeroed, 128-aligned bytes. Once, by the creator, before anyone attaches.

    checked: every chunk carries a checksum, which the reader verifies.
    """

def clear_writer(buf: Buffer) -> None:
    """Forget the pid of a dead writer: another process may have it by now. After it was reaped."""

class Doorbell:
    """Wakes one sleeper; any number of processes may ring. DOORBELL_BYTES, zeroed, 128-aligned.

    ticket = bell.arm()
    if work_pending():
        bell.disarm()
    else:
        bell.sleep(ticket, timeout_ns)

    Without the second look between arm and sleep a ring could be missed.
    """

    def __init__(self, buf: Buffer, control: Buffer | None = None) -> None: ...
    @property
    def buffer(self) -> memoryview:
        """The bytes, for Control.wake."""
    @property
    def sleeps(self) -> int:
        """How often the sleeper went to sleep."""
    @property
    def wakes(self) -> int:
        """How often a ringer had to wake it (modulo 2**32)."""
    def ring(self) -> None:
        """Wake the sleeper if there is one. Call after making work visible."""
    def arm(self) -> int:
        """Announce sleep; the ticket for sleep()."""
    def sleep(self, ticket: int, timeout_ns: int) -> None:
        """Sleep until rung after arm(), without the GIL. Ends early at a signal or stop."""
    def disarm(self) -> None:
        """Take the announcement back: there was work."""

class RingWriter:
    """The writer's end. Attaching begins a new incarnation; the predecessor is dead and reaped.

    `bell` is rung after each commit; `control` ends waits. Raises RingError for a living
    predecessor, another schema, or bytes that are no ring.
    """

    def __init__(
        self,
        buf: Buffer,
        schema_hash: int,
        bell: Doorbell | None = None,
        control: Buffer | None = None,
    ) -> None: ...
    @property
    def capacity(self) -> int:
        """Slots."""
    @property
    def payload_bytes(self) -> int:
        """Bytes of a slot."""
    @property
    def incarnation(self) -> int:
        """1 for the ring's first writer, one more for each successor."""
    @property
    def committed(self) -> int:
        """Chunks committed by all incarnations."""
    @property
    def committed_steps(self) -> int:
        """Steps committed by all incarnations."""
    def reserve(self) -> int:
        """Index of the slot to fill next; -1 when the ring is full. Repeating changes nothing."""
    def payload(self, slot: int) -> memoryview:
        """Writable bytes of a slot, 64-aligned; always the same memory, so views may be kept."""
    def commit(self, n_rows: int, n_steps: int, policy_version: int, flags: int = 0) -> None:
        """Publish the reserved slot, then ring the doorbell. RingError without a reserve()."""
    def wait_not_full(self, timeout_ns: int) -> bool:
        """True once a slot is free. False at the time-out, a signal or stop. Without the GIL."""

class RingReader:
    """The reader's end. A new reader begins at the first chunk its predecessor did not release."""

    def __init__(self, buf: Buffer, schema_hash: int) -> None: ...
    @property
    def capacity(self) -> int:
        """Slots."""
    @property
    def payload_bytes(self) -> int:
        """Bytes of a slot."""
    @property
    def committed_steps(self) -> int:
        """Steps committed by all incarnations; may lag a commit in progress by one chunk."""
    @property
    def consumed_steps(self) -> int:
        """Steps of all chunks released."""
    def peek(self) -> int:
        """Chunks that can be read now, oldest first."""
    def slot_index(self, k: int) -> int:
        """Slot of the k-th readable chunk, for cached views. IndexError past the last peek()."""
    def payload(self, k: int) -> memoryview:
        """Bytes of the k-th readable chunk; not to be read after its release()."""
    def chunk(self, k: int) -> Chunk:
        """Header of the k-th readable chunk. RingError when the memory was overwritten.

        CorruptError when a checked ring's chunk is not what was committed, or not the next one.
        """
    def release(self, n: int) -> None:
        """Give the n oldest chunks back to the writer. IndexError past the last peek()."""
