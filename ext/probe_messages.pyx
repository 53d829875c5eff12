"""Numbered, checksummed messages through every structure, without the GIL: one loop for each end.

For tests: nothing of the product imports this. The loops run the product's own functions and its
own checksums (spsc.pxd, mailbox.pxd, snapshots.pxd, track.pxd). A sender flips one bit of message
`corrupt` after its checksum was made. A receiver returns (messages, wrong ones, number of the first
wrong one); wrong is also what is lost, comes twice or out of turn.
"""

from atomics cimport atomic_u64, fence_seq_cst, load_acquire, pause, store_release
from doorbell cimport Bell, bell_arm, bell_disarm, bell_sleep, deadline_after
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from mailbox cimport (Mailbox, SlotsHeader, mailbox_attach, mailbox_await, mailbox_ready,
                      mailbox_reply, mailbox_submit, mailbox_wake, request_corrupt, rows_crc)
from snapshots cimport (WeightsHeader, buffer_at, snapshot_acquire, snapshot_corrupt, snapshot_fill,
                        snapshot_release)
from spsc cimport (ReaderEnd, RingHeader, SlotHeader, WriterEnd, chunk_crc, reader_attach,
                   reader_peek, reader_release, slot_at, writer_attach, writer_publish,
                   writer_reserve, writer_seal)
from track cimport TrackEvent, TrackHeader, track_append, track_published
from views cimport address_of, bytes_of

cdef enum:
    SPINS = 500                        # then sleep: the other side may need this very core
    SLICE = 100_000_000


cdef struct Tally:
    uint64_t messages, wrong, first


cdef void* _at(buf) except NULL:
    return address_of(bytes_of(buf, "probe"), 1, "probe")


cdef inline void count(Tally* tally, uint64_t number, bint wrong) noexcept nogil:
    tally.messages += 1
    if wrong:
        tally.wrong += 1
        if tally.wrong == 1:
            tally.first = number


cdef tuple result(Tally tally):
    return tally.messages, tally.wrong, tally.first if tally.wrong else None


cdef void sleep_until(bint (*there)(void*) noexcept nogil, void* end, Bell* bell) noexcept nogil:
    """Look a while, then sleep on the bell, until there(end)."""
    cdef uint32_t spins = 0, ticket
    while not there(end):
        spins += 1
        if spins < SPINS:
            pause()
            continue
        ticket = bell_arm(bell)
        if there(end):
            bell_disarm(bell)
        else:
            bell_sleep(bell, ticket, deadline_after(SLICE), NULL)


cdef bint has_room(void* end) noexcept nogil:
    return writer_reserve(<WriterEnd*>end) != NULL


cdef bint has_chunk(void* end) noexcept nogil:
    return reader_peek(<ReaderEnd*>end) != 0


def ring_send(ring, bell, uint64_t n, uint64_t corrupt):
    """Commit chunks 1 to n; every word of chunk i is made of i, and it has 1 + i % 3 steps."""
    cdef WriterEnd w
    cdef uint64_t i, j
    cdef uint64_t* words
    writer_attach(&w, <RingHeader*>_at(ring), <Bell*>_at(bell))
    with nogil:
        for i in range(1, n + 1):
            sleep_until(has_room, &w, &w.ring.not_full)
            words = <uint64_t*>(writer_reserve(&w) + 1)
            for j in range(w.ring.payload_bytes // 8):
                words[j] = i + j
            writer_seal(&w, 1, 1 + i % 3, i, 0)
            if i == corrupt:
                words[0] ^= 1
            writer_publish(&w, 1 + i % 3)


def ring_receive(ring, bell, uint64_t n):
    """Read n chunks: number, first step, content and checksum of each."""
    cdef ReaderEnd r
    cdef Tally tally = Tally(0, 0, 0)
    cdef SlotHeader* slot
    cdef uint64_t i
    cdef bint wrong
    cdef Bell* b = <Bell*>_at(bell)
    reader_attach(&r, <RingHeader*>_at(ring))
    with nogil:
        while tally.messages < n:
            sleep_until(has_chunk, &r, b)
            i = tally.messages + 1
            slot = slot_at(r.ring, r.tail)
            wrong = (slot.seq != i or slot.first_step != r.steps or slot.policy_version != i
                     or slot.n_steps != 1 + i % 3 or slot.crc != chunk_crc(r.ring, slot))
            count(&tally, i, wrong)
            reader_release(&r, 1)
    return result(tally)


def slots_send(slots, bell, uint32_t worker, uint64_t n, uint64_t corrupt):
    """n requests of one worker, all groups at once; a reply must have the rows of its request, each
    word one more.
    """
    cdef SlotsHeader* h = <SlotsHeader*>_at(slots)
    cdef Bell* server = <Bell*>_at(bell)
    cdef Mailbox* boxes = <Mailbox*>(h + 1)
    cdef Tally tally = Tally(0, 0, 0)
    cdef uint64_t group, slot, turn, j, sent = 0
    cdef uint64_t obs_nbytes = h.envs * h.obs_stride, action_nbytes = h.envs * h.action_stride
    cdef uint64_t* obs
    cdef uint64_t* actions
    cdef uint32_t number
    cdef bint wrong
    for group in range(h.groups):
        mailbox_attach(&boxes[group * h.workers + worker])
    with nogil:
        for turn in range(1, n // h.groups + 1):
            number = <uint32_t>turn
            for group in range(h.groups):
                slot = group * h.workers + worker
                obs = <uint64_t*>(<uint8_t*>h + h.obs_offset + slot * obs_nbytes)
                for j in range(obs_nbytes // 8):
                    obs[j] = turn << 8 | worker
                boxes[slot].req_crc = rows_crc(number, obs, obs_nbytes)
                sent += 1
                if sent == corrupt:
                    obs[0] ^= 1
                mailbox_submit(&boxes[slot], number, server)
            for group in range(h.groups):
                slot = group * h.workers + worker
                while not mailbox_await(&boxes[slot], number, 2000, deadline_after(SLICE), NULL):
                    pass
                actions = <uint64_t*>(<uint8_t*>h + h.actions_offset + slot * action_nbytes)
                wrong = boxes[slot].rep_crc != rows_crc(number, actions, action_nbytes)
                for j in range(action_nbytes // 8):
                    wrong |= actions[j] != (turn << 8 | worker) + 1
                count(&tally, turn, wrong)
    return result(tally)


def slots_receive(slots, bell, uint64_t n):
    """Answer n requests: number and checksum of each."""
    cdef SlotsHeader* h = <SlotsHeader*>_at(slots)
    cdef Bell* b = <Bell*>_at(bell)
    cdef Mailbox* boxes = <Mailbox*>(h + 1)
    cdef Tally tally = Tally(0, 0, 0)
    cdef uint64_t slot, j, total = <uint64_t>h.workers * h.groups
    cdef uint64_t obs_nbytes = h.envs * h.obs_stride, action_nbytes = h.envs * h.action_stride
    cdef uint64_t* obs
    cdef uint64_t* actions
    cdef uint32_t* last = <uint32_t*>calloc(2 * total, sizeof(uint32_t))
    cdef uint32_t* replied = last + total
    cdef uint32_t number, found, looks = 0, ticket = 0
    cdef bint armed = False
    with nogil:
        while tally.messages < n:
            found = 0
            for slot in range(total):
                if not mailbox_ready(&boxes[slot], &number):
                    continue
                obs = <uint64_t*>(<uint8_t*>h + h.obs_offset + slot * obs_nbytes)
                count(&tally, number, number != last[slot] + 1
                      or request_corrupt(&boxes[slot], number, obs, obs_nbytes, b))
                last[slot] = number
                actions = <uint64_t*>(<uint8_t*>h + h.actions_offset + slot * action_nbytes)
                for j in range(action_nbytes // 8):
                    actions[j] = obs[0] + 1
                boxes[slot].rep_crc = rows_crc(number, actions, action_nbytes)
                mailbox_reply(&boxes[slot], number, tally.messages)
                replied[found] = <uint32_t>slot
                found += 1
            fence_seq_cst()                     # the round's fence, as SlotServer.reply has it
            for slot in range(found):
                mailbox_wake(&boxes[replied[slot]])
            looks = 0 if found else looks + 1
            if armed:
                if found:
                    bell_disarm(b)
                else:
                    bell_sleep(b, ticket, deadline_after(SLICE), NULL)
                armed, looks = False, 0
            elif looks > SPINS:                 # one more look comes between arming and sleeping
                ticket = bell_arm(b)
                armed = True
            elif not found:
                pause()
    free(last)
    return result(tally)


def weights_send(weights, uint64_t n, uint64_t corrupt):
    """Publish versions 1 to n, every word of one its version; all from `corrupt` on with a wrong
    bit, for readers see only the newest.
    """
    cdef WeightsHeader* h = <WeightsHeader*>_at(weights)
    cdef uint64_t i, j, words = h.nbytes // 8
    cdef uint64_t* data = <uint64_t*>calloc(words, 8)
    cdef int b = 0
    with nogil:
        for i in range(1, n + 1):
            for j in range(words):
                data[j] = i
            b = snapshot_fill(h, data, i)
            if b < 0:
                break
            if corrupt and i >= corrupt:
                buffer_at(h, b)[0] ^= 1
            store_release(&h.latest, i << 8 | <uint64_t>b)  # as snapshot_publish does
    free(data)
    if b < 0:
        raise RuntimeError("no free buffer")


def weights_receive(weights, uint32_t reader, uint64_t until):
    """Acquire until version `until` was seen: order and checksum of every snapshot acquired."""
    cdef WeightsHeader* h = <WeightsHeader*>_at(weights)
    cdef Tally tally = Tally(0, 0, 0)
    cdef uint64_t latest, last = 0
    with nogil:
        while last < until:
            latest = snapshot_acquire(h, reader)
            if latest >> 8 == last:             # nothing new, or nothing at all yet
                pause()
                continue
            count(&tally, latest >> 8, latest >> 8 < last or snapshot_corrupt(h, latest))
            last = latest >> 8
            if tally.messages % 2:              # every other time the pin moves without a release
                snapshot_release(h, reader)
        snapshot_release(h, reader)
    return result(tally)


def counters_send(counters, uint64_t n, uint64_t corrupt):
    """Count two counters of a record up to n, the second after the first; a third is the reader's,
    which is never left far behind, or it would see nothing.
    """
    cdef atomic_u64* c = <atomic_u64*>_at(counters)
    cdef uint64_t i
    with nogil:
        for i in range(1, n + 1):
            while i > load_acquire(&c[2]) + 4096:
                pause()
            store_release(&c[0], i - 1 if corrupt and i >= corrupt else i)
            store_release(&c[1], i)


def counters_receive(counters, uint64_t until):
    """Read them in the other order until `until`: the first is never behind the second."""
    cdef atomic_u64* c = <atomic_u64*>_at(counters)
    cdef Tally tally = Tally(0, 0, 0)
    cdef uint64_t second, first, last = 0
    with nogil:
        while last < until:
            second = load_acquire(&c[1])
            first = load_acquire(&c[0])
            if second != last:
                count(&tally, second, first < second or second < last)
            last = second
            store_release(&c[2], last)
    return result(tally)


def track_send(track, uint64_t n, uint64_t corrupt):
    """Append events 1 to n."""
    cdef TrackHeader* h = <TrackHeader*>_at(track)
    cdef uint64_t i
    with nogil:
        for i in range(1, n + 1):
            track_append(h, n, <uint32_t>i, i, ~i if i != corrupt else i, i * i)


def track_receive(track, uint64_t n):
    """Read every event once it is published, until there are n."""
    cdef TrackHeader* h = <TrackHeader*>_at(track)
    cdef TrackEvent* event = <TrackEvent*>(h + 1)
    cdef Tally tally = Tally(0, 0, 0)
    cdef uint64_t i, published
    with nogil:
        while tally.messages < n:
            published = track_published(h)
            while tally.messages < published:
                i = tally.messages + 1
                count(&tally, i, event.kind != <uint32_t>i or event.t0_ns != i
                      or event.duration_ns != ~i or event.value != i * i)
                event += 1
            pause()
    return result(tally)
