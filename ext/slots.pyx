"""Stage 8 of 8, `act`, and the way to stage 7: observations to the inference server, actions back.

Rows lie [group][worker][env]: a worker writes its envs' observations where the server's batch
already is, so with all workers of a group ready a forward needs no copy. A worker writes its own
observation rows, the server writes action rows, and a number per slot hands them over.
A slot's id is group * workers + worker.
"""

from atomics cimport TP, fence_seq_cst, load_relaxed, monotonic_ns, now_ns, offsets_of, pause
from doorbell cimport (Bell, StopWord, bell_arm, bell_disarm, bell_ring, bell_sleep, deadline_after,
                       stopped)
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from mailbox cimport (Mailbox, SlotsHeader, mailbox_attach, mailbox_await, mailbox_orphaned,
                      mailbox_replied, mailbox_reply, mailbox_scan, mailbox_submit, mailbox_wake,
                      request_corrupt, rows_crc, slots_fields, slots_magic)
from views cimport address_of, bytes_of, round_up

from fdql.shm.audit import CorruptError

OFFSETS = offsets_of(slots_fields, 19)


class SlotError(RuntimeError):
    """Bytes that are no slots, a request before the last reply, a reply nobody asked for."""


cdef size_t _boxes_end(size_t slots) noexcept:
    return round_up(sizeof(SlotsHeader) + slots * sizeof(Mailbox), 4096)


def slots_bytes(workers, groups, envs, obs_bytes, action_bytes):
    """Bytes for workers x groups slots of `envs` rows. Strides: multiples of 64 and of 16."""
    if min(workers, groups, envs, obs_bytes, action_bytes) < 1:
        raise ValueError(f"slots of workers {workers}, groups {groups}, envs {envs}, obs_bytes "
                         f"{obs_bytes}, action_bytes {action_bytes}: each must be at least 1")
    rows = workers * groups * envs
    return (_boxes_end(workers * groups) + round_up(rows * round_up(obs_bytes, 64), 4096)
            + rows * round_up(action_bytes, 16))


def init_slots(buf, workers, groups, envs, obs_bytes, action_bytes, checked=False):
    """Lay out the slots in zeroed bytes, perhaps checksummed. Once, before anyone attaches."""
    view = bytes_of(buf, "slots")
    cdef SlotsHeader* header = <SlotsHeader*>address_of(
        view, slots_bytes(workers, groups, envs, obs_bytes, action_bytes), "slots")
    header.workers, header.groups, header.envs = workers, groups, envs
    header.obs_bytes, header.action_bytes = obs_bytes, action_bytes
    header.obs_stride, header.action_stride = round_up(obs_bytes, 64), round_up(action_bytes, 16)
    header.obs_offset = _boxes_end(workers * groups)
    header.actions_offset = header.obs_offset + round_up(
        workers * groups * envs * header.obs_stride, 4096)
    header.checked = checked
    header.magic = slots_magic


cdef class _Slots:
    """What both ends see: the shape of the memory."""

    cdef object view, bell_view, control_view
    cdef Mailbox* boxes
    cdef Bell* bell
    cdef StopWord* control
    cdef readonly uint32_t workers, groups, envs
    cdef readonly uint64_t obs_bytes, action_bytes, obs_stride, action_stride
    cdef uint64_t obs_offset, actions_offset
    cdef bint checked
    cdef uint8_t* memory
    cdef public uint64_t spin_ns

    cdef int open(self, buf, bell, control) except -1:
        self.view = bytes_of(buf, "slots")
        cdef SlotsHeader* header = <SlotsHeader*>address_of(self.view, sizeof(SlotsHeader), "slots")
        if header.magic != slots_magic:
            raise SlotError("not slots: init_slots has not run on these bytes")
        address_of(self.view, slots_bytes(header.workers, header.groups, header.envs,
                                          header.obs_bytes, header.action_bytes), "slots")
        self.memory = <uint8_t*>header
        self.boxes = <Mailbox*>(header + 1)
        self.checked = header.checked
        self.workers, self.groups, self.envs = header.workers, header.groups, header.envs
        self.obs_bytes, self.action_bytes = header.obs_bytes, header.action_bytes
        self.obs_stride, self.action_stride = header.obs_stride, header.action_stride
        self.obs_offset, self.actions_offset = header.obs_offset, header.actions_offset
        self.bell_view = bell.buffer
        self.bell = <Bell*>address_of(self.bell_view, sizeof(Bell), "doorbell")
        if control is not None:
            self.control_view = bytes_of(control, "control")
            self.control = <StopWord*>address_of(self.control_view, sizeof(StopWord), "control")
        return 0

    cdef uint8_t* obs_at(self, uint32_t slot) noexcept nogil:
        return self.memory + self.obs_offset + slot * self.envs * self.obs_stride

    cdef uint32_t reply_crc(self, uint32_t slot, uint32_t number) noexcept nogil:
        cdef uint64_t nbytes = self.envs * self.action_stride
        return rows_crc(number, self.memory + self.actions_offset + slot * nbytes, nbytes)

    cdef object corrupt(self, str what, uint32_t slot, uint32_t number):
        return CorruptError(f"{what} {number} of worker {slot % self.workers}, group "
                            f"{slot // self.workers}: its rows do not have its checksum")

    cdef object rows(self, uint64_t offset, uint64_t stride, uint64_t first, uint64_t n):
        return self.view[offset + first * stride:offset + (first + n) * stride]


cdef class SlotClient(_Slots):
    """One worker's end. A new client may take over from a dead one at any moment."""

    cdef readonly uint32_t worker
    cdef list numbers                  # of this client's last request, by group; None before it

    def __init__(self, buf, uint32_t worker, bell, control=None):
        self.open(buf, bell, control)
        if worker >= self.workers:
            raise IndexError(f"worker {worker}: there are {self.workers}")
        self.worker = worker
        self.numbers = [None] * self.groups
        for group in range(self.groups):
            mailbox_attach(&self.boxes[self.slot(group)])
        bell_ring(self.bell)           # before our first rows, see request_corrupt

    cdef uint32_t slot(self, uint32_t group) except? 0:
        if group >= self.groups:
            raise IndexError(f"group {group}: there are {self.groups}")
        return group * self.workers + self.worker

    def obs(self, uint32_t group):
        """This worker's rows: writable bytes, envs x obs_stride."""
        return self.rows(self.obs_offset, self.obs_stride, self.slot(group) * self.envs, self.envs)

    def actions(self, uint32_t group):
        """This worker's rows: bytes, envs x action_stride; valid after wait() said True."""
        return self.rows(self.actions_offset, self.action_stride, self.slot(group) * self.envs,
                         self.envs)

    def submit(self, uint32_t group):
        """Ask for actions for the rows now in obs(group). SlotError before the last reply came."""
        cdef uint32_t slot = self.slot(group)
        cdef Mailbox* box = &self.boxes[slot]
        cdef object last = self.numbers[group]
        if last is not None and not mailbox_replied(box, last):
            raise SlotError(f"group {group} has a request under way: wait() for its reply first")
        cdef uint32_t number = load_relaxed(&box.req_seq) + 1  # the worker's own word
        self.numbers[group] = number
        if self.checked:
            box.req_crc = rows_crc(number, self.obs_at(slot), self.envs * self.obs_stride)
        mailbox_submit(box, number, self.bell)

    def wait(self, uint32_t group, uint64_t timeout_ns):
        """True once the reply to the last submit(group) is there; spins spin_ns first."""
        cdef uint32_t slot = self.slot(group)
        cdef Mailbox* box = &self.boxes[slot]
        if self.numbers[group] is None:
            raise SlotError(f"group {group} has no request: submit() first")
        cdef uint32_t number = self.numbers[group]
        cdef uint64_t spin = self.spin_ns if self.spin_ns < timeout_ns else timeout_ns
        cdef bint there
        with nogil:
            there = mailbox_replied(box, number) or mailbox_await(
                box, number, spin, deadline_after(timeout_ns), self.control)
        if there and self.checked and box.rep_crc != self.reply_crc(slot, number):
            raise self.corrupt("reply", slot, number)
        return there

    def request_id(self, uint32_t group):
        """The last request as slot << 32 | its number: the same at both ends, once in a run."""
        return <uint64_t>self.slot(group) << 32 | <uint32_t>self.numbers[group]

    def policy_version(self, uint32_t group):
        """Version of the weights behind the last reply."""
        return load_relaxed(&self.boxes[self.slot(group)].policy_version)  # wait() acquired it


cdef class SlotServer(_Slots):
    """The inference server's end. A new server sees what is unanswered from the numbers alone."""
    cdef uint32_t* taken               # request number that collect() saw, by slot
    cdef uint32_t* given               # number of the last reply of this server, by slot
    cdef readonly uint64_t oldest_ns

    def __init__(self, buf, bell, control=None):
        self.open(buf, bell, control)
        cdef size_t i, n = self.workers * self.groups
        self.taken = <uint32_t*>calloc(2 * n, sizeof(uint32_t))
        if self.taken == NULL:
            raise MemoryError()
        self.given = self.taken + n
        for i in range(n):
            self.taken[i] = self.given[i] = load_relaxed(&self.boxes[i].rep_seq)  # ours

    def __dealloc__(self):
        free(self.taken)

    @property
    def obs(self):
        """All rows, [group][worker][env]: bytes, groups x workers x envs x obs_stride."""
        return self.rows(self.obs_offset, self.obs_stride, 0,
                         self.groups * self.workers * self.envs)

    @property
    def actions(self):
        """All rows, [group][worker][env]: writable, groups x workers x envs x action_stride."""
        return self.rows(self.actions_offset, self.action_stride, 0,
                         self.groups * self.workers * self.envs)

    cdef uint32_t scan(self, int32_t* out, uint64_t* oldest_ns) noexcept nogil:
        return mailbox_scan(self.boxes, self.workers * self.groups, out, self.taken, oldest_ns)

    def ready(self):
        """Slots that wait for a reply now."""
        cdef uint64_t oldest
        return self.scan(NULL, &oldest)

    def collect(self, int32_t[::1] out not None, uint32_t target, uint64_t dwell_ns,
                uint64_t timeout_ns):
        """Slot ids that are ready, ascending, to out (int32, groups x workers); how many."""
        if out.shape[0] < self.workers * self.groups:
            raise ValueError(f"out has room for {out.shape[0]} slots, there are "
                             f"{self.workers * self.groups}")
        cdef uint64_t deadline, oldest, until, spin_until
        cdef uint32_t n, seen, ticket
        cdef int32_t* ids = &out[0]
        with nogil:
            deadline = deadline_after(timeout_ns)
            spin_until = now_ns() + self.spin_ns if self.spin_ns else 0
            while True:
                n = self.scan(ids, &oldest)
                if n and (n >= target or now_ns() >= oldest + dwell_ns):
                    break
                if stopped(self.control) or monotonic_ns() >= deadline:
                    break
                if spin_until and now_ns() < spin_until:
                    pause()
                    continue
                ticket = bell_arm(self.bell)
                seen = n
                n = self.scan(ids, &oldest)
                if n != seen:
                    bell_disarm(self.bell)
                    continue
                until = oldest + dwell_ns if n and oldest + dwell_ns < deadline else deadline
                bell_sleep(self.bell, ticket, until, self.control)
                spin_until = now_ns() + self.spin_ns if self.spin_ns else 0
        if n:
            TP("slots.collect.taken")
            self.oldest_ns = oldest
        return n

    def request_id(self, uint32_t slot):
        """The request that collect() saw in a slot: slot << 32 | its number. Same at both ends."""
        if slot >= self.workers * self.groups:
            raise IndexError(f"slot {slot}: there are {self.workers * self.groups}")
        return <uint64_t>slot << 32 | self.taken[slot]

    def admit(self, int32_t[::1] slots not None, uint32_t n):
        """Answer at once, with nothing, those of the first n slots whose request a dead worker made
        that has a successor. How many are left; they stand first in slots, in their order."""
        cdef uint32_t i, slot, kept = 0
        cdef bint corrupt = False
        if n > slots.shape[0]:
            raise ValueError(f"n = {n}: only {slots.shape[0]} slots are given")
        for i in range(n):
            slot = <uint32_t>slots[i]
            if slot >= self.workers * self.groups:
                raise SlotError(f"slot {slots[i]}: there are {self.workers * self.groups}")
            if self.checked:
                with nogil:
                    corrupt = request_corrupt(&self.boxes[slot], self.taken[slot],
                                              self.obs_at(slot), self.envs * self.obs_stride,
                                              self.bell)
            if corrupt:
                raise self.corrupt("request", slot, self.taken[slot])
            if mailbox_orphaned(&self.boxes[slot], self.taken[slot]):
                self.given[slot] = self.taken[slot]
                mailbox_reply(&self.boxes[slot], self.taken[slot], 0)  # nobody waits: no wake
            else:
                slots[kept] = <int32_t>slot
                kept += 1
        return kept

    def reply(self, int32_t[::1] slots not None, uint32_t n, uint64_t policy_version):
        """Hand over the action rows of n slots, as collect() gave them; wake who sleeps."""
        cdef uint32_t i, slot, total = self.workers * self.groups
        if n > slots.shape[0]:
            raise ValueError(f"n = {n}: only {slots.shape[0]} slots are given")
        for i in range(n):
            slot = <uint32_t>slots[i]
            if slot >= total or self.taken[slot] == self.given[slot]:
                raise SlotError(f"slot {slots[i]} waits for no reply: only what collect() gave")
        with nogil:
            for i in range(n):
                slot = <uint32_t>slots[i]
                self.given[slot] = self.taken[slot]
                if self.checked:
                    self.boxes[slot].rep_crc = self.reply_crc(slot, self.taken[slot])
                mailbox_reply(&self.boxes[slot], self.taken[slot], policy_version)
            TP("slots.reply.before_wake")
            fence_seq_cst()                     # SYNC reply-wake: pairs with mailbox_await
            for i in range(n):
                mailbox_wake(&self.boxes[slots[i]])
