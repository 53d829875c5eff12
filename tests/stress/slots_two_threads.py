"""Workers and a server on inference slots, all threads; every word of every row is checked.

Meant for sanitizers: sanitize.py runs it.
"""

import argparse
import sys
import threading

from fdql.shm import probe_slots
from fdql.shm.ring import DOORBELL_BYTES
from fdql.shm.slots import init_slots, slots_bytes
from heap import heap


def run(requests: int, workers: int, groups: int, *, spin: int) -> int:
    """Wrong rows on both sides; `spin` 0 makes both sides sleep at once when they have to wait."""
    shape = (workers, groups, 3, 20, 4)
    slots, bell = heap(slots_bytes(*shape)), heap(DOORBELL_BYTES)
    init_slots(slots, *shape)
    wrong: list[int] = []
    threads = [
        threading.Thread(
            target=lambda w=w: wrong.append(
                probe_slots.slots_ask(slots, bell, w, 100 * spin, requests)[0]
            )
        )
        for w in range(workers)
    ]
    for thread in threads:
        thread.start()
    torn = probe_slots.slots_serve(slots, bell, spin, requests * workers)
    for thread in threads:
        thread.join()
    return int(torn) + sum(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=5_000, help="of each worker")
    requests = parser.parse_args().requests
    wrong = 0
    for workers, groups, spin in ((1, 1, 0), (1, 1, 200), (2, 2, 0), (2, 2, 200)):
        bad = run(requests, workers, groups, spin=spin)
        print(f"slots {workers} x {groups} spin {spin}: {workers * requests} requests, {bad} wrong")
        wrong += bad
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
