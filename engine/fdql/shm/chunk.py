"""The bytes of a chunk: what an environment worker writes and ingest reads. Stages 1 to 3 of 8.

A chunk holds up to `rows` rows as columns, [field][row], every column at a multiple of 64 bytes.
One writer (the worker that owns the ring), one reader (ingest). Numpy only: workers stay light.

A row is (obs_t, action_t, reward_t, flags of the step's outcome). The next row of the same lane
holds obs_{t+1}: the next step, or, after a step that ended the episode, a BOUNDARY row with the
final observation and neither action nor reward. So an observation is stored once, an episode of T
steps takes T + 1 rows, and no reader can mistake a reset observation for a final one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TERMINATED = 1  # the step ended the episode in a state that has no future: no bootstrap
TRUNCATED = 2  # the step was cut off there (time limit): bootstrap from the BOUNDARY row
BOUNDARY = 4  # not a step: the final observation of the episode
RESET = 16  # first row of an episode

COLUMN_ALIGN = 64  # bytes; one cache line
MAX_LANES = 1 << 16  # lanes of one worker; the lane column is uint16


class ChunkViews(NamedTuple):
    """Arrays over one chunk's bytes; R rows. Writing them writes the chunk.

    lane          (R,)   uint16   environment index within the worker
    flags         (R,)   uint8    TERMINATED | TRUNCATED | BOUNDARY | RESET
    reward        (R,)   float32  raw reward; not read on BOUNDARY rows
    version       (R,)   uint32   version of the policy that chose the action
    action        (R, A) float32 in [-1, 1], or (R,) int32; not read on BOUNDARY rows
    obs           (R, O) float32  finite, the worker checks; or uint8, the newest frame of a stack
    action_words  (R, W) int32    the same bytes as `action`, W = A or 1: one type for all actions
    """

    lane: NDArray[np.uint16]
    flags: NDArray[np.uint8]
    reward: NDArray[np.float32]
    version: NDArray[np.uint32]
    action: NDArray[np.float32] | NDArray[np.int32]
    obs: NDArray[np.float32] | NDArray[np.uint8]
    action_words: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowShape:
    """What one step leaves in a chunk and in the replay.

    obs_dim     numbers of one stored observation; of one frame when frames are stacked
    action_dim  number of actions when discrete, components of the action otherwise
    pixels      observations are uint8 and seen by a convolution, else float32
    stack       newest rows of an episode that one observation of the network is made of
    """

    obs_dim: int
    action_dim: int
    discrete: bool
    pixels: bool = False
    stack: int = 1

    @property
    def obs_dtype(self) -> type[np.uint8] | type[np.float32]:
        """Of a stored observation's numbers."""
        return np.uint8 if self.pixels else np.float32

    @property
    def obs_nbytes(self) -> int:
        """Bytes of one stored observation."""
        return self.obs_dim * np.dtype(self.obs_dtype).itemsize

    @property
    def action_words(self) -> int:
        """32-bit words that one action takes: 1 when discrete, one per component otherwise."""
        return 1 if self.discrete else self.action_dim


def chunk_id(worker: int, seq: int) -> int:
    """A chunk, unlike any other of the run: its worker, and its number in that worker's ring."""
    return worker << 48 | seq


@dataclass(frozen=True, slots=True)
class ChunkSchema:
    """Where the columns of a chunk are.

    rows   R, most rows that one chunk holds
    shape  of a row: O = obs_dim numbers of obs_dtype, A = action_dim
    """

    rows: int
    shape: RowShape

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"chunk rows = {self.rows}: must be at least 1")
        for key in ("obs_dim", "action_dim", "stack"):
            value = getattr(self.shape, key)
            if value < 1:
                raise ValueError(f"chunk {key} = {value}: must be at least 1")

    def _columns(self) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
        return {
            "lane": (np.uint16, (self.rows,)),
            "flags": (np.uint8, (self.rows,)),
            "reward": (np.float32, (self.rows,)),
            "version": (np.uint32, (self.rows,)),
            "action_words": (np.int32, (self.rows, self.shape.action_words)),
            "obs": (self.shape.obs_dtype, (self.rows, self.shape.obs_dim)),
        }

    def _layout(self) -> tuple[dict[str, int], int]:
        offsets: dict[str, int] = {}
        at = 0
        for name, (dtype, shape) in self._columns().items():
            offsets[name] = at
            at += math.prod(shape) * np.dtype(dtype).itemsize
            at += -at % COLUMN_ALIGN
        return offsets, at

    @property
    def offsets(self) -> dict[str, int]:
        """Column -> byte offset from the start of the payload, each a multiple of 64."""
        return self._layout()[0]

    @property
    def nbytes(self) -> int:
        """Bytes of one payload, a multiple of 64."""
        return self._layout()[1]

    @property
    def hash(self) -> int:
        """64-bit fingerprint of names, types, offsets and the row's shape: both ends must agree."""
        columns = [
            (name, np.dtype(dtype).str, shape) for name, (dtype, shape) in self._columns().items()
        ]
        text = repr((columns, self._layout(), self.shape))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    def views(self, buffer: memoryview | bytearray | NDArray[np.uint8]) -> ChunkViews:
        """Arrays over `buffer` (writable, at least nbytes long). No copy: make them once per slot.

        ValueError when the buffer is read-only or too short.
        """
        raw = np.frombuffer(buffer, dtype=np.uint8)
        offsets, nbytes = self._layout()
        if raw.size < nbytes:
            raise ValueError(f"a chunk takes {nbytes} bytes and the buffer has {raw.size}")
        if not raw.flags.writeable:
            raise ValueError("the buffer of a chunk must be writable")
        column: dict[str, NDArray[np.generic]] = {}
        for name, (dtype, shape) in self._columns().items():
            size = math.prod(shape) * np.dtype(dtype).itemsize
            column[name] = raw[offsets[name] : offsets[name] + size].view(dtype).reshape(shape)
        words = column["action_words"]
        action = words[:, 0] if self.shape.discrete else words.view(np.float32)
        return ChunkViews(action=action, **column)  # type: ignore[arg-type]
