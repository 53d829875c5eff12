"""Measuring and stress loops over slots, weights, doorbell, histogram, track, without the GIL.

For tests and benchmarks: nothing of the product imports this. The loops run the product's own
functions (mailbox.pxd, snapshots.pxd, ...); every word of every message is checked.
"""

from atomics cimport (atomic_u64, fence_seq_cst, load_acquire, load_relaxed, monotonic_ns, now_ns,
                      pause, store_release)
from doorbell cimport Bell, bell_arm, bell_disarm, bell_ring, bell_sleep, deadline_after
from histogram cimport Histogram, histogram_observe
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from mailbox cimport (Mailbox, SlotsHeader, mailbox_await, mailbox_ready, mailbox_reply,
                      mailbox_submit, mailbox_wake)
from snapshots cimport (WeightsHeader, buffer_at, snapshot_acquire, snapshot_publish,
                        snapshot_release)
from track cimport TrackEvent, TrackHeader, track_append, track_published
from views cimport address_of, bytes_of

cdef enum:
    SECOND = 1_000_000_000


cdef uint8_t* _at(buf) except NULL:
    return address_of(bytes_of(buf, "probe"), 1, "probe")


def slots_ask(slots, bell, uint32_t worker, uint64_t spin_ns, uint64_t n):
    """n requests of one worker, its groups in turn: (wrong replies, ns taken).

    A request's rows hold one number in every word; each word of its reply must be that number + 1.
    """
    cdef SlotsHeader* h = <SlotsHeader*>_at(slots)
    cdef Bell* server = <Bell*>_at(bell)
    cdef uint64_t i, j, message, slot, wrong = 0
    cdef uint64_t obs_words = h.envs * h.obs_stride // 8
    cdef uint64_t action_words = h.envs * h.action_stride // 8
    cdef uint64_t* obs
    cdef uint64_t* actions
    cdef Mailbox* box
    cdef uint32_t number
    cdef uint64_t start = monotonic_ns()
    with nogil:
        for i in range(n):
            slot = (i % h.groups) * h.workers + worker
            box = <Mailbox*>(h + 1) + slot
            obs = <uint64_t*>(<uint8_t*>h + h.obs_offset + slot * h.envs * h.obs_stride)
            actions = <uint64_t*>(<uint8_t*>h + h.actions_offset + slot * h.envs * h.action_stride)
            message = i << 16 | worker << 8
            for j in range(obs_words):
                obs[j] = message
            number = <uint32_t>(i // h.groups) + 1
            mailbox_submit(box, number, server)
            while not mailbox_await(box, number, spin_ns, deadline_after(SECOND), NULL):
                pass
            for j in range(action_words):
                wrong += actions[j] != message + 1
    return wrong, monotonic_ns() - start


def slots_serve(slots, bell, uint64_t spin, uint64_t n):
    """Answer n requests, looking `spin` times before each sleep; how many had torn rows."""
    cdef SlotsHeader* h = <SlotsHeader*>_at(slots)
    cdef Bell* b = <Bell*>_at(bell)
    cdef uint64_t slot, j, message, looks = 0, done = 0, found, wrong = 0
    cdef uint64_t total = <uint64_t>h.workers * h.groups
    cdef uint64_t obs_words = h.envs * h.obs_stride // 8
    cdef uint64_t action_words = h.envs * h.action_stride // 8
    cdef uint64_t* obs
    cdef uint64_t* actions
    cdef Mailbox* boxes = <Mailbox*>(h + 1)
    cdef uint32_t* replied = <uint32_t*>malloc(total * sizeof(uint32_t))
    cdef uint32_t number, ticket = 0
    cdef bint armed = False
    with nogil:
        while done < n:
            found = 0
            for slot in range(total):
                if not mailbox_ready(&boxes[slot], &number):
                    continue
                obs = <uint64_t*>(<uint8_t*>h + h.obs_offset + slot * h.envs * h.obs_stride)
                actions = <uint64_t*>(<uint8_t*>h + h.actions_offset
                                      + slot * h.envs * h.action_stride)
                message = obs[0]
                for j in range(obs_words):
                    wrong += obs[j] != message
                for j in range(action_words):
                    actions[j] = message + 1
                mailbox_reply(&boxes[slot], number, done)
                replied[found] = <uint32_t>slot
                found += 1
            done += found
            fence_seq_cst()                     # the round's fence, as SlotServer.reply has it
            for slot in range(found):
                mailbox_wake(&boxes[replied[slot]])
            if armed:
                if found:
                    bell_disarm(b)
                else:
                    bell_sleep(b, ticket, deadline_after(SECOND), NULL)
                armed, looks = False, 0
            elif found:
                looks = 0
            elif looks < spin:
                looks += 1
                pause()
            else:                               # one more look comes between arming and sleeping
                ticket = bell_arm(b)
                armed = True
    free(replied)
    return wrong


def weights_write(weights, uint64_t first, uint64_t n):
    """Publish versions first .. first + n - 1, each word of a snapshot its version; ns taken."""
    cdef WeightsHeader* h = <WeightsHeader*>_at(weights)
    cdef uint64_t i, j, words = h.nbytes // 8
    cdef uint64_t* data = <uint64_t*>malloc(h.nbytes)
    cdef bint published = True
    cdef uint64_t start = monotonic_ns()
    with nogil:
        for i in range(first, first + n):
            for j in range(words):
                data[j] = i
            published &= snapshot_publish(h, data, i)
    free(data)
    if not published:
        raise RuntimeError("no free buffer")
    return monotonic_ns() - start


def weights_read(weights, uint32_t reader, uint64_t until):
    """Acquire and check until version `until` was seen: (torn words, steps back, acquisitions)."""
    cdef WeightsHeader* h = <WeightsHeader*>_at(weights)
    cdef uint64_t latest, version = 0, last = 0, j, torn = 0, back = 0, acquired = 0
    cdef uint64_t words = h.nbytes // 8
    cdef uint64_t* data
    with nogil:
        while version < until:
            latest = snapshot_acquire(h, reader)
            version = latest >> 8
            data = <uint64_t*>buffer_at(h, latest & 0xff)
            for j in range(words):
                torn += data[j] != version
            back += version < last
            last = version
            acquired += 1
            if acquired % 2:                    # every other time the pin moves without a release
                snapshot_release(h, reader)
        snapshot_release(h, reader)
    return torn, back, acquired


def weights_acquire(weights, uint32_t reader, uint64_t n):
    """Acquire and release n times; ns taken."""
    cdef WeightsHeader* h = <WeightsHeader*>_at(weights)
    cdef uint64_t start = monotonic_ns()
    with nogil:
        for _ in range(n):
            snapshot_acquire(h, reader)
            snapshot_release(h, reader)
    return monotonic_ns() - start


def ring_bell(bell, uint64_t n):
    """Ring n times with nobody asleep; ns taken."""
    cdef Bell* b = <Bell*>_at(bell)
    cdef uint64_t start = monotonic_ns()
    with nogil:
        for _ in range(n):
            bell_ring(b)
    return monotonic_ns() - start


def observe(histogram, uint64_t n):
    """Read the clock and count the time since the last reading, n times; ns taken."""
    cdef Histogram* h = <Histogram*>_at(histogram)
    cdef uint64_t start = monotonic_ns(), last = now_ns(), now
    with nogil:
        for _ in range(n):
            now = now_ns()
            histogram_observe(h, now - last)
            last = now
    return monotonic_ns() - start


def record_write(track, histogram, counters, uint64_t capacity, uint64_t n):
    """n events into a track with room for `capacity`, each also observed, then told by counters.

    counters: two words on lines of their own; the second never runs ahead of the first.
    """
    cdef TrackHeader* t = <TrackHeader*>_at(track)
    cdef Histogram* h = <Histogram*>_at(histogram)
    cdef atomic_u64* first = <atomic_u64*>_at(counters)
    cdef atomic_u64* second = first + 16
    cdef uint64_t i
    with nogil:
        for i in range(n):
            histogram_observe(h, i % 4096)
            track_append(t, capacity, <uint32_t>i, i, i + 1, i + 2)
            store_release(first, i + 1)         # as Record.set
            store_release(second, i + 1)


def record_read(track, histogram, counters, uint64_t capacity, uint64_t n):
    """Read beside record_write until its end; how many events, counters and sums were wrong."""
    cdef TrackHeader* t = <TrackHeader*>_at(track)
    cdef Histogram* h = <Histogram*>_at(histogram)
    cdef atomic_u64* first = <atomic_u64*>_at(counters)
    cdef atomic_u64* second = first + 16
    cdef TrackEvent* event
    cdef uint64_t seen = 0, published, last = 0, done = 0, wrong = 0, counted = 0, i
    with nogil:
        while done < n:
            done = load_acquire(second)         # as Record.get
            wrong += load_acquire(first) < done
            published = track_published(t)
            wrong += published > capacity or published < seen
            while seen < published:
                event = <TrackEvent*>(t + 1) + seen
                wrong += (event.kind != <uint32_t>seen or event.t0_ns != seen
                          or event.duration_ns != seen + 1 or event.value != seen + 2)
                seen += 1
            wrong += load_relaxed(&h.max) < last
            last = load_relaxed(&h.max)
        for i in range(496):
            counted += load_relaxed(&h.counts[i])
    wrong += counted != n or seen != min(n, capacity) or load_relaxed(&t.dropped) != n - seen
    return wrong
