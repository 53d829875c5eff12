"""Which batch is the first to hold a row of a chunk, for a trace. Owned by the loader thread.

Works only while a trace is being taken: 24 us a chunk of 64 rows in 8 lanes, 5 us a batch of 256.
"""

from __future__ import annotations

import numpy as np

from fdql.replay.columns import zero_column
from fdql.replay.lanes import HEAD, LaneStore
from fdql.replay.sum_tree import I64


class FirstUse:
    """The chunk that wrote each row, and the chunks of which no row was drawn yet.

    chunk_of_row  (rows,) int64, 0: written before the trace began
    """

    def __init__(self, store: LaneStore) -> None:
        self.store = store
        self.chunk_of_row: I64 = zero_column(store.flags.shape, np.int64)
        self.waiting: set[int] = set()
        self.heads: I64 = store.table[:, HEAD].copy()

    def before_ingest(self) -> None:
        """Remember where every lane stands."""
        self.heads[:] = self.store.table[:, HEAD]

    def ingested(self, chunk: int) -> None:
        """The rows that came since before_ingest() are those of `chunk`, not 0."""
        rows = self.store.lane_rows
        heads = self.store.table[:, HEAD]
        for lane in np.flatnonzero(heads != self.heads):
            serials = np.arange(max(self.heads[lane], heads[lane] - rows), heads[lane])
            self.chunk_of_row[lane * rows + serials % rows] = chunk
        self.waiting.add(chunk)

    def drawn(self, leaf: I64) -> list[int]:
        """Chunks whose first use are these rows, (B,) int64; each is returned once, ascending."""
        found = self.waiting.intersection(self.chunk_of_row[leaf].tolist())
        self.waiting -= found
        return sorted(found)
