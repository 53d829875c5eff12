"""A track: the events of one thread, in the order in which they ended, until it is full.

One writer, any number of readers. `count` is the only word whose store makes an event visible: a
writer killed before it has written nothing, and its successor overwrites what was half written.
What finds no room is counted in `dropped`.
"""

from atomics cimport (Field, atomic_u64, load_acquire, load_relaxed, store_relaxed, store_release)
from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    struct TrackHeader {
        fdql::atomic_u64 count;         // the writer; the commit word
        fdql::atomic_u64 dropped;
        uint8_t reserved[112];          // TrackEvents from 128
    };
    struct TrackEvent { uint64_t t0_ns, duration_ns, value; uint32_t kind, reserved; };
    static_assert(sizeof(TrackHeader) == 128 && sizeof(TrackEvent) == 32);
    static const fdql::Field track_fields[] = {
        FDQL_FIELD(TrackHeader, count, 0), FDQL_FIELD(TrackHeader, dropped, 8),
        FDQL_FIELD(TrackEvent, t0_ns, 0), FDQL_FIELD(TrackEvent, duration_ns, 8),
        FDQL_FIELD(TrackEvent, value, 16), FDQL_FIELD(TrackEvent, kind, 24),
    };
    """
    cdef cppclass TrackHeader nogil:
        atomic_u64 count
        atomic_u64 dropped
    cdef cppclass TrackEvent nogil:
        uint64_t t0_ns, duration_ns, value
        uint32_t kind
    const Field track_fields[6]


cdef inline void track_append(TrackHeader* track, uint64_t capacity, uint32_t kind, uint64_t t0_ns,
                              uint64_t duration_ns, uint64_t value) noexcept nogil:
    """Publish one event, or count it as dropped. 4 ns."""
    cdef uint64_t n = load_relaxed(&track.count)    # ours: no other thread writes it
    if n >= capacity:
        store_relaxed(&track.dropped, load_relaxed(&track.dropped) + 1)  # monitoring only
        return
    cdef TrackEvent* event = <TrackEvent*>(track + 1) + n
    event.t0_ns, event.duration_ns = t0_ns, duration_ns
    event.value, event.kind = value, kind
    store_release(&track.count, n + 1)              # SYNC track: pairs with Track.events


cdef inline uint64_t track_published(const TrackHeader* track) noexcept nogil:
    """Events that can be read."""
    return load_acquire(&track.count)               # SYNC track: pairs with track_append
