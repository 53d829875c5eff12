"""What a process tells about itself: heartbeat, counters, histograms, events; and the stop word.

One record per process: the process writes, anyone reads, nobody waits. The control block has one
writer, the supervisor. A Python call costs about 0.1 us, the store behind it 3 ns. For a trace
every thread has a track of its own: what it observes is then written there too.
"""

from collections.abc import Iterable

from typing_extensions import Buffer

CONTROL_BYTES: int
EVENT_BYTES: int
"""Bytes of an event: t0_ns, duration_ns, value (u64), kind, reserved (u32)."""
N_BUCKETS: int
"""Buckets of a histogram: 0..7 exactly, then 8 to each doubling up to 2**64."""
OFFSETS: dict[str, dict[str, tuple[int, int]]]

def now_ns() -> int:
    """CLOCK_MONOTONIC in ns, comparable between processes; read from the time-stamp counter where
    that is steady (within some tens of ns), by system clock elsewhere."""

def bucket_of(value: int) -> int:
    """Bucket of a value in [0, 2**64)."""

def bucket_upper(i: int) -> int:
    """Largest value of bucket i, at most 12.5 % above its smallest. IndexError."""

def record_bytes(n_counters: int, n_hists: int) -> int:
    """Bytes of a record: a line, the counters, 4 KiB per histogram."""

def track_bytes(n_events: int) -> int:
    """Bytes of a track with room for n_events."""

class Track:
    """A thread's events over track_bytes(n) zeroed bytes. The thread writes, anyone reads.

    A successor of a killed writer goes on after the last published event. ValueError when the bytes
    hold no event.
    """

    def __init__(self, buf: Buffer) -> None: ...
    @property
    def buffer(self) -> memoryview:
        """The bytes."""
    @property
    def capacity(self) -> int:
        """Events it has room for."""
    @property
    def dropped(self) -> int:
        """Events that found no room."""
    def append(self, kind: int, t0_ns: int, duration_ns: int, value: int) -> None:
        """Write one event, or count it as dropped when there is no room. The writer's alone."""
    def events(self) -> bytes:
        """Copy of all published events, oldest end first, EVENT_BYTES each."""

class Control:
    """The run's stop word and trace window, CONTROL_BYTES bytes. The supervisor writes.

    stop: 0 runs, anything else ends every wait at once.
    """

    def __init__(self, buf: Buffer) -> None: ...
    @property
    def buffer(self) -> memoryview:
        """The bytes, to hand to Doorbell, RingWriter, SlotClient and SlotServer."""
    @property
    def stop(self) -> int:
        """The word. Setting it is the supervisor's; call wake() after."""
    @stop.setter
    def stop(self, value: int) -> None: ...
    @property
    def trace_window(self) -> tuple[int, int]:
        """Begin and end in ns (of now_ns); (0, 0) before it is open."""
    def open_trace(self, begin_ns: int, end_ns: int) -> None:
        """Let every thread that has a track write what happens in between. Once; ValueError."""
    def wake(self, bells: Iterable[Buffer]) -> None:
        """Wake the sleepers of these doorbells (their buffers) so that they see stop at once.

        Who sleeps elsewhere (for a reply, for a free slot) sees it within 100 ms.
        """

class Record:
    """A record over record_bytes(n_counters, n_hists) zeroed bytes. Writer: one process.

    Raises ValueError when the bytes are too few, IndexError for a number out of range.
    """

    def __init__(self, buf: Buffer, n_counters: int, n_hists: int) -> None: ...
    @property
    def buffer(self) -> memoryview:
        """The bytes."""
    @property
    def n_counters(self) -> int:
        """Counters, u64 each."""
    @property
    def n_hists(self) -> int:
        """Histograms."""
    def trace_into(self, track: Track, control: Buffer) -> None:
        """Write events into a track of the calling thread, whose this object is from now on, while
        the control block's trace window is open."""
    @property
    def tracing(self) -> bool:
        """True while events are written. False without trace_into."""
    def mark(self, kind: int, value: int) -> None:
        """Event of no duration, now; not counted in a histogram. Nothing outside of the window."""
    def span(self, kind: int, t0_ns: int, value: int) -> None:
        """Event from t0_ns to now; not counted in a histogram. Nothing outside of the window."""
    def set(self, i: int, value: int) -> None:
        """Set counter i."""
    def add(self, i: int, n: int) -> None:
        """Add n to counter i."""
    def get(self, i: int) -> int:
        """Counter i; any process. What its writer wrote before setting it is visible after."""
    def observe(self, h: int, value_ns: int) -> None:
        """Count a duration in histogram h."""
    def observe_since(self, h: int, t0_ns: int, value: int = 0) -> int:
        """Count the time since t0_ns (of now_ns) in histogram h; returns now, the next t0.

        An event of kind h with this value when it touches the trace window.
        """
    def counts(self, h: int) -> bytes:
        """Copy of histogram h: N_BUCKETS native u64. np.frombuffer(counts, np.uint64)."""
    def sum_ns(self, h: int) -> int:
        """Sum of all durations in histogram h."""
    def max_ns(self, h: int) -> int:
        """Longest duration in histogram h."""
    def heartbeat(self, stage: int) -> None:
        """Say "alive, in this stage"."""
    @property
    def heartbeat_ns(self) -> int:
        """now_ns of the last heartbeat; 0 before the first."""
    @property
    def stage(self) -> int:
        """Stage of the last heartbeat."""
