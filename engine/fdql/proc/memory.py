"""The plan of a run and its one shared segment: which section is whose. Imports neither torch nor
numba.

The supervisor creates the segment and passes its descriptor; every process opens the sections of
its role. Writers: a worker writes its ring, its slots and its record; inference its replies and its
record; the trainer the weights and its record; the evaluator its record; the supervisor the control
block. Where a trace was asked for, every thread of these also writes a track of its own.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any

from fdql.config import Config
from fdql.config_file import from_dict, to_dict
from fdql.env_spec import EnvSpec
from fdql.profile import RECORD_NBYTES, open_record
from fdql.sac.nets import NetSpec, policy_shapes, size_of
from fdql.shm.chunk import ChunkSchema
from fdql.shm.layout import (
    KIND_BELL,
    KIND_CONTROL,
    KIND_RECORD,
    KIND_RING,
    KIND_SLOTS,
    KIND_TRACK,
    KIND_WEIGHTS,
    layout_hash,
)
from fdql.shm.records import CONTROL_BYTES, Control, Record, Track, track_bytes
from fdql.shm.ring import DOORBELL_BYTES, Doorbell, RingReader, RingWriter, init_ring, ring_bytes
from fdql.shm.segment import Segment
from fdql.shm.slots import SlotClient, SlotServer, init_slots, slots_bytes
from fdql.shm.weights import WeightsReader, WeightsWriter, clear_pin, init_weights, weights_bytes

BELL_INFERENCE, BELL_TRAINER, BELL_EVALUATOR = 0, 1, 2
RECORD_TRAINER, RECORD_INFERENCE, RECORD_EVALUATOR, RECORD_WORKERS = 0, 1, 2, 3
READER_INFERENCE, READER_EVALUATOR, READER_CALLBACKS, READERS = 0, 1, 2, 3
EVENTS_PER_SECOND = 1 << 14  # of a trace that each thread has room for, 32 bytes each

# Most rows of a chunk of images: at 7 KB a row, a ring of 16 chunks takes 7 MB for each worker.
PIXEL_CHUNK_ROWS = 64

# The control block's stop word, in the order of a run's end. FINISH: workers, inference and trainer
# leave; LAST: the evaluator plays the last policy once more and leaves; STOP: everyone leaves now.
RUN, FINISH, LAST, STOP = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """What every process of a run is told."""

    config: Config
    env: EnvSpec
    run_dir: str
    began: float | None = None  # the run's start on clock.monotonic; None: this process's start
    checkpoint: str | None = None  # folder of the one to continue from
    resumes: int = 0  # how often the run was continued
    base: tuple[int, int] = (0, 0)  # the governor's

    def to_json(self) -> str:
        """For the command line of a child."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {"config": to_dict(self.config), "env": self.env.to_dict()}
        return json.dumps(values | plain)

    @staticmethod
    def from_json(text: str) -> RunPlan:
        """Inverse of to_json."""
        values = json.loads(text)
        made = {
            "config": from_dict(values["config"]),
            "env": EnvSpec.from_dict(values["env"]),
            "base": tuple(values["base"]),
        }
        return RunPlan(**(values | made))

    @property
    def workers(self) -> int:
        """Environment workers."""
        assert self.config.workers is not None
        return self.config.workers

    @property
    def envs_per_worker(self) -> int:
        """Environments, and so replay lanes, of each worker."""
        assert self.config.envs_per_worker is not None
        return self.config.envs_per_worker

    @property
    def envs_per_group(self) -> int:
        """Environments that one worker steps in one turn."""
        return self.envs_per_worker // self.config.engine.groups

    @property
    def lanes(self) -> int:
        """Environments of the whole run. Lane of env e in group g of worker w: w * per worker + g *
        per group + e.
        """
        return self.workers * self.envs_per_worker

    @property
    def spin_ns(self) -> int:
        """Time that a waiting worker or inference looks before it sleeps."""
        return round(1000 * self.config.engine.spin_us)

    @property
    def roles(self) -> list[str]:
        """Names of the processes, in the order of their records."""
        return ["trainer", "inference", "evaluator", *(f"worker {w}" for w in range(self.workers))]

    @property
    def threads(self) -> list[tuple[int, str]]:
        """Index of its process's record, and name, of every thread that a trace shows."""
        return [*((i, "main") for i in range(len(self.roles))), (RECORD_TRAINER, "loader")]

    @property
    def net(self) -> NetSpec:
        """Shapes of the networks."""
        return NetSpec(**self.env.net_inputs, **self.config.sac.net_shape)

    @property
    def chunk(self) -> ChunkSchema:
        """Columns of a transition chunk; a group's step fits twice, for each may end an episode."""
        rows = self.config.engine.chunk_rows
        if self.env.rows.pixels:
            rows = min(rows, max(PIXEL_CHUNK_ROWS, 2 * self.envs_per_group))
        return ChunkSchema(rows, self.env.rows)

    @property
    def obs_bytes(self) -> int:
        """Bytes of one observation row: the newest `stack` observations, float32 or uint8."""
        return self.env.stack * self.env.rows.obs_nbytes

    @property
    def action_bytes(self) -> int:
        """Bytes of one action row: int32 index, or float32 components."""
        return 4 if self.env.discrete else 4 * self.env.action_dim

    @property
    def policy_size(self) -> int:
        """float32 values of a published policy."""
        return size_of(policy_shapes(self.net))

    def policy_facts(self) -> dict[str, Any]:
        """What a policy file says beside its numbers: enough to act with it."""
        sac, evals = self.config.sac, self.config.eval
        played = {"longest_episode": evals.longest_episode, "epsilon": evals.epsilon or 0.0}
        facts = {"env": self.env.to_dict(), "net": sac.net_shape, "discount": sac.discount}
        return {"format": 4} | played | facts


class RunMemory:
    """Typed access to the sections of a run's segment. Close it after the last view is gone."""

    def __init__(self, plan: RunPlan, segment: Segment) -> None:
        self.plan = plan
        self.segment = segment
        self.control = Control(segment.section(KIND_CONTROL, 0))

    @staticmethod
    def create(plan: RunPlan, *, shared: bool) -> RunMemory:
        """Lay out a new segment; `shared=False` keeps it private to this process (serial mode).

        Raises MemoryError or OSError when the memory is not there.
        """
        engine, schema = plan.config.engine, plan.chunk
        slots = (
            plan.workers,
            engine.groups,
            plan.envs_per_group,
            plan.obs_bytes,
            plan.action_bytes,
        )
        sections = [(KIND_CONTROL, 0, CONTROL_BYTES)]
        sections += [(KIND_BELL, i, DOORBELL_BYTES) for i in range(3)]
        sections += [(KIND_RECORD, i, RECORD_NBYTES) for i in range(RECORD_WORKERS + plan.workers)]
        sections += [
            (KIND_RING, w, ring_bytes(engine.ring_chunks, schema.nbytes))
            for w in range(plan.workers)
        ]
        sections += [
            (KIND_SLOTS, 0, slots_bytes(*slots)),
            (KIND_WEIGHTS, 0, weights_bytes(READERS, 4 * plan.policy_size, plan.config.check)),
        ]
        if plan.config.trace_seconds is not None:
            events = track_bytes(math.ceil(plan.config.trace_seconds * EVENTS_PER_SECOND))
            sections += [(KIND_TRACK, i, events) for i in range(len(plan.threads))]
        segment = Segment.create(sections, layout_hash(), shared=shared)
        ring, check = (engine.ring_chunks, schema.nbytes, schema.hash), plan.config.check
        for w in range(plan.workers):
            init_ring(segment.section(KIND_RING, w), *ring, check)
        init_slots(segment.section(KIND_SLOTS, 0), *slots, check)
        init_weights(segment.section(KIND_WEIGHTS, 0), READERS, 4 * plan.policy_size, check)
        return RunMemory(plan, segment)

    @staticmethod
    def attach(plan: RunPlan, fd: int) -> RunMemory:
        """Open the segment handed over as descriptor `fd`. Raises SegmentError when it is not this
        run's.
        """
        return RunMemory(plan, Segment.attach(fd, layout_hash()))

    def bell(self, index: int) -> Doorbell:
        """Doorbell of inference, trainer or evaluator. A stop that is set keeps all but the
        evaluator awake.
        """
        control = None if index == BELL_EVALUATOR else self.segment.section(KIND_CONTROL, 0)
        return Doorbell(self.segment.section(KIND_BELL, index), control)

    def record(self, index: int) -> Record:
        """Record of one process."""
        return open_record(self.segment.section(KIND_RECORD, index))

    def own_record(self, index: int, thread: str = "main") -> Record:
        """Record of the process that calls, for one of its threads; traced when a trace was asked
        for."""
        record = self.record(index)
        if self.plan.config.trace_seconds is not None:
            track = Track(self.track(self.plan.threads.index((index, thread))))
            record.trace_into(track, self.segment.section(KIND_CONTROL, 0))
        return record

    def track(self, i: int) -> memoryview:
        """Events of the i-th of plan.threads."""
        return self.segment.section(KIND_TRACK, i)

    def worker_record(self, worker: int) -> Record:
        """Record of an environment worker."""
        return self.record(RECORD_WORKERS + worker)

    def ring_writer(self, worker: int) -> RingWriter:
        """The producer's end of a worker's ring: the worker's, one at a time."""
        control = self.segment.section(KIND_CONTROL, 0)
        ring = self.segment.section(KIND_RING, worker)
        return RingWriter(ring, self.plan.chunk.hash, self.bell(BELL_TRAINER), control)

    def ring_reader(self, worker: int) -> RingReader:
        """The consumer's end of a worker's ring: the trainer's."""
        return RingReader(self.segment.section(KIND_RING, worker), self.plan.chunk.hash)

    def slot_client(self, worker: int) -> SlotClient:
        """A worker's end of the request slots."""
        control = self.segment.section(KIND_CONTROL, 0)
        return SlotClient(
            self.segment.section(KIND_SLOTS, 0), worker, self.bell(BELL_INFERENCE), control
        )

    def slot_server(self) -> SlotServer:
        """Inference's end of the request slots."""
        control = self.segment.section(KIND_CONTROL, 0)
        return SlotServer(self.segment.section(KIND_SLOTS, 0), self.bell(BELL_INFERENCE), control)

    def weights_writer(self) -> WeightsWriter:
        """The trainer's end of the policy snapshots."""
        return WeightsWriter(self.segment.section(KIND_WEIGHTS, 0))

    def weights_reader(self, reader: int) -> WeightsReader:
        """A reader's end of the policy snapshots."""
        return WeightsReader(self.segment.section(KIND_WEIGHTS, 0), reader)

    def clear_pin(self, reader: int) -> None:
        """Let go of the policy that a dead reader held. The supervisor's, after reaping it."""
        clear_pin(self.segment.section(KIND_WEIGHTS, 0), reader)

    def stop(self, value: int) -> None:
        """Set the stop word and wake every sleeper. The supervisor's."""
        self.control.stop = value
        self.control.wake([self.segment.section(KIND_BELL, i) for i in range(3)])

    def close(self) -> None:
        """Give the segment back."""
        self.segment.close()
