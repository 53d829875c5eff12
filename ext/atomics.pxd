from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "atomics.hpp" namespace "fdql" nogil:
    cdef cppclass atomic_u32:
        pass
    cdef cppclass atomic_u64:
        pass

    uint32_t load_relaxed(const atomic_u32*) noexcept
    uint64_t load_relaxed(const atomic_u64*) noexcept
    uint32_t load_acquire(const atomic_u32*) noexcept
    uint64_t load_acquire(const atomic_u64*) noexcept
    void store_relaxed(atomic_u32*, uint32_t) noexcept
    void store_relaxed(atomic_u64*, uint64_t) noexcept
    void store_release(atomic_u32*, uint32_t) noexcept
    void store_release(atomic_u64*, uint64_t) noexcept
    uint32_t add_release(atomic_u32*, uint32_t) noexcept
    void fence_seq_cst() noexcept
    void pause() noexcept

    uint64_t monotonic_ns() noexcept
    uint64_t now_ns() noexcept

    bint futex_wait(atomic_u32* word, uint32_t expected, uint64_t deadline_ns) noexcept
    void futex_wake(atomic_u32* word, int sleepers) noexcept

    void TP(const char* name) noexcept

    cdef struct Field:
        const char* owner
        const char* name
        size_t offset
        size_t size


cdef inline dict offsets_of(const Field* fields, size_t n):
    """{struct: {field: (offset, size)}} as the compiler laid it out; compared with layout.py."""
    table = {}
    cdef size_t i
    for i in range(n):
        owner = fields[i].owner.decode()
        table.setdefault(owner, {})[fields[i].name.decode()] = (fields[i].offset, fields[i].size)
    return table
