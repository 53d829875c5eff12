"""How every child process begins and ends: parent-death guard, signals, segment, exit codes.

`python -m fdql.proc.<role> <segment fd> <events fd> <parent pid> <role's own words...>`, with the
plan as JSON in standard input.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
import traceback
from collections.abc import Callable

from fdql.shm.guard import die_with_parent

EXIT_RAISED = 3  # something raised: the traceback went to stderr
EXIT_BAD_VALUE = 4  # NaN or inf at a door: a restart would not help
EXIT_ORPHAN = 5  # the supervisor is gone
EXIT_CORRUPT = 6  # shared memory does not hold what was written into it
EXIT_LINE_LOST = 7  # the descriptor of the events is closed, or another file's
MESSAGE = 4000  # characters of an exception's that are passed on; the traceback has the rest


def run_child(body: Callable[..., int]) -> int:
    """Attach, run `body(memory, events, words)`, and turn what it raises into an exit code."""
    segment_fd, events_fd, parent_pid, *words = sys.argv[1:]
    die_with_parent(int(parent_pid))
    faulthandler.enable()  # where native code gave up, in Python's frames, into log.txt
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the supervisor
    from fdql.config import BadValueError
    from fdql.proc.events import Events, LineLostError
    from fdql.proc.memory import RunMemory, RunPlan
    from fdql.shm.audit import CorruptError

    events = Events(int(events_fd))
    try:
        plan = sys.stdin.buffer.read().decode("utf-8")  # at its end from here on, like /dev/null
        memory = RunMemory.attach(RunPlan.from_json(plan), int(segment_fd))
        return body(memory, events, words)
    except BrokenPipeError:
        return EXIT_ORPHAN
    except LineLostError:
        return EXIT_LINE_LOST
    except Exception as error:
        with contextlib.suppress(OSError):  # standard error may be closed
            traceback.print_exc()
        bad_value = isinstance(error, BadValueError)  # then the message says it all
        name = "" if bad_value else f"{type(error).__name__}: "
        try:
            events.send("error", message=f"{name}{error}".removesuffix(": ")[:MESSAGE])
        except BrokenPipeError:
            return EXIT_ORPHAN
        except LineLostError:
            return EXIT_LINE_LOST
        if isinstance(error, CorruptError):
            return EXIT_CORRUPT
        return EXIT_BAD_VALUE if bad_value else EXIT_RAISED
