"""Stage 6 of 8, `publish`: weight snapshots from the trainer to inference and evaluator.

The writer never waits for readers and readers never see a snapshot change (snapshots.pxd).
A snapshot is read in place: acquire() pins it, release() lets it go.
"""

from atomics cimport load_relaxed, offsets_of
from cpython.buffer cimport (PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer)
from libc.stdint cimport uint32_t, uint64_t
from snapshots cimport (Pin, SnapshotSeal, WeightsHeader, seal_of, snapshot_acquire,
                        snapshot_corrupt, snapshot_publish, snapshot_release, weights_fields,
                        weights_magic)
from views cimport address_of, bytes_of, round_up

from fdql.shm.audit import CorruptError

OFFSETS = offsets_of(weights_fields, 10)
MAX_READERS = 253                      # the buffer's number has 8 bits


class WeightsError(RuntimeError):
    """Bytes that are no weights, or a version that does not grow."""


cdef size_t _stride(size_t nbytes, bint checked) noexcept:
    return round_up(round_up(nbytes, 16) + sizeof(SnapshotSeal) if checked else nbytes, 4096)


def weights_bytes(readers, nbytes, checked=False):
    """Bytes for readers + 2 buffers of nbytes each."""
    if not 1 <= readers <= MAX_READERS or nbytes < 1:
        raise ValueError(f"weights for {readers} readers, {nbytes} bytes: needs 1 to {MAX_READERS} "
                         "readers and at least 1 byte")
    return (round_up(sizeof(WeightsHeader) + readers * sizeof(Pin), 4096)
            + (readers + 2) * _stride(nbytes, checked))


def init_weights(buf, readers, nbytes, checked=False):
    """Lay out the snapshots in zeroed bytes. Once, by the creator, before anyone attaches.

    checked: every snapshot carries a checksum, which readers verify.
    """
    view = bytes_of(buf, "weights")
    cdef WeightsHeader* header = <WeightsHeader*>address_of(
        view, weights_bytes(readers, nbytes, checked), "weights")
    header.readers, header.nbytes, header.checked = readers, nbytes, checked
    header.buffers_offset = round_up(sizeof(WeightsHeader) + readers * sizeof(Pin), 4096)
    header.stride = _stride(nbytes, checked)
    header.magic = weights_magic


cdef WeightsHeader* _open(object view) except NULL:
    cdef WeightsHeader* header = <WeightsHeader*>address_of(view, sizeof(WeightsHeader), "weights")
    if header.magic != weights_magic:
        raise WeightsError("not weights: init_weights has not run on these bytes")
    address_of(view, weights_bytes(header.readers, header.nbytes, header.checked), "weights")
    return header


cdef class WeightsWriter:
    """The one writer. A successor of a dead writer goes on from the latest version."""

    cdef object view
    cdef WeightsHeader* header

    def __init__(self, buf):
        self.view = bytes_of(buf, "weights")
        self.header = _open(self.view)

    @property
    def nbytes(self):
        """Bytes of a snapshot."""
        return self.header.nbytes

    @property
    def version(self):
        """Latest version published; 0 before the first."""
        return load_relaxed(&self.header.latest) >> 8  # ours

    def publish(self, data, uint64_t version):
        """Copy a contiguous buffer of nbytes bytes and make it the latest. Versions grow."""
        if not self.version < version < 1 << 56:
            raise WeightsError(f"version {version} does not follow {self.version}: versions grow "
                               "and stay below 2**56")
        cdef Py_buffer source
        cdef bint done
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            if <uint64_t>source.len != self.header.nbytes:
                raise ValueError(f"{source.len} bytes given, a snapshot has {self.header.nbytes}")
            with nogil:
                done = snapshot_publish(self.header, source.buf, version)
        finally:
            PyBuffer_Release(&source)
        if not done:
            raise WeightsError("no free buffer: two writers, or overwritten memory")


cdef class WeightsReader:
    """One reader of its own number; at most one process uses a number at a time."""

    cdef object view
    cdef list snapshots
    cdef WeightsHeader* header
    cdef readonly uint32_t reader

    def __init__(self, buf, uint32_t reader):
        self.view = bytes_of(buf, "weights")
        self.header = _open(self.view)
        if reader >= self.header.readers:
            raise IndexError(f"reader {reader}: there are {self.header.readers}")
        self.reader = reader
        cdef uint64_t at = self.header.buffers_offset
        readonly = self.view.toreadonly()
        self.snapshots = []
        for _ in range(int(self.header.readers) + 2):
            self.snapshots.append(readonly[at:at + self.header.nbytes])
            at += self.header.stride

    @property
    def nbytes(self):
        """Bytes of a snapshot."""
        return self.header.nbytes

    @property
    def latest(self):
        """Latest version published, without pinning it; 0 before the first."""
        return load_relaxed(&self.header.latest) >> 8  # only a hint: acquire() looks again

    def acquire(self):
        """(version, bytes) of the latest snapshot, pinned: unchanged until release() or acquire().

        Version 0, zero bytes, before the first publication. CorruptError when weights are checked
        and the snapshot is not the one that was published.
        """
        cdef uint64_t latest = snapshot_acquire(self.header, self.reader)
        cdef bint corrupt = False
        cdef SnapshotSeal* seal = seal_of(self.header, latest & 0xff)
        if self.header.checked and latest:
            with nogil:
                corrupt = snapshot_corrupt(self.header, latest)
        if corrupt:
            raise CorruptError(
                f"snapshot {latest >> 8} of the trainer, buffer {latest & 0xff}, read by reader "
                f"{self.reader}: its seal says version {seal.version}, checksum {seal.crc:#010x}, "
                "and that is not what the bytes have")
        return latest >> 8, self.snapshots[latest & 0xff]

    def release(self):
        """Let go of the pinned snapshot. Its bytes may change from now on."""
        snapshot_release(self.header, self.reader)


def clear_pin(buf, uint32_t reader):
    """Free the pin of a dead reader. Only after it was reaped."""
    view = bytes_of(buf, "weights")
    cdef WeightsHeader* header = _open(view)
    if reader >= header.readers:
        raise IndexError(f"reader {reader}: there are {header.readers}")
    snapshot_release(header, reader)
