// The only file that names fences, futex, pause, clock and kill points.
// Atomics shared between processes must be address-free; the lock-free ones are.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#if defined(__linux__)
#include <cerrno>
#include <csignal>
#include <ctime>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <chrono>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#elif defined(_M_X64)
#include <immintrin.h>
#endif

namespace fdql {

using atomic_u32 = std::atomic<uint32_t>;
using atomic_u64 = std::atomic<uint64_t>;
static_assert(atomic_u32::is_always_lock_free && sizeof(atomic_u32) == 4);
static_assert(atomic_u64::is_always_lock_free && sizeof(atomic_u64) == 8);

// ---- loads, stores, fences -------------------------------------------------------------------
// FDQL_MUTANT_RELAXED weakens every release and acquire: the stress programs' sanitizer run must
// then fail, or it proves nothing.
#if defined(FDQL_MUTANT_RELAXED)
constexpr auto acquire_order = std::memory_order_relaxed;
constexpr auto release_order = std::memory_order_relaxed;
#else
constexpr auto acquire_order = std::memory_order_acquire;
constexpr auto release_order = std::memory_order_release;
#endif

template <class T> inline T load_relaxed(const std::atomic<T>* a) {
    return a->load(std::memory_order_relaxed);
}
template <class T> inline T load_acquire(const std::atomic<T>* a) { return a->load(acquire_order); }
template <class T> inline void store_relaxed(std::atomic<T>* a, T value) {
    a->store(value, std::memory_order_relaxed);
}
template <class T> inline void store_release(std::atomic<T>* a, T value) {
    a->store(value, release_order);
}
inline uint32_t add_release(atomic_u32* a, uint32_t n) { return a->fetch_add(n, release_order); }

// Orders an earlier store before a later load of another word (the two halves of Dekker's
// handshake). ThreadSanitizer knows no fences, so it gets the bare instruction: same effect on the
// hardware, and no false synchronisation that could hide a race from it.
inline void fence_seq_cst() {
#if defined(__SANITIZE_THREAD__) && defined(__x86_64__)
    __asm__ volatile("mfence" ::: "memory");
#elif defined(__SANITIZE_THREAD__) && defined(__aarch64__)
    __asm__ volatile("dmb ish" ::: "memory");
#else
    std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

// ---- clock -----------------------------------------------------------------------------------
// CLOCK_MONOTONIC in ns. 29 ns per call on a Zen 4 virtual machine.
inline uint64_t monotonic_ns() {
#if defined(__linux__)
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(t.tv_nsec);
#else
    using namespace std::chrono;
    return static_cast<uint64_t>(
        duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count());
#endif
}

#if defined(__linux__) && defined(__x86_64__)
// The counter ticks evenly on every core, and the kernel itself trusts it.
inline bool counter_is_invariant() {
    unsigned a, b, c, d;
    if (!__get_cpuid(0x80000007, &a, &b, &c, &d) || !(d & (1u << 8))) return false;
    char name[8] = {};
    FILE* file = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "r");
    if (!file) return false;
    const bool trusted = fgets(name, sizeof name, file) && strncmp(name, "tsc", 3) == 0;
    fclose(file);
    return trusted;
}

// Per thread: the last reading of both clocks and the rate between the last two. Re-read every
// 10 ms or so, which bounds the error to some tens of ns and follows the kernel's adjustments.
struct Calibration {
    uint64_t ticks = 0, ns = 0, last = 0;
    uint64_t horizon = 0;      // ticks until the next reading of both
    uint64_t ns_per_tick = 0;  // times 2**32; horizon * ns_per_tick is about 10 ms, so it fits
};
static thread_local Calibration calibration;

inline uint64_t recalibrate(Calibration& c) {
    static const bool invariant = counter_is_invariant();
    const uint64_t ticks = __rdtsc(), ns = monotonic_ns();
    if (invariant && c.ticks && ns - c.ns > 1'000'000 && ns - c.ns < 1'000'000'000) {
        const double rate = static_cast<double>(ns - c.ns) / static_cast<double>(ticks - c.ticks);
        c.ns_per_tick = static_cast<uint64_t>(rate * 4294967296.0);
        c.horizon = static_cast<uint64_t>(1e7 / rate);
        c.ticks = ticks, c.ns = ns;
    } else if (!c.ticks || ns - c.ns >= 1'000'000'000) {
        c.horizon = 0;  // too long ago for a rate: the kernel's clock until the next one is known
        c.ticks = ticks, c.ns = ns;
    }
    return c.last = ns > c.last ? ns : c.last;
}

// CLOCK_MONOTONIC in ns from the time-stamp counter, equal in all processes to within some tens of
// ns and never running backwards in a thread. 14 ns per call where monotonic_ns takes 29,
// of which 11 are the instruction (the same machine).
inline uint64_t now_ns() {
    Calibration& c = calibration;
    const uint64_t elapsed = __rdtsc() - c.ticks;
    if (elapsed >= c.horizon) return recalibrate(c);
    const uint64_t ns = c.ns + (elapsed * c.ns_per_tick >> 32);
    return c.last = ns > c.last ? ns : c.last;
}
#else
inline uint64_t now_ns() { return monotonic_ns(); }
#endif

// ---- futex -----------------------------------------------------------------------------------
constexpr uint64_t slice_ns = 100'000'000;  // every wait looks up this often: stop, signals, peers

// Sleep while *word == expected, until deadline_ns (CLOCK_MONOTONIC) or one slice, whichever is
// first. True when a signal ended it; every other return means "look again". The key is shared
// between processes (no FUTEX_PRIVATE_FLAG), or a wake from another process would be lost.
inline bool futex_wait(atomic_u32* word, uint32_t expected, uint64_t deadline_ns) {
    const uint64_t now = monotonic_ns();
    const uint64_t until = deadline_ns < now + slice_ns ? deadline_ns : now + slice_ns;
    if (until <= now) return false;
#if defined(__linux__)
    const timespec t{static_cast<time_t>(until / 1'000'000'000u),
                     static_cast<long>(until % 1'000'000'000u)};
    const long rc = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, &t, nullptr,
                            FUTEX_BITSET_MATCH_ANY);
    return rc == -1 && errno == EINTR;
#else
    if (load_acquire(word) == expected) {
        const uint64_t nap = until - now < 50'000 ? until - now : 50'000;
        std::this_thread::sleep_for(std::chrono::nanoseconds(nap));
    }
    return false;
#endif
}

inline void futex_wake(atomic_u32* word, int sleepers) {
#if defined(__linux__)
    syscall(SYS_futex, word, FUTEX_WAKE, sleepers, nullptr, nullptr, 0);
#else
    (void)word, (void)sleepers;  // sleepers nap and look again
#endif
}

// ---- kill points -----------------------------------------------------------------------------
// TP(name) stands between any two steps of a protocol. Built with FDQL_KILL_POINTS, the process
// kills itself at the k-th passage of the point that FDQL_KILL_AT="name:k" names.
#if defined(FDQL_KILL_POINTS) && defined(__linux__)
inline void TP(const char* name) {
    static const char* armed = getenv("FDQL_KILL_AT");
    static const size_t length = armed && strrchr(armed, ':') ? strrchr(armed, ':') - armed : 0;
    static std::atomic<long> left{length ? atol(armed + length + 1) : 0};
    if (length && strlen(name) == length && strncmp(name, armed, length) == 0 && --left == 0)
        kill(getpid(), SIGKILL);
}
#else
inline void TP(const char*) {}
#endif

// ---- layout ----------------------------------------------------------------------------------
struct Field {
    const char* owner;
    const char* name;
    size_t offset, size;
};

}  // namespace fdql

// One row of a layout table; does not compile when the compiler places the field elsewhere.
#define FDQL_FIELD(S, f, at)                                       \
    fdql::Field {                                                  \
        #S, #f, [] {                                               \
            static_assert(offsetof(S, f) == at, #S "." #f " moved"); \
            return size_t{at};                                     \
        }(),                                                       \
            sizeof(S::f)                                           \
    }
