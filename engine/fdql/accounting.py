"""The books of a run: every step that a worker handed over was stored or is still under way.

Read once, by whoever ends the run, when no process of it lives any more: then every ring is at rest
and every counter final. Four accounts that are kept apart must agree: each worker's own count, the
commit words of its ring and the chunks between them, and the trainer's count of what it stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from fdql.proc.memory import RECORD_TRAINER, RunMemory
from fdql.profile import Counter
from fdql.shm.audit import CorruptError, RingTotals, ring_totals
from fdql.shm.layout import KIND_RING


@dataclass(frozen=True, slots=True)
class Books:
    """Environment steps of a run; committed = ingested + dropped + in_flight, or fault says why.

    committed   handed over by the workers, from their rings
    ingested    stored with their outcome
    dropped     stored, but the outcome was lost with the worker: their row ends its episode
    in_flight   handed over and not stored: chunks that stood in a ring at the end
    fault       what does not agree, None: nothing
    """

    committed: int
    ingested: int
    dropped: int
    in_flight: int
    fault: str | None

    def summary(self) -> dict[str, int | str | None]:
        """For summary.json; what is ingested follows from its `env_steps`, all that is stored."""
        return {
            "steps_committed": self.committed,
            "steps_dropped": self.dropped,
            "steps_in_flight": self.in_flight,
            "steps_fault": self.fault,
        }


def books(memory: RunMemory, *, killed: bool) -> Books:
    """Close the books. No process of the run may live.

    killed  the trainer may not have ended in order: then it may have stored a chunk and not counted
            it any more
    """
    trainer = memory.record(RECORD_TRAINER)
    faults: list[str] = []
    committed = in_rings = 0
    for w in range(memory.plan.workers):
        record = memory.worker_record(w)
        before, own = record.get(Counter.BEFORE), record.get(Counter.STEPS)
        try:
            ring = ring_totals(memory.segment.section(KIND_RING, w))
        except CorruptError as error:
            faults.append(f"ring of worker {w}: {error}")
            ring = RingTotals(0, 0, own - before, own - before, 0)
        # Killed between the hand-over of its last chunk and its own count, it counts that one less.
        short = before + ring.steps_in - own
        if short not in (0, ring.last_steps):
            faults.append(
                f"worker {w} counted {own - before} steps and its ring took {ring.steps_in}"
            )
        committed += before + ring.steps_in
        in_rings += ring.steps_in - ring.steps_out
    stored, dropped = trainer.get(Counter.INSERTED), trainer.get(Counter.DROPPED)
    uncounted = committed - in_rings - stored
    if not 0 <= uncounted <= (memory.plan.chunk.rows if killed else 0):
        faults.append(
            f"{committed} steps were handed over, {stored} stored ({dropped} of them without their "
            f"outcome) and {in_rings} stand in the rings: {abs(uncounted)} too "
            + ("many are stored" if uncounted < 0 else "few are stored")
        )
    return Books(
        committed=committed,
        ingested=stored - dropped,
        dropped=dropped,
        in_flight=committed - stored,
        fault="; ".join(faults) or None,
    )
