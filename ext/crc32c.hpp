// CRC32C (Castagnoli, polynomial 0x1EDC6F41, reflected), by the processor's instruction where it has
// one, else by tables, eight bytes at a time. Bytes in, one number out; knows nobody.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fdql {

using CrcTables = std::array<std::array<uint32_t, 256>, 8>;

constexpr CrcTables crc_tables() {
    CrcTables t{};
    for (uint32_t i = 0; i < 256; ++i) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; ++bit) c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
        t[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; ++i)
        for (size_t k = 1; k < 8; ++k) t[k][i] = t[k - 1][i] >> 8 ^ t[0][t[k - 1][i] & 0xff];
    return t;
}

inline uint32_t crc32c_by_table(uint32_t crc, const uint8_t* p, size_t n) {
    static constexpr CrcTables t = crc_tables();
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t a, b;
        memcpy(&a, p, 4), memcpy(&b, p + 4, 4);  // little-endian, as every machine that exists
        a ^= crc;
        crc = t[7][a & 0xff] ^ t[6][a >> 8 & 0xff] ^ t[5][a >> 16 & 0xff] ^ t[4][a >> 24] ^
              t[3][b & 0xff] ^ t[2][b >> 8 & 0xff] ^ t[1][b >> 16 & 0xff] ^ t[0][b >> 24];
    }
    while (n--) crc = crc >> 8 ^ t[0][(crc ^ *p++) & 0xff];
    return crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
inline bool crc32c_has_instruction() { return __builtin_cpu_supports("sse4.2"); }

__attribute__((target("sse4.2"))) inline uint32_t crc32c_by_instruction(uint32_t crc,
                                                                       const uint8_t* p, size_t n) {
    uint64_t c = crc, word;
    for (; n >= 8; n -= 8, p += 8) memcpy(&word, p, 8), c = _mm_crc32_u64(c, word);
    crc = static_cast<uint32_t>(c);
    while (n--) crc = _mm_crc32_u8(crc, *p++);
    return crc;
}
#elif defined(__aarch64__) && defined(__linux__)
inline bool crc32c_has_instruction() { return getauxval(AT_HWCAP) & HWCAP_CRC32; }

__attribute__((target("+crc"))) inline uint32_t crc32c_by_instruction(uint32_t crc,
                                                                     const uint8_t* p, size_t n) {
    uint64_t word;
    for (; n >= 8; n -= 8, p += 8) memcpy(&word, p, 8), crc = __crc32cd(crc, word);
    while (n--) crc = __crc32cb(crc, *p++);
    return crc;
}
#else
inline bool crc32c_has_instruction() { return false; }
inline uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t* p, size_t n) {
    return crc32c_by_table(crc, p, n);
}
#endif

// The checksum of n bytes; `before` is that of the bytes in front of them, 0 for none.
inline uint32_t crc32c(uint32_t before, const void* bytes, size_t n) {
    static const bool instruction = crc32c_has_instruction();
    const auto* p = static_cast<const uint8_t*>(bytes);
    return ~(instruction ? crc32c_by_instruction(~before, p, n) : crc32c_by_table(~before, p, n));
}

}  // namespace fdql
