from libc.stdint cimport uint8_t, uint32_t

cdef extern from "crc32c.hpp" namespace "fdql" nogil:
    uint32_t crc32c(uint32_t before, const void* bytes, size_t n) noexcept
    uint32_t crc32c_by_table(uint32_t crc, const uint8_t* p, size_t n) noexcept
    bint crc32c_has_instruction() noexcept
