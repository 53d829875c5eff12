"""The weights' protocol: one writer, R readers, K = R + 2 buffers, hazard pins.

`latest` names the newest buffer and is the only commit. A reader pins a buffer in its own line and
looks at `latest` again; the writer fills only a buffer that is neither the latest nor pinned. With
R pins and one latest, K = R + 2 always leaves one: the writer never waits, and no reader ever sees
a buffer change. A reader repeats only if a publication fell into the few ns of its handshake.
"""

from atomics cimport (TP, Field, atomic_u64, fence_seq_cst, load_acquire, load_relaxed,
                      store_relaxed, store_release)
from crc32c cimport crc32c
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    struct WeightsHeader {
        uint32_t magic, readers;                            // constant after init
        uint64_t nbytes, buffers_offset, stride;
        uint32_t checked;
        uint8_t pad0[92];
        fdql::atomic_u64 latest;        // the writer: version << 8 | buffer
        uint8_t pad1[120];
    };
    struct Pin {
        fdql::atomic_u64 buffer;        // the reader: buffer + 1, or 0 for none
        uint8_t pad[120];
    };
    struct SnapshotSeal {               // behind the bytes of a buffer of checked weights
        uint64_t version;
        uint32_t crc, reserved;
    };
    static_assert(sizeof(WeightsHeader) == 256 && sizeof(Pin) == 128);
    static_assert(sizeof(SnapshotSeal) == 16);
    static const fdql::Field weights_fields[] = {
        FDQL_FIELD(WeightsHeader, magic, 0), FDQL_FIELD(WeightsHeader, readers, 4),
        FDQL_FIELD(WeightsHeader, nbytes, 8), FDQL_FIELD(WeightsHeader, buffers_offset, 16),
        FDQL_FIELD(WeightsHeader, stride, 24), FDQL_FIELD(WeightsHeader, checked, 32),
        FDQL_FIELD(WeightsHeader, latest, 128), FDQL_FIELD(Pin, buffer, 0),
        FDQL_FIELD(SnapshotSeal, version, 0), FDQL_FIELD(SnapshotSeal, crc, 8),
    };
    constexpr uint32_t weights_magic = 0x74676877;          // "whgt"
    """
    cdef cppclass WeightsHeader nogil:
        uint32_t magic, readers
        uint64_t nbytes, buffers_offset, stride
        uint32_t checked
        atomic_u64 latest
    cdef cppclass Pin nogil:
        atomic_u64 buffer
    cdef struct SnapshotSeal:
        uint64_t version
        uint32_t crc
    const Field weights_fields[10]
    const uint32_t weights_magic


cdef inline Pin* pin_of(WeightsHeader* weights, uint32_t reader) noexcept nogil:
    return <Pin*>(weights + 1) + reader


cdef inline uint8_t* buffer_at(WeightsHeader* weights, uint64_t i) noexcept nogil:
    return <uint8_t*>weights + weights.buffers_offset + i * weights.stride


cdef inline int free_buffer(WeightsHeader* weights) noexcept nogil:
    """A buffer that nobody reads nor can begin to read. Writer only; -1 cannot be, by counting.

    Every pin is read once: one that moves while it is looked at several times could seem to hold
    two buffers, and then none would be left.
    """
    cdef uint64_t taken[4]                      # a bit for each of the at most 255 buffers
    cdef uint64_t b = load_relaxed(&weights.latest) & 0xff  # ours
    cdef uint64_t buffers = <uint64_t>weights.readers + 2
    cdef uint32_t reader
    taken[0] = taken[1] = taken[2] = taken[3] = 0
    taken[b >> 6] |= <uint64_t>1 << (b & 63)
    # SYNC pin-handshake: pairs with the fence in snapshot_acquire. Either we see its pin below, or
    # it sees our last `latest` and lets go.
    fence_seq_cst()
    for reader in range(weights.readers):
        # SYNC pin-free: pairs with the releases in snapshot_acquire and snapshot_release
        b = load_acquire(&pin_of(weights, reader).buffer)
        if b:                                   # 0 is no pin, k is buffer k - 1
            taken[(b - 1) >> 6] |= <uint64_t>1 << ((b - 1) & 63)
    for b in range(buffers):
        if not taken[b >> 6] >> (b & 63) & 1:
            return <int>b
    return -1


cdef inline SnapshotSeal* seal_of(WeightsHeader* weights, uint64_t b) noexcept nogil:
    return <SnapshotSeal*>(buffer_at(weights, b) + (weights.nbytes + 15) // 16 * 16)


cdef inline uint32_t snapshot_crc(WeightsHeader* weights, uint64_t b,
                                  uint64_t version) noexcept nogil:
    return crc32c(crc32c(0, &version, sizeof(version)), buffer_at(weights, b), weights.nbytes)


cdef inline bint snapshot_corrupt(WeightsHeader* weights, uint64_t latest) noexcept nogil:
    """True when a pinned snapshot of checked weights is not the one that was published."""
    cdef uint64_t b = latest & 0xff, version = latest >> 8
    cdef SnapshotSeal* seal = seal_of(weights, b)
    return seal.version != version or seal.crc != snapshot_crc(weights, b, version)


cdef inline int snapshot_fill(WeightsHeader* weights, const void* data,
                              uint64_t version) noexcept nogil:
    """Copy the bytes into a free buffer, its number; -1 when there is none."""
    cdef int b = free_buffer(weights)
    if b >= 0:
        TP("weights.publish.before_copy")
        memcpy(buffer_at(weights, b), data, weights.nbytes)
        if weights.checked:
            seal_of(weights, b).version = version
            seal_of(weights, b).crc = snapshot_crc(weights, b, version)
    return b


cdef inline bint snapshot_publish(WeightsHeader* weights, const void* data,
                                  uint64_t version) noexcept nogil:
    cdef int b = snapshot_fill(weights, data, version)
    if b < 0:
        return False
    TP("weights.publish.before_latest")
    store_release(&weights.latest, version << 8 | <uint64_t>b)  # SYNC weights: snapshot_acquire
    TP("weights.publish.after_latest")
    return True


cdef inline uint64_t snapshot_acquire(WeightsHeader* weights, uint32_t reader) noexcept nogil:
    """Pin the latest buffer; its `latest` word, which names buffer and version."""
    cdef atomic_u64* pin = &pin_of(weights, reader).buffer
    cdef uint64_t latest = load_acquire(&weights.latest)  # SYNC weights: with snapshot_publish
    while True:
        # A release, for it also ends the reading of the buffer pinned before.
        store_release(pin, (latest & 0xff) + 1)  # SYNC pin-free: pairs with free_buffer
        TP("weights.acquire.pinned")
        fence_seq_cst()                         # SYNC pin-handshake: pairs with free_buffer
        again = load_acquire(&weights.latest)   # SYNC weights: pairs with snapshot_publish
        if again == latest:
            return latest
        latest = again


cdef inline void snapshot_release(WeightsHeader* weights, uint32_t reader) noexcept nogil:
    TP("weights.release.before_clear")
    store_release(&pin_of(weights, reader).buffer, <uint64_t>0)  # SYNC pin-free: with free_buffer
