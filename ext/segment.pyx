"""One block of memory for a whole run: create, populate, hand over by descriptor, attach, view.

The supervisor creates it and passes its descriptor to each child; it has no name, so nothing is
left behind when the last process is gone, however it went. All pages are taken at creation, so too
little memory is an error message at the start and never a SIGBUS an hour later. Zero bytes are a
valid first state of every structure in it. Private segments (one process) work on every system.
"""

import errno
import mmap
import os
import sys

from atomics cimport Field, atomic_u64, load_acquire, offsets_of, store_release
from libc.stdint cimport uint32_t, uint64_t
from views cimport address_of, round_up

cdef extern from *:
    """
    struct SegmentHeader {
        fdql::atomic_u64 magic;     // written last by the creator
        uint32_t abi, n_sections;
        uint64_t layout_hash, total_bytes;
        uint8_t reserved[32];
    };
    struct SectionEntry { uint32_t kind, index; uint64_t offset, nbytes, reserved; };
    static_assert(sizeof(SegmentHeader) == 64 && sizeof(SectionEntry) == 32);
    static const fdql::Field segment_fields[] = {
        FDQL_FIELD(SegmentHeader, magic, 0), FDQL_FIELD(SegmentHeader, abi, 8),
        FDQL_FIELD(SegmentHeader, n_sections, 12), FDQL_FIELD(SegmentHeader, layout_hash, 16),
        FDQL_FIELD(SegmentHeader, total_bytes, 24),
        FDQL_FIELD(SectionEntry, kind, 0), FDQL_FIELD(SectionEntry, index, 4),
        FDQL_FIELD(SectionEntry, offset, 8), FDQL_FIELD(SectionEntry, nbytes, 16),
    };
    constexpr uint64_t segment_magic = 0x6664716c5f736567;  // "fdql_seg"
    #ifndef FDQL_FLAGS
    #define FDQL_FLAGS "flags that nobody noted"
    #endif
    """
    cdef cppclass SegmentHeader nogil:
        atomic_u64 magic
        uint32_t abi, n_sections
        uint64_t layout_hash, total_bytes
    cdef struct SectionEntry:
        uint32_t kind, index
        uint64_t offset, nbytes
    const Field segment_fields[9]
    const uint64_t segment_magic
    const char* FDQL_FLAGS

OFFSETS = offsets_of(segment_fields, 9)
ABI = 1
PAGE = 4096
_LESS = "fewer workers, smaller rings or a shorter trace need less"


class SegmentError(RuntimeError):
    """The memory is not what this process expects: another version, another layout, cut short."""


def build_flags():
    """The compiler flags that this extension was built with."""
    return FDQL_FLAGS.decode()


def _mib(nbytes):
    return f"{nbytes / 2**20:.1f} MiB"


def _available():
    """Bytes that can still be taken, by the system's and the container's own account."""
    rooms = [1 << 62]
    try:
        with open("/proc/meminfo") as file:
            rooms += [int(line.split()[1]) << 10 for line in file if line.startswith("MemAvail")]
        with open("/sys/fs/cgroup/memory.max") as limit:
            with open("/sys/fs/cgroup/memory.current") as used:
                rooms.append(int(limit.read()) - int(used.read()))
    except (OSError, ValueError):                # no such account, or "max": no limit
        pass
    return min(rooms)


def _populate(memory, nbytes):
    """Take every page now. An old kernel (before 5.14) has no call for it: touch them instead."""
    try:
        memory.madvise(23)                       # MADV_POPULATE_WRITE
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EFAULT):
            raise
        for at in range(0, nbytes, PAGE):
            memory[at] = 0


def nameless():
    """(descriptor of memory without a name, whether it can be sealed): a memfd, or where the system
    refuses it (a container's filter) a file in /dev/shm whose name is gone at once."""
    if hasattr(os, "memfd_create"):
        try:
            fd = os.memfd_create("fdql", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.fchmod(fd, 0o600)                 # for who finds it under /proc: it begins as 0777
            return fd, True
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
                raise
    try:
        import tempfile

        fd, name = tempfile.mkstemp(prefix="fdql-", dir="/dev/shm")
        os.unlink(name)
        return fd, False
    except OSError as error:
        raise OSError(errno.ENOSYS, "shared memory needs Linux with memfd_create or a /dev/shm "
                      f"to write to ({error}); serial mode works here: --serial") from None


def _map_shared(nbytes):
    import fcntl

    # A memfd has no limit of its own: past the memory's end the kernel kills instead of refusing.
    if nbytes > _available():
        raise OSError(errno.ENOMEM, f"cannot take {_mib(nbytes)} of shared memory: "
                      f"{_mib(_available())} are free; {_LESS}")
    fd, sealable = nameless()
    try:
        os.posix_fallocate(fd, 0, nbytes)
        memory = mmap.mmap(fd, nbytes)
        _populate(memory, nbytes)
        if sealable:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS,
                        fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError as error:
        os.close(fd)
        where = "shared memory" if sealable else "/dev/shm"
        raise OSError(error.errno, f"cannot take {_mib(nbytes)} of {where}: "
                      f"{os.strerror(error.errno)}; {_LESS}")
    return fd, memory


def _not_for_forks(memory):
    """A process that this one forks does not see the memory: two of one role would tear it. Where
    an environment forks and both go on, the copy ends at its first look (SIGSEGV)."""
    if hasattr(mmap, "MADV_DONTFORK"):
        memory.madvise(mmap.MADV_DONTFORK)


def _map_private(nbytes):
    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, nbytes)
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"cannot take {_mib(nbytes)} of memory: {error}") from None


cdef class Segment:
    """Made by Segment.create or Segment.attach, never directly."""

    cdef object memory
    cdef dict sections
    cdef readonly int fd
    cdef readonly Py_ssize_t nbytes

    @staticmethod
    def create(sections, layout_hash, *, shared=True):
        """sections: (kind, index, nbytes) each, of distinct (kind, index). All bytes zero."""
        table, end = {}, round_up(64 + 32 * len(sections), PAGE)
        for kind, index, nbytes in sections:
            if nbytes <= 0 or (kind, index) in table:
                raise ValueError(f"section (kind {kind}, index {index}) of {nbytes} bytes: each "
                                 "(kind, index) stands once and is not empty")
            table[kind, index] = (end, nbytes)
            end = end + round_up(nbytes, PAGE)
        cdef Segment self = Segment.__new__(Segment)
        self.fd, self.memory = _map_shared(end) if shared else (-1, _map_private(end))
        self.nbytes, self.sections = end, table
        view = memoryview(self.memory)
        cdef SegmentHeader* header = <SegmentHeader*>address_of(view, 64, "segment")
        cdef SectionEntry* entry = <SectionEntry*>(<char*>header + 64)
        for (kind, index), (offset, nbytes) in table.items():
            entry.kind, entry.index, entry.offset, entry.nbytes = kind, index, offset, nbytes
            entry += 1
        header.abi, header.n_sections = ABI, len(table)
        header.layout_hash, header.total_bytes = layout_hash, end
        store_release(&header.magic, segment_magic)  # SYNC segment-ready: pairs with attach
        return self

    @staticmethod
    def attach(fd, layout_hash):
        """Map the segment behind fd, which then belongs to this object."""
        cdef Segment self = Segment.__new__(Segment)
        nbytes = os.fstat(fd).st_size
        if nbytes < PAGE:
            raise SegmentError(f"descriptor {fd} holds {nbytes} bytes: not a segment")
        memory = mmap.mmap(fd, nbytes)
        _not_for_forks(memory)
        view = memoryview(memory)
        cdef SegmentHeader* header = <SegmentHeader*>address_of(view, PAGE, "segment")
        # SYNC segment-ready: pairs with the release in create
        if load_acquire(&header.magic) != segment_magic:
            raise SegmentError(f"descriptor {fd} is not a segment, or it is not finished")
        for name, there, here in (("abi", header.abi, ABI),
                                  ("layout hash", header.layout_hash, layout_hash),
                                  ("size", header.total_bytes, nbytes)):
            if there != here:
                raise SegmentError(f"segment behind descriptor {fd}: {name} is {there:#x}, this "
                                   f"process expects {here:#x}; both must run the same fdql")
        cdef SectionEntry* entry = <SectionEntry*>(<char*>header + 64)
        self.sections = {}
        for _ in range(header.n_sections):
            self.sections[entry.kind, entry.index] = (entry.offset, entry.nbytes)
            entry += 1
        self.memory, self.fd, self.nbytes = memory, fd, nbytes
        return self

    def __cinit__(self):
        self.fd = -1

    def section(self, kind, index):
        """Writable view of one section's bytes. KeyError names what there is."""
        if self.memory is None:
            raise ValueError("the segment is closed")
        try:
            offset, nbytes = self.sections[kind, index]
        except KeyError:
            raise KeyError(f"no section (kind {kind}, index {index}); there are "
                           f"{sorted(self.sections)}") from None
        return memoryview(self.memory)[offset:offset + nbytes]

    def close(self):
        """Give up descriptor and mapping; the mapping lives on until its last view is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.memory is not None:
            memory, self.memory = self.memory, None
            try:
                memory.close()
            except BufferError:                  # a view is alive and keeps the mapping
                pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)
