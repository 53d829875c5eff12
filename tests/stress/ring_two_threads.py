"""Two threads on one small ring: every word of every chunk is checked. Meant for ThreadSanitizer.

sanitize.py runs it. Threads and not processes, for the sanitizer sees one process; capacities 2
and 4, so that the ring is often full and empty.
"""

import argparse
import sys
import threading

from fdql.shm import probe_ring
from fdql.shm.ring import DOORBELL_BYTES, init_ring, ring_bytes
from heap import heap


def run(chunks: int, capacity: int, payload_bytes: int, *, sleeping: bool) -> int:
    """Wrong chunks among `chunks`; `sleeping` makes the reader sleep on a doorbell when idle."""
    ring = heap(ring_bytes(capacity, payload_bytes))
    bell = heap(DOORBELL_BYTES) if sleeping else None
    init_ring(ring, capacity, payload_bytes, 0)
    writer = threading.Thread(target=probe_ring.ring_write, args=(ring, bell, chunks))
    writer.start()
    wrong = probe_ring.ring_read(ring, bell, chunks)
    writer.join()
    return int(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=20_000)
    chunks = parser.parse_args().chunks
    wrong = 0
    for capacity in (2, 4):
        for sleeping in (False, True):
            bad = run(chunks, capacity, 64, sleeping=sleeping)
            print(f"ring capacity {capacity} sleeping {sleeping}: {chunks} chunks, {bad} wrong")
            wrong += bad
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
