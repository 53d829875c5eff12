"""Stage 2 of 8, `ring`: chunks of transitions from one env worker to the trainer; and the doorbell.

One ring per worker, so each ring has one writer and one reader and needs no lock; one doorbell
wakes the reader of all of them. Slots are filled and read in place. Called once per chunk, never
per transition. The protocol and its memory orders stand in spsc.pxd and doorbell.pxd.
"""

import os
import sys
from collections import namedtuple

from atomics cimport load_relaxed, offsets_of, store_relaxed
from doorbell cimport (Bell, StopWord, bell_arm, bell_disarm, bell_fields, bell_ring, bell_sleep,
                       deadline_after, stopped)
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from spsc cimport (FIRST_OF_INCARNATION, ReaderEnd, RingHeader, SlotHeader, WriterEnd,
                   chunk_crc, reader_attach, reader_peek, reader_release, ring_fields, ring_magic,
                   slot_at, writer_attach, writer_commit, writer_reserve)
from views cimport address_of, bytes_of, round_up

from fdql.shm.audit import CorruptError

OFFSETS = {**offsets_of(ring_fields, 24), **offsets_of(bell_fields, 3)}
DOORBELL_BYTES = sizeof(Bell)
FLAG_INCARNATION = FIRST_OF_INCARNATION
FLAG_PARTIAL = 2

Chunk = namedtuple("Chunk", "seq incarnation flags n_rows n_steps policy_version t_commit_ns")


class RingError(RuntimeError):
    """Two writers, another schema, bytes that are no ring, or a commit without a free slot."""


cdef size_t _stride(size_t payload_bytes) except 0:
    cdef size_t nbytes = sizeof(SlotHeader) + payload_bytes
    return round_up(nbytes, 4096 if nbytes > 32768 else 128)


def ring_bytes(capacity, payload_bytes):
    """Bytes of a ring of `capacity` slots (a power of two, at least 2) of payload_bytes each."""
    if not 2 <= capacity <= 1 << 31 or capacity & (capacity - 1):
        raise ValueError(f"ring capacity = {capacity}: not a power of two of at least 2; 16 works")
    if payload_bytes < 1:
        raise ValueError(f"payload_bytes = {payload_bytes}: must be at least 1")
    return sizeof(RingHeader) + capacity * _stride(payload_bytes)


def init_ring(buf, capacity, payload_bytes, schema_hash, checked=False):
    """Lay out a ring in zeroed bytes. Once, by the creator, before anyone attaches.

    checked: every chunk carries a checksum, which the reader verifies.
    """
    view = bytes_of(buf, "ring")
    cdef RingHeader* ring = <RingHeader*>address_of(
        view, ring_bytes(capacity, payload_bytes), "ring")
    ring.capacity, ring.payload_bytes = capacity, payload_bytes
    ring.slot_header, ring.slots_offset = sizeof(SlotHeader), sizeof(RingHeader)
    ring.slot_stride, ring.schema_hash = _stride(payload_bytes), schema_hash
    ring.checked = checked
    ring.magic = ring_magic


cdef RingHeader* _open(object view, uint64_t schema_hash) except NULL:
    cdef RingHeader* ring = <RingHeader*>address_of(view, sizeof(RingHeader), "ring")
    if ring.magic != ring_magic:
        raise RingError("not a ring: init_ring has not run on these bytes")
    if ring.schema_hash != schema_hash:
        raise RingError(f"the ring holds chunks of schema {ring.schema_hash:#x}, this process "
                        f"expects {schema_hash:#x}; both must be built from one configuration")
    address_of(view, ring_bytes(ring.capacity, ring.payload_bytes), "ring")
    return ring


cdef object _payload(object view, RingHeader* ring, uint64_t slot):
    cdef uint64_t at = ring.slots_offset + slot * ring.slot_stride + sizeof(SlotHeader)
    return view[at:at + ring.payload_bytes]


cdef class Doorbell:
    """Wakes one sleeper; any number of processes may ring.

    The sleeper:  ticket = bell.arm()
                  if work_pending(): bell.disarm()
                  else: bell.sleep(ticket, timeout_ns)
    """

    cdef readonly object buffer
    cdef object control_view
    cdef Bell* bell
    cdef StopWord* control

    def __init__(self, buf, control=None):
        self.buffer = bytes_of(buf, "doorbell")
        self.bell = <Bell*>address_of(self.buffer, sizeof(Bell), "doorbell")
        if control is not None:
            self.control_view = bytes_of(control, "control")
            self.control = <StopWord*>address_of(self.control_view, sizeof(StopWord), "control")

    @property
    def sleeps(self):
        return load_relaxed(&self.bell.sleeps)   # monitoring only

    @property
    def wakes(self):
        return load_relaxed(&self.bell.seq)      # monitoring only

    def ring(self):
        """Wake the sleeper if one waits. Call after making work visible."""
        bell_ring(self.bell)

    def arm(self):
        """Announce sleep; the ticket for sleep(). Look for work once more before sleeping."""
        return bell_arm(self.bell)

    def sleep(self, uint32_t ticket, uint64_t timeout_ns):
        """Sleep until rung after arm(). Also ends at the time-out, a signal, or stop."""
        with nogil:
            bell_sleep(self.bell, ticket, deadline_after(timeout_ns), self.control)

    def disarm(self):
        """Take the announcement back: there was work."""
        bell_disarm(self.bell)


def clear_writer(buf):
    """Forget the pid of a dead writer: another process may have it by now. After it was reaped."""
    view = bytes_of(buf, "ring")
    cdef RingHeader* ring = <RingHeader*>address_of(view, sizeof(RingHeader), "ring")
    if ring.magic != ring_magic:
        raise RingError("not a ring: init_ring has not run on these bytes")
    store_relaxed(&ring.writer_pid, <uint32_t>0)  # read only by a later writer


cdef bint _alive(int pid) except -1:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


cdef class RingWriter:
    """The writer's end. Attaching begins a new incarnation; the predecessor is dead and reaped."""

    cdef object view, bell_view, control_view
    cdef list payloads
    cdef WriterEnd end
    cdef StopWord* control
    cdef bint reserved
    cdef readonly uint32_t capacity
    cdef readonly uint64_t payload_bytes

    def __init__(self, buf, uint64_t schema_hash, bell=None, control=None):
        self.view = bytes_of(buf, "ring")
        cdef RingHeader* ring = _open(self.view, schema_hash)
        cdef Bell* address = NULL
        if bell is not None:
            self.bell_view = bell.buffer
            address = <Bell*>address_of(self.bell_view, sizeof(Bell), "doorbell")
        if control is not None:
            self.control_view = bytes_of(control, "control")
            self.control = <StopWord*>address_of(self.control_view, sizeof(StopWord), "control")
        cdef uint32_t former = load_relaxed(&ring.writer_pid)  # dead, or the check below refuses
        if former and former != os.getpid() and sys.platform == "linux" and _alive(former):
            raise RingError(f"process {former} writes this ring and is alive or not reaped yet")
        store_relaxed(&ring.writer_pid, <uint32_t>os.getpid())  # read only by a later writer
        writer_attach(&self.end, ring, address)
        self.capacity, self.payload_bytes = ring.capacity, ring.payload_bytes
        self.payloads = [_payload(self.view, ring, i) for i in range(ring.capacity)]

    @property
    def incarnation(self):
        """1 for the ring's first writer, one more for each successor."""
        return self.end.incarnation

    @property
    def committed(self):
        """Chunks committed by all incarnations."""
        return self.end.head

    @property
    def committed_steps(self):
        """Steps committed by all incarnations."""
        return self.end.steps

    def reserve(self):
        """Index of the slot to fill next; -1 when the ring is full."""
        if writer_reserve(&self.end) == NULL:
            return -1
        self.reserved = True
        return self.end.head & (self.capacity - 1)

    def payload(self, size_t slot):
        """Writable bytes of a slot; always the same memory, so views may be kept."""
        if slot >= self.capacity:
            raise IndexError(f"slot {slot}: the ring has {self.capacity}")
        return self.payloads[slot]

    def commit(self, uint32_t n_rows, uint32_t n_steps, uint64_t policy_version, uint16_t flags=0):
        """Publish the reserved slot, then ring the doorbell. RingError without a reserve()."""
        if not self.reserved:
            raise RingError("commit without reserve: reserve() must have given a slot")
        self.reserved = False
        writer_commit(&self.end, n_rows, n_steps, policy_version, flags)

    def wait_not_full(self, uint64_t timeout_ns):
        """True once a slot is free. False at the time-out, a signal, or stop."""
        cdef Bell* bell = &self.end.ring.not_full
        cdef uint64_t deadline = deadline_after(timeout_ns)
        cdef uint32_t ticket
        cdef bint free
        with nogil:
            free = writer_reserve(&self.end) != NULL
            if not free and not stopped(self.control):
                ticket = bell_arm(bell)
                if writer_reserve(&self.end) == NULL:
                    bell_sleep(bell, ticket, deadline, self.control)
                else:
                    bell_disarm(bell)
                free = writer_reserve(&self.end) != NULL
        return free


cdef class RingReader:
    """The reader's end. A new reader begins at the first chunk its predecessor did not release."""

    cdef object view
    cdef list payloads
    cdef ReaderEnd end
    cdef readonly uint32_t capacity
    cdef readonly uint64_t payload_bytes

    def __init__(self, buf, uint64_t schema_hash):
        self.view = bytes_of(buf, "ring")
        cdef RingHeader* ring = _open(self.view, schema_hash)
        reader_attach(&self.end, ring)
        self.capacity, self.payload_bytes = ring.capacity, ring.payload_bytes
        self.payloads = [_payload(self.view, ring, i) for i in range(ring.capacity)]

    @property
    def committed_steps(self):
        """Steps committed by all incarnations; may lag a commit in progress by one chunk."""
        return load_relaxed(&self.end.ring.committed_steps)  # for accounting only

    @property
    def consumed_steps(self):
        """Steps of all chunks released."""
        return self.end.steps

    def peek(self):
        """Chunks that can be read now, oldest first."""
        return reader_peek(&self.end)

    def slot_index(self, uint64_t k):
        """Slot that holds the k-th readable chunk (k < what peek said)."""
        if k >= self.end.head_seen - self.end.tail:
            raise IndexError(f"chunk {k}: {self.end.head_seen - self.end.tail} were readable at "
                             "the last peek()")
        return (self.end.tail + k) & (self.capacity - 1)

    def payload(self, uint64_t k):
        """Bytes of the k-th readable chunk; not to be read after its release()."""
        return self.payloads[self.slot_index(k)]

    def chunk(self, uint64_t k):
        """Header of the k-th readable chunk. RingError when the memory was overwritten.

        CorruptError when a checked ring's chunk is not what was committed, or not the next one.
        """
        cdef SlotHeader* slot = slot_at(self.end.ring, self.slot_index(k))
        if self.end.ring.checked:
            self.verify(slot, self.end.tail + k + 1, k == 0)
        if slot.seq != self.end.tail + k + 1:
            raise RingError(f"slot holds chunk {slot.seq}, expected {self.end.tail + k + 1}: "
                            "memory was overwritten")
        return Chunk(slot.seq, slot.incarnation, slot.flags, slot.n_rows, slot.n_steps,
                     slot.policy_version, slot.t_commit_ns)

    cdef int verify(self, SlotHeader* slot, uint64_t seq, bint next) except -1:
        cdef uint32_t crc
        with nogil:
            crc = chunk_crc(self.end.ring, slot)
        if crc == slot.crc and slot.seq == seq and (not next or slot.first_step == self.end.steps):
            return 0
        raise CorruptError(
            f"chunk {seq} of a ring written by process {load_relaxed(&self.end.ring.writer_pid)}: "
            f"its slot says chunk {slot.seq} of incarnation {slot.incarnation}, from step "
            f"{slot.first_step} on, checksum {slot.crc:#010x}; read were {self.end.steps} steps, "
            f"and the bytes have {crc:#010x}")

    def release(self, uint64_t n):
        """Give the n oldest chunks back to the writer."""
        if n > self.end.head_seen - self.end.tail:
            raise IndexError(f"release({n}): {self.end.head_seen - self.end.tail} were readable at "
                             "the last peek()")
        if n:
            reader_release(&self.end, n)
