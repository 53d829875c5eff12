"""The request/reply protocol between one env worker and the inference server, one slot per group.

A request is the worker's number in req_seq, a reply the same number in rep_seq; each is the only
commit of its direction. The worker uses actions only when rep_seq equals its own number, so a late
reply to a dead predecessor is never taken, and either side can restart without a reset.
"""

from atomics cimport (TP, Field, atomic_u32, atomic_u64, fence_seq_cst, futex_wait, futex_wake,
                      load_acquire, load_relaxed, monotonic_ns, now_ns, pause, store_relaxed,
                      store_release)
from crc32c cimport crc32c
from doorbell cimport Bell, StopWord, bell_ring, stopped
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    struct SlotsHeader {
        uint32_t magic, workers, groups, envs;              // constant after init
        uint64_t obs_bytes, action_bytes, obs_stride, action_stride;
        uint64_t obs_offset, actions_offset;
        uint32_t checked;
        uint8_t reserved[60];
    };
    struct Mailbox {
        fdql::atomic_u32 req_seq;       // the worker's line
        fdql::atomic_u32 first_seq;     // of this worker; what is older was a dead predecessor's
        fdql::atomic_u64 t_submit_ns;
        uint32_t req_crc;               // of the request's rows, only in checked slots
        uint8_t pad1[108];
        fdql::atomic_u32 rep_seq;       // the server's line; the word the worker waits on
        uint32_t pad2;
        fdql::atomic_u64 policy_version;
        uint32_t rep_crc;               // of the reply's rows, only in checked slots
        uint8_t pad3[108];
        fdql::atomic_u32 waiting;       // the worker's; not beside req_seq, which the server polls
        uint8_t pad4[124];
    };
    static_assert(sizeof(SlotsHeader) == 128 && sizeof(Mailbox) == 384);
    static const fdql::Field slots_fields[] = {
        FDQL_FIELD(SlotsHeader, magic, 0), FDQL_FIELD(SlotsHeader, workers, 4),
        FDQL_FIELD(SlotsHeader, groups, 8), FDQL_FIELD(SlotsHeader, envs, 12),
        FDQL_FIELD(SlotsHeader, obs_bytes, 16), FDQL_FIELD(SlotsHeader, action_bytes, 24),
        FDQL_FIELD(SlotsHeader, obs_stride, 32), FDQL_FIELD(SlotsHeader, action_stride, 40),
        FDQL_FIELD(SlotsHeader, obs_offset, 48), FDQL_FIELD(SlotsHeader, actions_offset, 56),
        FDQL_FIELD(SlotsHeader, checked, 64),
        FDQL_FIELD(Mailbox, req_seq, 0), FDQL_FIELD(Mailbox, first_seq, 4),
        FDQL_FIELD(Mailbox, t_submit_ns, 8), FDQL_FIELD(Mailbox, req_crc, 16),
        FDQL_FIELD(Mailbox, rep_seq, 128), FDQL_FIELD(Mailbox, policy_version, 136),
        FDQL_FIELD(Mailbox, rep_crc, 144), FDQL_FIELD(Mailbox, waiting, 256),
    };
    constexpr uint32_t slots_magic = 0x746f6c73;            // "slot"
    """
    cdef cppclass SlotsHeader nogil:
        uint32_t magic, workers, groups, envs
        uint64_t obs_bytes, action_bytes, obs_stride, action_stride, obs_offset, actions_offset
        uint32_t checked
    cdef cppclass Mailbox nogil:
        atomic_u32 req_seq
        atomic_u32 first_seq
        atomic_u64 t_submit_ns
        uint32_t req_crc
        atomic_u32 rep_seq
        atomic_u64 policy_version
        uint32_t rep_crc
        atomic_u32 waiting
    const Field slots_fields[19]
    const uint32_t slots_magic


cdef inline uint32_t mailbox_scan(Mailbox* boxes, uint32_t slots, int32_t* out, uint32_t* taken,
                                  uint64_t* oldest_ns) noexcept nogil:
    """Slots with a request and no reply, ascending, to out (or NULL), their numbers to taken."""
    cdef uint32_t i, number, n = 0
    cdef uint64_t t
    oldest_ns[0] = <uint64_t>-1
    for i in range(slots):
        if mailbox_ready(&boxes[i], &number):
            if out != NULL:
                out[n] = i
                taken[i] = number
            n += 1
            t = load_relaxed(&boxes[i].t_submit_ns)  # mailbox_ready acquired it
            if t < oldest_ns[0]:
                oldest_ns[0] = t
    return n


cdef inline uint32_t rows_crc(uint32_t number, const void* rows, uint64_t nbytes) noexcept nogil:
    """Of a request's or a reply's rows, and of its number."""
    return crc32c(crc32c(0, &number, sizeof(number)), rows, nbytes)


cdef inline void mailbox_attach(Mailbox* box) noexcept nogil:
    """Become the slot's worker; the predecessor, if any, is dead and reaped."""
    # The server reads it after it saw our incarnation, a release after this, or our first request;
    # before that it takes the predecessor's request for a living worker's.
    store_relaxed(&box.first_seq, load_relaxed(&box.req_seq) + 1)


cdef inline void mailbox_submit(Mailbox* box, uint32_t number, Bell* server) noexcept nogil:
    """Publish the observation rows under `number`, and wake the server."""
    TP("slots.submit.before_req")
    store_relaxed(&box.t_submit_ns, now_ns())   # ordered by the release below
    store_release(&box.req_seq, number)         # SYNC request: pairs with mailbox_ready
    TP("slots.submit.before_bell")
    bell_ring(server)


cdef inline bint mailbox_replied(Mailbox* box, uint32_t number) noexcept nogil:
    return load_acquire(&box.rep_seq) == number  # SYNC reply: pairs with mailbox_reply


cdef inline bint mailbox_await(Mailbox* box, uint32_t number, uint64_t spin_ns,
                               uint64_t deadline_ns, const StopWord* control) noexcept nogil:
    """True once the reply to `number` is there; False at the deadline, a signal, or stop."""
    cdef uint32_t seen
    cdef uint64_t spin_until
    if mailbox_replied(box, number):
        return True
    if spin_ns:
        spin_until = now_ns() + spin_ns
        while now_ns() < spin_until:
            if mailbox_replied(box, number):
                return True
            pause()
    while True:
        seen = load_acquire(&box.rep_seq)       # SYNC reply: pairs with mailbox_reply
        if seen == number:
            return True
        if stopped(control) or monotonic_ns() >= deadline_ns:
            return False
        store_relaxed(&box.waiting, <uint32_t>1)  # the fence orders it before the second look
        fence_seq_cst()                         # SYNC reply-wake: pairs with the reply round
        TP("slots.await.before_sleep")
        if not mailbox_replied(box, number):
            if futex_wait(&box.rep_seq, seen, deadline_ns):
                store_relaxed(&box.waiting, <uint32_t>0)
                return mailbox_replied(box, number)
        TP("slots.await.woken")
        store_relaxed(&box.waiting, <uint32_t>0)  # late or early costs one needless wake, no more


cdef inline bint mailbox_ready(Mailbox* box, uint32_t* number) noexcept nogil:
    """True when a request has no reply yet; its number goes to *number."""
    number[0] = load_acquire(&box.req_seq)      # SYNC request: pairs with mailbox_submit
    return number[0] != load_relaxed(&box.rep_seq)  # the server's own word


cdef inline bint mailbox_orphaned(Mailbox* box, uint32_t number) noexcept nogil:
    """True when the worker that made this request is known to be dead: nobody takes the reply."""
    return <int32_t>(number - load_relaxed(&box.first_seq)) < 0  # see mailbox_attach


cdef inline bint request_corrupt(Mailbox* box, uint32_t number, const void* rows,
                                 uint64_t nbytes, Bell* server) noexcept nogil:
    """True when a request's rows are not those that its worker, which lives, asked about."""
    if rows_crc(number, rows, nbytes) == box.req_crc:  # mailbox_ready acquired it
        return False
    # A successor rang this bell between first_seq and its first rows. With the fences of both rings
    # whoever saw some of these rows in place of the predecessor's also sees whose they are.
    bell_ring(server)
    return not mailbox_orphaned(box, number)


cdef inline void mailbox_reply(Mailbox* box, uint32_t number, uint64_t version) noexcept nogil:
    """Publish the action rows as the reply to `number`. A wake must follow, see mailbox_wake."""
    TP("slots.reply.before_rep")
    store_relaxed(&box.policy_version, version)  # ordered by the release below
    store_release(&box.rep_seq, number)         # SYNC reply: pairs with mailbox_replied


cdef inline void mailbox_wake(Mailbox* box) noexcept nogil:
    """Wake the worker if it sleeps; after the round's one fence (reply-wake)."""
    if load_relaxed(&box.waiting):              # the round's fence orders it
        futex_wake(&box.rep_seq, 1)
