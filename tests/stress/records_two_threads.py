"""One thread fills a track, a histogram and counters, another reads them; every event is checked.

Meant for sanitizers: sanitize.py runs it.
"""

import argparse
import sys
import threading

from fdql.shm import probe_slots
from fdql.shm.records import track_bytes
from heap import LINE, heap

HISTOGRAM_BYTES = 4096


def run(events: int, capacity: int) -> int:
    """Wrong events, counters and sums among `events`; what finds no room is to be counted."""
    memory = heap(track_bytes(capacity)), heap(HISTOGRAM_BYTES), heap(2 * LINE)
    writer = threading.Thread(target=probe_slots.record_write, args=(*memory, capacity, events))
    writer.start()
    wrong = probe_slots.record_read(*memory, capacity, events)
    writer.join()
    return int(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000)
    events = parser.parse_args().events
    wrong = 0
    for capacity in (1, events // 2, events):
        bad = run(events, capacity)
        print(f"records, room for {capacity}: {events} events, {bad} wrong")
        wrong += bad
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
