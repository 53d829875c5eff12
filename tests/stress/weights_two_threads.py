"""A writer and readers on weight snapshots, all threads; every word of every snapshot is checked.

Meant for sanitizers: sanitize.py runs it.
"""

import argparse
import sys
import threading

from fdql.shm import probe_slots
from fdql.shm.weights import init_weights, weights_bytes
from heap import heap


def run(versions: int, readers: int, nbytes: int) -> tuple[int, int]:
    """(torn words and steps back, acquisitions) over all readers."""
    weights = heap(weights_bytes(readers, nbytes))
    init_weights(weights, readers, nbytes)
    results: list[tuple[int, int, int]] = []
    threads = [
        threading.Thread(
            target=lambda r=r: results.append(probe_slots.weights_read(weights, r, versions))
        )
        for r in range(readers)
    ]
    for thread in threads:
        thread.start()
    probe_slots.weights_write(weights, 1, versions)
    for thread in threads:
        thread.join()
    return sum(torn + back for torn, back, _ in results), sum(n for _, _, n in results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", type=int, default=200_000)
    versions = parser.parse_args().versions
    wrong = 0
    for readers, nbytes in ((1, 64), (1, 4096), (3, 1024)):
        bad, acquired = run(versions, readers, nbytes)
        print(
            f"weights {readers} readers {nbytes} B: "
            f"{versions} versions, {acquired} read, {bad} wrong"
        )
        wrong += bad
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
