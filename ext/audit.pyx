"""What proves that nothing was lost or changed: checksums, and the totals of a ring at rest."""

from collections import namedtuple

from atomics cimport load_relaxed
from crc32c cimport crc32c as crc_of
from crc32c cimport crc32c_by_table, crc32c_has_instruction
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from spsc cimport RingHeader, SlotHeader, ring_magic, slot_at
from views cimport address_of, bytes_of

HAS_INSTRUCTION = bool(crc32c_has_instruction())

RingTotals = namedtuple("RingTotals", "chunks_in chunks_out steps_in steps_out last_steps")


class CorruptError(RuntimeError):
    """What was read is not what was handed over, or not what should come next."""


def crc32c(const uint8_t[::1] data not None, uint32_t before=0):
    """CRC32C of bytes; `before` is that of the bytes in front of them."""
    return crc_of(before, &data[0] if data.shape[0] else NULL, data.shape[0])


def crc32c_portable(const uint8_t[::1] data not None, uint32_t before=0):
    """The same without the processor's instruction."""
    cdef uint32_t crc = ~before
    if data.shape[0]:
        crc = crc32c_by_table(crc, &data[0], data.shape[0])
    return <uint32_t>~crc


def ring_totals(buf):
    """What went in and came out so far, from the commit words and the chunks between them alone.

    For a ring at rest: its writer and its reader are gone. CorruptError when a chunk that is still
    inside does not follow the one before it.
    """
    view = bytes_of(buf, "ring")
    cdef RingHeader* ring = <RingHeader*>address_of(view, sizeof(RingHeader), "ring")
    if ring.magic != ring_magic:
        raise CorruptError("not a ring: init_ring has not run on these bytes")
    cdef uint64_t head = load_relaxed(&ring.head), tail = load_relaxed(&ring.tail)  # at rest
    cdef uint64_t i, first, steps = 0, last = 0
    cdef SlotHeader* slot
    if not tail <= head <= tail + ring.capacity:
        raise CorruptError(f"{head} chunks went into a ring of {ring.capacity} and {tail} came out")
    if head > 0:
        slot = slot_at(ring, head - 1)
        last = slot.n_steps
        steps = slot.first_step + last
    first = steps if head == tail else slot_at(ring, tail).first_step
    totals = RingTotals(head, tail, steps, first, last)
    for i in range(tail, head):
        slot = slot_at(ring, i)
        if slot.seq != i + 1 or slot.first_step != first:
            raise CorruptError(f"chunk {i + 1} should begin at step {first}: its slot holds chunk "
                               f"{slot.seq}, of process {load_relaxed(&ring.writer_pid)}, which "
                               f"begins at step {slot.first_step}")
        first += slot.n_steps
    return totals
