"""Memory from malloc for the two-thread programs: AddressSanitizer sees the bytes beyond it."""

from __future__ import annotations

import ctypes

LINE = 128  # the structures begin on such a boundary


def heap(nbytes: int) -> memoryview:
    """Zeroed bytes, exactly so many; never given back, for the program ends soon."""
    libc = ctypes.CDLL(None)
    at = ctypes.c_void_p()
    if libc.posix_memalign(ctypes.byref(at), ctypes.c_size_t(LINE), ctypes.c_size_t(nbytes)):
        raise MemoryError(nbytes)
    assert at.value is not None
    ctypes.memset(at, 0, nbytes)
    return memoryview((ctypes.c_char * nbytes).from_address(at.value)).cast("B")
