"""Ties a child's life to its parent's, by the kernel: no timer, no polling."""

def die_with_parent(expected_parent_pid: int) -> None:
    """SIGKILL this process when its parent ends; exit at once if it has ended. No-op outside Linux.

    The signal comes when the *thread* that started this process ends: start children from a thread
    that lives as long as the parent.
    """

def pidfd_open(pid: int) -> int:
    """Descriptor that becomes readable when process pid ends; immune to reused pids.

    OSError where kernel or container has none: poll waitpid there.
    """
