"""Ties a child's life to its parent's, by the kernel: no timer, no polling."""

import errno
import os
import signal
import sys

cdef extern from *:
    """
    #if defined(__linux__)
    #include <sys/prctl.h>
    static inline int die_with(int signal_number) { return prctl(PR_SET_PDEATHSIG, signal_number); }
    #else
    static inline int die_with(int) { return 0; }
    #endif
    """
    int die_with(int signal_number) nogil


def die_with_parent(int expected_parent_pid):
    """SIGKILL this process when its parent ends. Call first thing in a child.

    The signal comes when the *thread* that started this process ends, so start children from a
    thread that lives as long as the parent. If the parent is gone already, exit now: the request
    came too late to be noticed.
    """
    if sys.platform != "linux":
        return
    if die_with(int(signal.SIGKILL)) != 0:
        raise OSError(errno.EPERM, "prctl(PR_SET_PDEATHSIG) was refused by the system")
    if os.getppid() != expected_parent_pid:
        os._exit(1)


def pidfd_open(int pid):
    """Descriptor that becomes readable when process pid ends; immune to reused pids.

    OSError (ENOSYS or EPERM) where kernel or container has none: poll waitpid there.
    """
    if not hasattr(os, "pidfd_open"):
        raise OSError(errno.ENOSYS, f"pidfd_open needs Linux 5.3 or later, this is {sys.platform}")
    return os.pidfd_open(pid)
