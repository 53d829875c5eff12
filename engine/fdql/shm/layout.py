"""Which bytes of the shared segment mean what: kinds of sections, and every struct's fields.

The compiled modules carry the same table as the compiler laid it out (their OFFSETS, each offset
asserted at compile time); a test compares the two. All words are little-endian on the machines that
exist; words of different writers lie at least 128 bytes apart. Its hash stands in the segment, so
two versions of fdql never share one.
"""

from __future__ import annotations

import hashlib

# Section kinds. Sections of one kind are told apart by an index (worker, process, ...).
KIND_CONTROL = 1  # the stop word
KIND_BELL = 2  # a doorbell
KIND_RING = 3  # a worker's chunk ring
KIND_SLOTS = 4  # inference slots and their rows
KIND_WEIGHTS = 5  # weight snapshots
KIND_RECORD = 6  # a process's heartbeat, counters and histograms
KIND_TRACK = 7  # a thread's events, when a trace was asked for

# {struct: {field: (offset, bytes)}}
OFFSETS: dict[str, dict[str, tuple[int, int]]] = {
    "SegmentHeader": {  # creator; magic is written last
        "magic": (0, 8),
        "abi": (8, 4),
        "n_sections": (12, 4),
        "layout_hash": (16, 8),
        "total_bytes": (24, 8),
    },
    "SectionEntry": {  # at 64 + 32 * i of the segment
        "kind": (0, 4),
        "index": (4, 4),
        "offset": (8, 8),
        "nbytes": (16, 8),
    },
    "StopWord": {  # supervisor
        "stop": (0, 4),
        "trace_begin_ns": (8, 8),  # commits the window
        "trace_end_ns": (16, 8),
    },
    "Bell": {"seq": (0, 4), "waiting": (4, 4), "sleeps": (8, 8)},  # ringers; sleeper; sleeper
    "RecordHeader": {"heartbeat_ns": (0, 8), "stage": (8, 4)},  # the process; counters at 128
    "Histogram": {"sum": (0, 8), "max": (8, 8), "counts": (16, 8 * 496)},
    "TrackHeader": {"count": (0, 8), "dropped": (8, 8)},  # the thread; count commits an event
    "TrackEvent": {  # at 128 + 32 * i of the track
        "t0_ns": (0, 8),
        "duration_ns": (8, 8),
        "value": (16, 8),
        "kind": (24, 4),
    },
    "RingHeader": {
        "magic": (0, 4),  # constant after init, to schema_hash
        "capacity": (4, 4),
        "slot_header": (8, 4),
        "checked": (12, 4),
        "slot_stride": (16, 8),
        "slots_offset": (24, 8),
        "payload_bytes": (32, 8),
        "schema_hash": (40, 8),
        "head": (128, 8),  # writer; the commit word
        "writer_pid": (136, 4),
        "incarnation": (140, 4),
        "committed_steps": (144, 8),
        "tail": (256, 8),  # reader
        "consumed_steps": (264, 8),
        "not_full": (384, 128),  # a Bell; the writer sleeps, the reader rings
    },
    "SlotHeader": {  # writer; the payload follows at 64
        "seq": (0, 8),
        "incarnation": (8, 4),
        "flags": (12, 2),
        "n_rows": (16, 4),
        "n_steps": (20, 4),
        "first_step": (24, 8),
        "policy_version": (32, 8),
        "t_commit_ns": (40, 8),
        "crc": (48, 4),  # 0 where chunks are not checked
    },
    "SlotsHeader": {  # constant after init; Mailboxes from 128
        "magic": (0, 4),
        "workers": (4, 4),
        "groups": (8, 4),
        "envs": (12, 4),
        "obs_bytes": (16, 8),
        "action_bytes": (24, 8),
        "obs_stride": (32, 8),
        "action_stride": (40, 8),
        "obs_offset": (48, 8),
        "actions_offset": (56, 8),
        "checked": (64, 4),
    },
    "Mailbox": {
        "req_seq": (0, 4),  # worker; commits the observation rows
        "first_seq": (4, 4),  # the first request of the worker that lives
        "t_submit_ns": (8, 8),
        "req_crc": (16, 4),  # as in SlotHeader
        "rep_seq": (128, 4),  # server; commits the action rows
        "policy_version": (136, 8),
        "rep_crc": (144, 4),
        "waiting": (256, 4),  # worker
    },
    "WeightsHeader": {  # Pins from 256
        "magic": (0, 4),  # constant after init, to stride
        "readers": (4, 4),
        "nbytes": (8, 8),
        "buffers_offset": (16, 8),
        "stride": (24, 8),
        "checked": (32, 4),
        "latest": (128, 8),  # trainer; the commit word
    },
    "Pin": {"buffer": (0, 8)},  # the reader
    "SnapshotSeal": {"version": (0, 8), "crc": (8, 4)},  # trainer; only where weights are checked
}


def layout_hash() -> int:
    """64-bit hash of kinds and offsets, stored in a segment and compared when attaching."""
    kinds = sorted((name, value) for name, value in globals().items() if name.startswith("KIND_"))
    fields = sorted(
        (struct, field, *place)
        for struct, table in OFFSETS.items()
        for field, place in table.items()
    )
    digest = hashlib.blake2b(repr((kinds, fields)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
