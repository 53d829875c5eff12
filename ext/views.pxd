"""From a Python buffer to the bytes of a shared struct, checked."""

from cpython.memoryview cimport PyMemoryView_GET_BUFFER
from libc.stdint cimport uint8_t, uintptr_t


cdef inline object bytes_of(object buffer, str what):
    """A writable, contiguous memoryview of bytes over buffer; keeping it keeps the memory."""
    view = memoryview(buffer)
    if view.readonly or not view.c_contiguous:
        raise ValueError(f"{what}: needs a writable contiguous buffer")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


cdef inline uint8_t* address_of(object view, size_t nbytes, str what) except NULL:
    """First byte of a view of at least nbytes bytes, on a 128-byte line.

    Words of different writers lie 128 bytes apart: the prefetcher of Intel cores pairs 64-byte
    lines and some ARM cores have lines of 128, so a smaller gap would let two writers collide.
    """
    cdef uint8_t* first = <uint8_t*>PyMemoryView_GET_BUFFER(view).buf
    if view.nbytes < nbytes:
        raise ValueError(f"{what}: {view.nbytes} bytes are too few, it needs {nbytes}")
    if <uintptr_t>first % 128:
        raise ValueError(f"{what}: the buffer must begin on a 128-byte line; "
                         "take it from a Segment section")
    return first


cdef inline size_t round_up(size_t n, size_t multiple) noexcept nogil:
    return (n + multiple - 1) // multiple * multiple
