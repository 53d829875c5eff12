"""Measuring and stress loops over the ring, without the GIL.

For tests and benchmarks: nothing of the product imports this. The loops run the product's own
functions (spsc.pxd, doorbell.pxd); beside them stands a textbook queue to compare with. A message
is filled with a pattern of its number and every word of it is checked.
"""

from atomics cimport fence_seq_cst, monotonic_ns, now_ns, pause
from doorbell cimport Bell, bell_arm, bell_disarm, bell_sleep, deadline_after
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from spsc cimport (ReaderEnd, RingHeader, SlotHeader, WriterEnd, reader_attach, reader_peek,
                   reader_release, slot_at, writer_attach, writer_commit, writer_reserve)
from views cimport address_of, bytes_of

cdef extern from *:
    """
    // The textbook queue: two counters on lines of their own, each side with a copy of the other's.
    struct alignas(128) Queue {
        alignas(128) fdql::atomic_u64 head; uint64_t tail_seen;
        alignas(128) fdql::atomic_u64 tail; uint64_t head_seen;
        struct alignas(64) Item { uint64_t words[8]; };
        alignas(128) Item items[1024];
        uint64_t* claim() {
            const uint64_t h = head.load(std::memory_order_relaxed);
            if (h - tail_seen == 1024) {
                tail_seen = tail.load(std::memory_order_acquire);
                if (h - tail_seen == 1024) return nullptr;
            }
            return items[h % 1024].words;
        }
        void push() {
            head.store(head.load(std::memory_order_relaxed) + 1, std::memory_order_release);
        }
        const uint64_t* front() {
            const uint64_t t = tail.load(std::memory_order_relaxed);
            if (t == head_seen) {
                head_seen = head.load(std::memory_order_acquire);
                if (t == head_seen) return nullptr;
            }
            return items[t % 1024].words;
        }
        bool room_of(uint64_t n) {
            return head.load(std::memory_order_relaxed) - tail.load(std::memory_order_acquire) < n;
        }
        void pop() {
            tail.store(tail.load(std::memory_order_relaxed) + 1, std::memory_order_release);
        }
    };
    static inline uint64_t pattern(uint64_t number, uint64_t word) {
        return (number + 1) * 0x9e3779b97f4a7c15u + word;
    }
    """
    cdef cppclass Queue nogil:
        uint64_t* claim()
        void push()
        bint room_of(uint64_t n)
        const uint64_t* front()
        void pop()
    uint64_t pattern(uint64_t number, uint64_t word) noexcept nogil

QUEUE_BYTES = sizeof(Queue)

cdef enum:
    SPINS = 2000                       # then sleep: the other side may need this very core
    SECOND = 1_000_000_000


cdef uint8_t* _at(buf) except NULL:
    return address_of(bytes_of(buf, "probe"), 1, "probe")


cdef void _fill(uint64_t* words, uint64_t number, uint64_t n) noexcept nogil:
    cdef uint64_t j
    for j in range(n):
        words[j] = pattern(number, j)


cdef uint64_t _wrong(const uint64_t* words, uint64_t number, uint64_t n) noexcept nogil:
    cdef uint64_t j, wrong = 0
    for j in range(n):
        wrong |= words[j] ^ pattern(number, j)
    return wrong != 0


cdef uint64_t* _reserve(WriterEnd* w) noexcept nogil:
    """A free slot's payload: spin, then sleep on not_full as RingWriter.wait_not_full does."""
    cdef SlotHeader* slot = writer_reserve(w)
    cdef uint32_t spins = 0, ticket
    while slot == NULL:
        spins += 1
        if spins < SPINS:
            pause()
        else:
            ticket = bell_arm(&w.ring.not_full)
            if writer_reserve(w) == NULL:
                bell_sleep(&w.ring.not_full, ticket, deadline_after(SECOND), NULL)
            else:
                bell_disarm(&w.ring.not_full)
        slot = writer_reserve(w)
    return <uint64_t*>(slot + 1)


cdef uint64_t _peek(ReaderEnd* r, Bell* bell) noexcept nogil:
    cdef uint64_t n = reader_peek(r)
    cdef uint32_t spins = 0, ticket
    while n == 0:
        spins += 1
        if spins < SPINS or bell == NULL:
            pause()
        else:
            ticket = bell_arm(bell)
            if reader_peek(r) == 0:
                bell_sleep(bell, ticket, deadline_after(SECOND), NULL)
            else:
                bell_disarm(bell)
        n = reader_peek(r)
    return n


def ring_write(ring, bell, uint64_t n):
    """Commit n patterned chunks; ns taken. bell None: the reader spins."""
    cdef WriterEnd w
    cdef uint64_t i, words, start = monotonic_ns()
    writer_attach(&w, <RingHeader*>_at(ring), <Bell*>_at(bell) if bell is not None else NULL)
    words = w.ring.payload_bytes // 8
    with nogil:
        for i in range(n):
            _fill(_reserve(&w), w.head, words)
            writer_commit(&w, 1, 1, i, 0)
    return monotonic_ns() - start


def ring_read(ring, bell, uint64_t n):
    """Read n chunks and check every word; how many were wrong."""
    cdef ReaderEnd r
    cdef uint64_t k, m, words, done = 0, wrong = 0
    cdef SlotHeader* slot
    cdef Bell* b = <Bell*>_at(bell) if bell is not None else NULL
    reader_attach(&r, <RingHeader*>_at(ring))
    words = r.ring.payload_bytes // 8
    with nogil:
        while done < n:
            m = _peek(&r, b)
            for k in range(m):
                slot = slot_at(r.ring, r.tail + k)
                wrong += slot.seq != r.tail + k + 1
                wrong += _wrong(<uint64_t*>(slot + 1), r.tail + k, words)
            reader_release(&r, m)
            done += m
    return wrong


def ring_copy_in(ring, source, uint64_t n):
    """Commit n chunks copied from source; ns taken."""
    cdef WriterEnd w
    cdef uint64_t start = monotonic_ns()
    cdef uint8_t* data = _at(source)
    writer_attach(&w, <RingHeader*>_at(ring), NULL)
    with nogil:
        for _ in range(n):
            memcpy(_reserve(&w), data, w.ring.payload_bytes)
            writer_commit(&w, 1, 1, 0, 0)
    return monotonic_ns() - start


def ring_copy_out(ring, target, uint64_t n):
    """Read n chunks by copying them to target."""
    cdef ReaderEnd r
    cdef uint8_t* data = _at(target)
    reader_attach(&r, <RingHeader*>_at(ring))
    with nogil:
        for _ in range(n):
            _peek(&r, NULL)
            memcpy(data, slot_at(r.ring, r.tail) + 1, r.ring.payload_bytes)
            reader_release(&r, 1)


def copy(target, source, uint64_t nbytes, uint64_t n):
    """memcpy n times; ns taken."""
    cdef uint8_t* to = _at(target)
    cdef uint8_t* data = _at(source)
    cdef uint64_t start = monotonic_ns()
    with nogil:
        for _ in range(n):
            memcpy(to, data, nbytes)
            fence_seq_cst()            # or the compiler keeps one of the copies
    return monotonic_ns() - start


def queue_write(queue, uint64_t n):
    """Push n patterned items of 64 bytes through the textbook queue; ns taken."""
    cdef Queue* q = <Queue*>_at(queue)
    cdef uint64_t i, start = monotonic_ns()
    cdef uint64_t* words
    with nogil:
        for i in range(n):
            words = q.claim()
            while words == NULL:
                pause()
                words = q.claim()
            _fill(words, i, 8)
            q.push()
    return monotonic_ns() - start


def queue_read(queue, uint64_t n):
    """Pop n items of the textbook queue and check every word; how many were wrong."""
    cdef Queue* q = <Queue*>_at(queue)
    cdef uint64_t i, wrong = 0
    cdef const uint64_t* words
    with nogil:
        for i in range(n):
            words = q.front()
            while words == NULL:
                pause()
                words = q.front()
            wrong += _wrong(words, i, 8)
            q.pop()
    return wrong


def ring_ping(there, back, uint64_t[::1] half_trips_ns not None, bint answer):
    """Spinning ping-pong over two rings, 8 words each way: half of each round trip.

    The partner calls it with answer=True and as many entries, on the same rings exchanged.
    """
    cdef WriterEnd w
    cdef ReaderEnd r
    cdef uint64_t i, start
    writer_attach(&w, <RingHeader*>_at(there), NULL)
    reader_attach(&r, <RingHeader*>_at(back))
    with nogil:
        for i in range(<uint64_t>half_trips_ns.shape[0]):
            start = now_ns()
            if answer:
                while reader_peek(&r) == 0:
                    pass
                reader_release(&r, 1)
            _fill(_reserve(&w), i, 8)
            writer_commit(&w, 1, 1, 0, 0)
            if not answer:
                while reader_peek(&r) == 0:
                    pass
                reader_release(&r, 1)
            half_trips_ns[i] = (now_ns() - start) // 2


def queue_ping(there, back, uint64_t[::1] half_trips_ns not None, bint answer):
    """As ring_ping, over two textbook queues."""
    cdef Queue* w = <Queue*>_at(there)
    cdef Queue* r = <Queue*>_at(back)
    cdef uint64_t i, start
    with nogil:
        for i in range(<uint64_t>half_trips_ns.shape[0]):
            start = now_ns()
            if answer:
                while r.front() == NULL:
                    pass
                r.pop()
            _fill(w.claim(), i, 8)
            w.push()
            if not answer:
                while r.front() == NULL:
                    pass
                r.pop()
            half_trips_ns[i] = (now_ns() - start) // 2


def queue_copy_in(queue, buffers, source, uint64_t nbytes, uint64_t n):
    """As ring_copy_in through 4 buffers of nbytes, the textbook queue carrying their numbers."""
    cdef Queue* q = <Queue*>_at(queue)
    cdef uint8_t* to = _at(buffers)
    cdef uint8_t* data = _at(source)
    cdef uint64_t i, start = monotonic_ns()
    with nogil:
        for i in range(n):
            while not q.room_of(4):
                pause()
            memcpy(to + i % 4 * nbytes, data, nbytes)
            q.claim()[0] = i % 4
            q.push()
    return monotonic_ns() - start


def queue_copy_out(queue, buffers, target, uint64_t nbytes, uint64_t n):
    """As ring_copy_out, from queue_copy_in."""
    cdef Queue* q = <Queue*>_at(queue)
    cdef uint8_t* data = _at(buffers)
    cdef uint8_t* to = _at(target)
    with nogil:
        for _ in range(n):
            while q.front() == NULL:
                pause()
            memcpy(to, data + q.front()[0] * nbytes, nbytes)
            q.pop()
