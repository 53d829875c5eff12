"""The ring's protocol: one writer, one reader, fixed-size chunks, one commit word.

`head` is the only word whose store makes a chunk visible. A writer killed between any two
instructions has therefore published a chunk whole or not at all, and its successor simply begins at
`head` and overwrites what was half written. Counters are 64 bit and never wrap, so no ABA.

Invariants: 0 <= head - tail <= capacity. The writer writes slot i only while i - tail < capacity.
slot[i].seq == i + 1 whenever tail <= i < head.
"""

from atomics cimport (TP, Field, atomic_u32, atomic_u64, load_acquire, load_relaxed, now_ns,
                      store_relaxed, store_release)
from crc32c cimport crc32c
from doorbell cimport Bell, bell_ring
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    struct RingHeader {
        uint32_t magic, capacity, slot_header, checked;     // constant after init
        uint64_t slot_stride, slots_offset, payload_bytes, schema_hash;
        uint8_t pad0[80];
        fdql::atomic_u64 head;                              // the writer's line
        fdql::atomic_u32 writer_pid, incarnation;
        fdql::atomic_u64 committed_steps;
        uint8_t pad1[104];
        fdql::atomic_u64 tail;                              // the reader's line
        fdql::atomic_u64 consumed_steps;
        uint8_t pad2[112];
        Bell not_full;                                      // the writer sleeps here
    };
    struct SlotHeader {
        uint64_t seq;
        uint32_t incarnation;
        uint16_t flags, reserved0;
        uint32_t n_rows, n_steps;
        uint64_t first_step, policy_version, t_commit_ns;
        uint32_t crc, reserved1;                            // crc: only in a checked ring
        uint64_t reserved2;
    };
    static_assert(sizeof(RingHeader) == 512 && sizeof(SlotHeader) == 64);
    static const fdql::Field ring_fields[] = {
        FDQL_FIELD(RingHeader, magic, 0), FDQL_FIELD(RingHeader, capacity, 4),
        FDQL_FIELD(RingHeader, slot_header, 8), FDQL_FIELD(RingHeader, checked, 12),
        FDQL_FIELD(RingHeader, slot_stride, 16),
        FDQL_FIELD(RingHeader, slots_offset, 24), FDQL_FIELD(RingHeader, payload_bytes, 32),
        FDQL_FIELD(RingHeader, schema_hash, 40), FDQL_FIELD(RingHeader, head, 128),
        FDQL_FIELD(RingHeader, writer_pid, 136), FDQL_FIELD(RingHeader, incarnation, 140),
        FDQL_FIELD(RingHeader, committed_steps, 144), FDQL_FIELD(RingHeader, tail, 256),
        FDQL_FIELD(RingHeader, consumed_steps, 264), FDQL_FIELD(RingHeader, not_full, 384),
        FDQL_FIELD(SlotHeader, seq, 0), FDQL_FIELD(SlotHeader, incarnation, 8),
        FDQL_FIELD(SlotHeader, flags, 12), FDQL_FIELD(SlotHeader, n_rows, 16),
        FDQL_FIELD(SlotHeader, n_steps, 20), FDQL_FIELD(SlotHeader, first_step, 24),
        FDQL_FIELD(SlotHeader, policy_version, 32), FDQL_FIELD(SlotHeader, t_commit_ns, 40),
        FDQL_FIELD(SlotHeader, crc, 48),
    };
    constexpr uint32_t ring_magic = 0x676e6972;             // "ring"
    """
    cdef cppclass RingHeader nogil:
        uint32_t magic, capacity, slot_header, checked
        uint64_t slot_stride, slots_offset, payload_bytes, schema_hash
        atomic_u64 head
        atomic_u32 writer_pid
        atomic_u32 incarnation
        atomic_u64 committed_steps
        atomic_u64 tail
        atomic_u64 consumed_steps
        Bell not_full
    cdef struct SlotHeader:
        uint64_t seq
        uint32_t incarnation
        uint16_t flags
        uint32_t n_rows, n_steps
        uint64_t first_step, policy_version, t_commit_ns
        uint32_t crc
    const Field ring_fields[24]
    const uint32_t ring_magic

cdef enum:
    FIRST_OF_INCARNATION = 1


cdef struct WriterEnd:
    RingHeader* ring
    Bell* bell                       # the reader's doorbell, or NULL
    uint64_t head, tail_seen         # our own count; the reader's as last seen
    uint64_t steps                   # committed by all incarnations
    uint32_t incarnation
    uint16_t pending_flags           # go with the next chunk


cdef struct ReaderEnd:
    RingHeader* ring
    uint64_t tail, head_seen, steps


cdef inline SlotHeader* slot_at(RingHeader* ring, uint64_t i) noexcept nogil:
    return <SlotHeader*>(<uint8_t*>ring + ring.slots_offset
                         + (i & (ring.capacity - 1)) * ring.slot_stride)


cdef inline void writer_attach(WriterEnd* w, RingHeader* ring, Bell* bell) noexcept nogil:
    """Become the ring's writer. The predecessor, if any, is dead and reaped: nobody else writes."""
    w.ring, w.bell = ring, bell
    w.head = load_relaxed(&ring.head)           # ours now; the reaping ordered the predecessor's
    w.tail_seen = load_acquire(&ring.tail)      # SYNC slot-free: pairs with reader_release
    w.steps = 0
    if w.head > 0:   # a predecessor may have died between head and committed_steps: head decides.
        # The last chunk's header stays: only chunk head - 1 + capacity would overwrite it.
        w.steps = slot_at(ring, w.head - 1).first_step + slot_at(ring, w.head - 1).n_steps
    store_relaxed(&ring.committed_steps, w.steps)           # for accounting only
    TP("ring.attach.before_incarnation")
    w.incarnation = load_relaxed(&ring.incarnation) + 1     # the writer's line: ours
    store_relaxed(&ring.incarnation, w.incarnation)         # readers learn it from the chunks
    w.pending_flags = FIRST_OF_INCARNATION if w.incarnation > 1 else 0
    if bell != NULL:  # a predecessor may have died between head and its ring
        bell_ring(bell)


cdef inline SlotHeader* writer_reserve(WriterEnd* w) noexcept nogil:
    """The slot to fill next, or NULL when the ring is full; nothing changes either way."""
    if w.head - w.tail_seen == w.ring.capacity:
        w.tail_seen = load_acquire(&w.ring.tail)  # SYNC slot-free: pairs with reader_release
        if w.head - w.tail_seen == w.ring.capacity:
            return NULL
    return slot_at(w.ring, w.head)


cdef inline uint32_t chunk_crc(RingHeader* ring, SlotHeader* slot) noexcept nogil:
    """Of the header before its crc, and of the whole payload."""
    cdef size_t before = <uint8_t*>&slot.crc - <uint8_t*>slot
    return crc32c(crc32c(0, slot, before), slot + 1, ring.payload_bytes)


cdef inline void writer_seal(WriterEnd* w, uint32_t n_rows, uint32_t n_steps,
                             uint64_t policy_version, uint16_t flags) noexcept nogil:
    """Write the header of the slot that writer_reserve gave; in a checked ring its checksum."""
    cdef SlotHeader* slot = slot_at(w.ring, w.head)
    TP("ring.commit.before_header")
    slot.seq = w.head + 1
    slot.incarnation = w.incarnation
    slot.flags = flags | w.pending_flags
    slot.n_rows, slot.n_steps = n_rows, n_steps
    slot.first_step = w.steps
    slot.policy_version = policy_version
    slot.t_commit_ns = now_ns()
    if w.ring.checked:
        slot.crc = chunk_crc(w.ring, slot)


cdef inline void writer_publish(WriterEnd* w, uint32_t n_steps) noexcept nogil:
    """Publish the sealed slot."""
    TP("ring.commit.before_head")
    store_release(&w.ring.head, w.head + 1)     # SYNC slot-full: pairs with reader_peek
    TP("ring.commit.before_steps")
    w.head += 1
    w.steps += n_steps
    w.pending_flags = 0
    store_relaxed(&w.ring.committed_steps, w.steps)         # for accounting only
    if w.bell != NULL:
        TP("ring.commit.before_bell")
        bell_ring(w.bell)


cdef inline void writer_commit(WriterEnd* w, uint32_t n_rows, uint32_t n_steps,
                               uint64_t policy_version, uint16_t flags) noexcept nogil:
    """Publish the slot that writer_reserve gave. Needs a free slot; the caller has reserved it."""
    writer_seal(w, n_rows, n_steps, policy_version, flags)
    writer_publish(w, n_steps)


cdef inline void reader_attach(ReaderEnd* r, RingHeader* ring) noexcept nogil:
    """Become the ring's reader, at the first chunk that was not released: at least once."""
    r.ring = ring
    r.tail = load_relaxed(&ring.tail)           # ours
    r.head_seen = load_acquire(&ring.head)      # SYNC slot-full: pairs with writer_commit
    r.steps = load_relaxed(&ring.consumed_steps)            # ours
    if r.head_seen != r.tail:    # a predecessor may have died between consumed_steps and tail
        r.steps = slot_at(ring, r.tail).first_step
        store_relaxed(&ring.consumed_steps, r.steps)        # for accounting only
    bell_ring(&ring.not_full)    # or between tail and its ring


cdef inline uint64_t reader_peek(ReaderEnd* r) noexcept nogil:
    """Chunks that can be read now."""
    r.head_seen = load_acquire(&r.ring.head)    # SYNC slot-full: pairs with writer_commit
    return r.head_seen - r.tail


cdef inline void reader_release(ReaderEnd* r, uint64_t n) noexcept nogil:
    """Give the n oldest chunks back to the writer; 1 <= n <= what reader_peek said."""
    cdef SlotHeader* last = slot_at(r.ring, r.tail + n - 1)
    r.steps = last.first_step + last.n_steps
    TP("ring.release.before_steps")
    store_relaxed(&r.ring.consumed_steps, r.steps)          # for accounting only
    TP("ring.release.before_tail")
    r.tail += n
    store_release(&r.ring.tail, r.tail)         # SYNC slot-free: pairs with writer_reserve
    TP("ring.release.before_bell")
    bell_ring(&r.ring.not_full)
