"""How every child process begins and ends: parent-death guard, signals, segment, exit codes.

`python -m fdql.proc.<role> <plan as JSON> <segment fd> <events fd> <parent pid> <role's own
words...>`
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable

from fdql.shm.guard import die_with_parent

EXIT_RAISED = 3  # something raised: the traceback went to stderr
EXIT_BAD_VALUE = 4  # NaN or inf at a door: a restart would not help
EXIT_ORPHAN = 5  # the supervisor is gone
EXIT_CORRUPT = 6  # shared memory does not hold what was written into it


def run_child(body: Callable[..., int]) -> int:
    """Attach, run `body(memory, events, words)`, and turn what it raises into an exit code."""
    plan_json, segment_fd, events_fd, parent_pid, *words = sys.argv[1:]
    die_with_parent(int(parent_pid))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the supervisor
    from fdql.config import BadValueError
    from fdql.proc.memory import Events, RunMemory, RunPlan
    from fdql.shm.audit import CorruptError

    events = Events(int(events_fd))
    try:
        memory = RunMemory.attach(RunPlan.from_json(plan_json), int(segment_fd))
        return body(memory, events, words)
    except BrokenPipeError:
        return EXIT_ORPHAN
    except Exception as error:
        traceback.print_exc()
        try:
            events.send("error", message=f"{type(error).__name__}: {error}")
        except BrokenPipeError:
            return EXIT_ORPHAN
        if isinstance(error, CorruptError):
            return EXIT_CORRUPT
        return EXIT_BAD_VALUE if isinstance(error, BadValueError) else EXIT_RAISED
