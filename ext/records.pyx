"""What a process tells about itself: heartbeat, stage, counters, histograms; and the stop word.

One record per process: the process writes, the supervisor reads. Nothing waits on a record. The
control block has one writer, the supervisor; every wait of every process looks at its stop word.
What a record observes goes into a track as well, one per thread, while a trace is being taken.
"""

from atomics cimport (TP, Field, atomic_u32, atomic_u64, load_acquire, load_relaxed, offsets_of,
                      store_relaxed, store_release)
from atomics cimport now_ns as clock_ns
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from doorbell cimport Bell, StopWord, bell_wake, stop_fields
from histogram cimport (Histogram, bucket_index, bucket_limit, histogram_fields, histogram_observe,
                        n_buckets)
from libc.stdint cimport uint32_t, uint64_t
from track cimport TrackEvent, TrackHeader, track_append, track_fields, track_published
from views cimport address_of, bytes_of, round_up

cdef extern from *:
    """
    struct RecordHeader {
        fdql::atomic_u64 heartbeat_ns;
        fdql::atomic_u32 stage;
        uint8_t reserved[116];
    };
    static_assert(sizeof(RecordHeader) == 128);
    static const fdql::Field record_fields[] = {
        FDQL_FIELD(RecordHeader, heartbeat_ns, 0), FDQL_FIELD(RecordHeader, stage, 8),
    };
    """
    cdef cppclass RecordHeader nogil:
        atomic_u64 heartbeat_ns
        atomic_u32 stage
    const Field record_fields[2]

OFFSETS = {**offsets_of(record_fields, 2), **offsets_of(histogram_fields, 3),
           **offsets_of(stop_fields, 3), **offsets_of(track_fields, 6)}
CONTROL_BYTES = sizeof(StopWord)
EVENT_BYTES = sizeof(TrackEvent)
N_BUCKETS = n_buckets


def now_ns():
    """CLOCK_MONOTONIC in ns, the same in all processes, by the time-stamp counter where steady."""
    return clock_ns()


def bucket_of(uint64_t value):
    """Bucket of a value, 0 <= bucket < N_BUCKETS."""
    return bucket_index(value)


def bucket_upper(unsigned i):
    """Largest value of bucket i."""
    if i >= n_buckets:
        raise IndexError(f"bucket {i}: there are {n_buckets}")
    return bucket_limit(i)


cdef class Control:
    """The run's stop word (0 runs, anything else ends every wait) and the window of its trace."""

    cdef readonly object buffer
    cdef StopWord* word

    def __init__(self, buf):
        self.buffer = bytes_of(buf, "control")
        self.word = <StopWord*>address_of(self.buffer, sizeof(StopWord), "control")

    @property
    def stop(self):
        return load_acquire(&self.word.stop)     # SYNC stop: pairs with the release in Control.stop

    @stop.setter
    def stop(self, uint32_t value):
        store_release(&self.word.stop, value)    # SYNC stop: pairs with the acquire in stopped

    @property
    def trace_window(self):
        """(begin, end) in ns; (0, 0) before it is open."""
        # SYNC trace-window: pairs with the release in open_trace
        begin = load_acquire(&self.word.trace_begin_ns)
        return begin, load_relaxed(&self.word.trace_end_ns) if begin else 0

    def open_trace(self, uint64_t begin_ns, uint64_t end_ns):
        """Let every thread with a track write what happens between these times. Once."""
        if not 0 < begin_ns < end_ns or load_relaxed(&self.word.trace_begin_ns):
            raise ValueError(f"trace from {begin_ns} to {end_ns}: must be later than 0, end after "
                             "it begins, and be opened once")
        store_relaxed(&self.word.trace_end_ns, end_ns)       # ordered by the release below
        # SYNC trace-window: pairs with the acquire in Record
        store_release(&self.word.trace_begin_ns, begin_ns)

    def wake(self, bells):
        """Wake the sleepers of these doorbells (their buffers), so that they see stop at once."""
        for bell in bells:
            view = bytes_of(bell, "doorbell")
            bell_wake(<Bell*>address_of(view, sizeof(Bell), "doorbell"))


def track_bytes(uint64_t n_events):
    """Bytes of a track with room for n_events."""
    return sizeof(TrackHeader) + n_events * sizeof(TrackEvent)


cdef class Track:
    """The events of one thread, which writes; anyone reads what it has published."""

    cdef readonly object buffer
    cdef readonly uint64_t capacity
    cdef TrackHeader* header

    def __init__(self, buf):
        self.buffer = bytes_of(buf, "track")
        self.header = <TrackHeader*>address_of(self.buffer, track_bytes(1), "track")
        self.capacity = (self.buffer.nbytes - sizeof(TrackHeader)) // sizeof(TrackEvent)

    def append(self, uint32_t kind, uint64_t t0_ns, uint64_t duration_ns, uint64_t value):
        """Write one event, window or not; the writer's alone."""
        track_append(self.header, self.capacity, kind, t0_ns, duration_ns, value)

    @property
    def dropped(self):
        return load_relaxed(&self.header.dropped)   # monitoring only

    def events(self):
        """Copy of all published events: EVENT_BYTES each."""
        cdef uint64_t n = track_published(self.header)
        return bytes(self.buffer[sizeof(TrackHeader):sizeof(TrackHeader) + n * sizeof(TrackEvent)])


def record_bytes(uint32_t n_counters, uint32_t n_hists):
    """Bytes of a record. 4 KiB per histogram."""
    return (sizeof(RecordHeader) + round_up(8 * n_counters, 128)
            + n_hists * sizeof(Histogram))


cdef class Record:
    """One process writes; anyone reads. Every method below is a few plain loads and stores."""

    cdef readonly object buffer
    cdef readonly uint32_t n_counters, n_hists
    cdef RecordHeader* header
    cdef atomic_u64* counters
    cdef Histogram* histograms
    cdef Track track                   # None, and trace_control NULL: no trace was asked for
    cdef object control_view
    cdef StopWord* trace_control

    def __init__(self, buf, uint32_t n_counters, uint32_t n_hists):
        self.buffer = bytes_of(buf, "record")
        self.header = <RecordHeader*>address_of(
            self.buffer, record_bytes(n_counters, n_hists), "record")
        self.n_counters, self.n_hists = n_counters, n_hists
        self.counters = <atomic_u64*>(self.header + 1)
        self.histograms = <Histogram*>(<char*>self.counters + round_up(8 * self.n_counters, 128))

    cdef atomic_u64* _counter(self, uint32_t i) except NULL:
        if i >= self.n_counters:
            raise IndexError(f"counter {i}: there are {self.n_counters}")
        return &self.counters[i]

    cdef Histogram* _histogram(self, uint32_t h) except NULL:
        if h >= self.n_hists:
            raise IndexError(f"histogram {h}: there are {self.n_hists}")
        return &self.histograms[h]

    def trace_into(self, Track track not None, control):
        """Write what is observed into a track too while control's trace window is open.

        The track is the calling thread's, and so is this object from now on.
        """
        self.control_view = bytes_of(control, "control")
        self.track = track
        self.trace_control = <StopWord*>address_of(self.control_view, sizeof(StopWord), "control")

    @property
    def tracing(self):
        """True while events are written: to be asked before work that only a trace needs."""
        if self.trace_control == NULL:
            return False
        cdef uint64_t now = clock_ns()
        return self._in_window(now, now)

    cdef bint _in_window(self, uint64_t t0_ns, uint64_t now_ns) noexcept nogil:
        """True when the time from t0_ns to now_ns touches the window. Needs trace_control."""
        # SYNC trace-window: pairs with the release in Control.open_trace
        cdef uint64_t begin = load_acquire(&self.trace_control.trace_begin_ns)
        # begin's acquire ordered the end
        return (begin != 0 and now_ns >= begin
                and t0_ns < load_relaxed(&self.trace_control.trace_end_ns))

    cdef void _event(self, uint32_t kind, uint64_t t0_ns, uint64_t now, uint64_t value) noexcept:
        if self._in_window(t0_ns, now):
            track_append(self.track.header, self.track.capacity, kind, t0_ns, now - t0_ns, value)

    def mark(self, uint32_t kind, uint64_t value):
        """Write a moment into the track; nothing is counted."""
        cdef uint64_t now
        if self.trace_control != NULL:
            now = clock_ns()
            self._event(kind, now, now, value)

    def span(self, uint32_t kind, uint64_t t0_ns, uint64_t value):
        """Write the time since t0_ns into the track; nothing is counted."""
        cdef uint64_t now
        if self.trace_control != NULL:
            now = clock_ns()
            self._event(kind, t0_ns if t0_ns < now else now, now, value)

    def set(self, uint32_t i, uint64_t value):
        TP("record.set.before_store")
        store_release(self._counter(i), value)   # SYNC counter: pairs with Record.get

    def add(self, uint32_t i, uint64_t n):
        cdef atomic_u64* counter = self._counter(i)
        TP("record.add.before_store")
        # ours: no other process writes it
        store_release(counter, load_relaxed(counter) + n)  # SYNC counter: pairs with Record.get

    def get(self, uint32_t i):
        return load_acquire(self._counter(i))    # SYNC counter: pairs with Record.set

    def observe(self, uint32_t h, uint64_t value_ns):
        histogram_observe(self._histogram(h), value_ns)

    def observe_since(self, uint32_t h, uint64_t t0_ns, uint64_t value=0):
        """Observe the time since t0_ns and return the present, the next stage's t0.

        In a trace the event carries the value.
        """
        cdef uint64_t now = clock_ns()
        cdef uint64_t start = t0_ns if t0_ns < now else now
        histogram_observe(self._histogram(h), now - start)
        if self.trace_control != NULL:
            self._event(h, start, now, value)
        return now

    def counts(self, uint32_t h):
        """Copy of a histogram's N_BUCKETS counts: bytes of native-endian u64."""
        cdef Histogram* histogram = self._histogram(h)
        cdef unsigned i
        out = PyBytes_FromStringAndSize(NULL, 8 * n_buckets)
        cdef uint64_t* copy = <uint64_t*>PyBytes_AS_STRING(out)
        for i in range(n_buckets):
            copy[i] = load_relaxed(&histogram.counts[i])  # monitoring only
        return out

    def sum_ns(self, uint32_t h):
        return load_relaxed(&self._histogram(h).sum)      # monitoring only

    def max_ns(self, uint32_t h):
        return load_relaxed(&self._histogram(h).max)      # monitoring only

    def heartbeat(self, uint32_t stage):
        """Say "alive, in this stage"."""
        store_relaxed(&self.header.stage, stage)          # monitoring only
        store_relaxed(&self.header.heartbeat_ns, clock_ns())

    @property
    def heartbeat_ns(self):
        return load_relaxed(&self.header.heartbeat_ns)    # monitoring only

    @property
    def stage(self):
        return load_relaxed(&self.header.stage)           # monitoring only
