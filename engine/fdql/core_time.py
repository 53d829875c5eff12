"""How long the kernel let a thread run, and how long it was ready but had no core. Linux only.

Read by the supervisor for its children (budget.py). Where the kernel does not count it, nothing is
returned.
"""

from __future__ import annotations

from pathlib import Path

NOTHING = (0.0, 0.0)


def core_time(pid: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds (on a core, ready without one) of a process' main thread, and of its others together.

    Zeros when the process is gone or the kernel does not say.
    """
    main, others = NOTHING, NOTHING
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return main, others
    for task in tasks:
        try:
            on_core, ready, _ = (task / "schedstat").read_text().split()
        except (OSError, ValueError):
            continue  # this thread has just ended
        times = int(on_core) / 1e9, int(ready) / 1e9
        if task.name == str(pid):
            main = times
        else:
            others = others[0] + times[0], others[1] + times[1]
    return main, others
