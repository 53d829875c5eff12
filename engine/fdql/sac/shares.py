"""The rows of a batch, shared out among threads: for work that leaves the interpreter to others.

torch's own threads meet after every operation, hundreds of times in an update, and whoever has no
core at that moment holds up all of them. These meet once. Stage 5 of 8, `update`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


class Shares:
    """Calls work for every share of the rows, on so many threads, the caller's among them.

    count  shares of a batch; sums over them do not depend on the number of threads
    """

    def __init__(self, count: int, threads: int) -> None:
        self.count = count
        others = min(threads, count) - 1
        self._pool = ThreadPoolExecutor(others, "learner") if others > 0 else None

    def __call__(self, work: Callable[[slice], T], rows: int) -> list[T]:
        """work(first:stop) of each share of 0..rows, in their order. Raises what a call raises."""
        cuts = [rows * i // self.count for i in range(self.count + 1)]
        shares = [slice(first, stop) for first, stop in pairwise(cuts) if first < stop]
        if self._pool is None:
            return [work(share) for share in shares]
        others = [self._pool.submit(work, share) for share in shares[1:]]
        mine = work(shares[0])
        return [mine, *(other.result() for other in others)]
