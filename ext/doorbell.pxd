"""The doorbell (an eventcount: any number of ringers, one sleeper) and the run's stop word.

No wake-up is lost because of three things together: the ringer's fence between its work and its
look at `waiting`, the sleeper's fence between `waiting` and its second look for work, and the
kernel's comparison of `seq` with the ticket. Without any one of them a sleeper could miss work.
With nobody asleep, ringing costs one fence and one load.
"""

from atomics cimport (TP, Field, add_release, atomic_u32, atomic_u64, fence_seq_cst, futex_wait,
                      futex_wake, load_acquire, load_relaxed, monotonic_ns, store_relaxed)
from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    struct Bell {
        fdql::atomic_u32 seq;       // ringers; the word the sleeper waits on; counts wake-ups
        fdql::atomic_u32 waiting;   // the sleeper
        fdql::atomic_u64 sleeps;    // the sleeper: how often it went to sleep
        uint8_t reserved[112];
    };
    struct StopWord {
        fdql::atomic_u32 stop;      // the supervisor: 0 run, else waits end at once
        uint32_t reserved0;
        fdql::atomic_u64 trace_begin_ns, trace_end_ns;  // the supervisor; 0: not yet
        uint8_t reserved[104];
    };
    static_assert(sizeof(Bell) == 128 && sizeof(StopWord) == 128);
    static const fdql::Field bell_fields[] = {
        FDQL_FIELD(Bell, seq, 0), FDQL_FIELD(Bell, waiting, 4), FDQL_FIELD(Bell, sleeps, 8),
    };
    static const fdql::Field stop_fields[] = {
        FDQL_FIELD(StopWord, stop, 0), FDQL_FIELD(StopWord, trace_begin_ns, 8),
        FDQL_FIELD(StopWord, trace_end_ns, 16),
    };
    """
    cdef cppclass Bell nogil:
        atomic_u32 seq
        atomic_u32 waiting
        atomic_u64 sleeps
    cdef cppclass StopWord nogil:
        atomic_u32 stop
        atomic_u64 trace_begin_ns
        atomic_u64 trace_end_ns
    const Field bell_fields[3]
    const Field stop_fields[3]


cdef inline bint stopped(const StopWord* control) noexcept nogil:
    """True ends every wait."""
    # SYNC stop: pairs with the release in Control.stop
    return control != NULL and load_acquire(&control.stop) != 0


cdef inline uint64_t deadline_after(uint64_t timeout_ns) noexcept nogil:
    cdef uint64_t now = monotonic_ns()
    return now + timeout_ns if now + timeout_ns >= now else <uint64_t>-1


cdef inline void bell_ring(Bell* bell) noexcept nogil:
    """Wake the sleeper, if there is one. Call after the store that made the work visible."""
    fence_seq_cst()                             # SYNC no-lost-wake: pairs with bell_arm
    if load_relaxed(&bell.waiting):             # the fence orders it
        TP("bell.ring.before_bump")
        add_release(&bell.seq, 1)               # SYNC bell-seq: pairs with the acquire in bell_arm
        TP("bell.ring.before_wake")
        futex_wake(&bell.seq, 1)


cdef inline void bell_wake(Bell* bell) noexcept nogil:
    """Wake the sleeper whether or not it says that it sleeps; its ticket is void from here on."""
    add_release(&bell.seq, 1)                   # SYNC bell-seq: pairs with the acquire in bell_arm
    futex_wake(&bell.seq, 0x7fffffff)


cdef inline uint32_t bell_arm(Bell* bell) noexcept nogil:
    """Say "about to sleep" and return the ticket; the sleeper must look for work once more now."""
    cdef uint32_t ticket = load_acquire(&bell.seq)  # SYNC bell-seq: pairs with bell_ring
    store_relaxed(&bell.waiting, <uint32_t>1)   # the fence orders it before the second look
    fence_seq_cst()                             # SYNC no-lost-wake: pairs with bell_ring
    TP("bell.arm.armed")
    return ticket


cdef inline void bell_disarm(Bell* bell) noexcept nogil:
    store_relaxed(&bell.waiting, <uint32_t>0)   # late or early costs one needless wake, no more


cdef inline void bell_sleep(Bell* bell, uint32_t ticket, uint64_t deadline_ns,
                            const StopWord* control) noexcept nogil:
    """Sleep until rung, deadline, signal or stop. May return early; the caller looks for work."""
    store_relaxed(&bell.sleeps, load_relaxed(&bell.sleeps) + 1)  # ours, for monitoring
    while load_acquire(&bell.seq) == ticket:    # SYNC bell-seq: pairs with bell_ring
        TP("bell.sleep.before_wait")
        if stopped(control) or futex_wait(&bell.seq, ticket, deadline_ns):
            break
        if monotonic_ns() >= deadline_ns:
            break
    bell_disarm(bell)
