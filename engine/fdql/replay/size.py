"""How large a replay is, known before anything is allocated. Imports no Numba."""

from __future__ import annotations

from fdql.config import ConfigError
from fdql.shm.chunk import RowShape

DEFAULT_ROWS = 1_000_000  # capacity when none is configured ...
DEFAULT_NBYTES = 2 << 30  # ... unless that many rows take more than this
FANOUT = 8  # children of a node of the sum tree
LEAF_NBYTES = 10  # of the tree per row: 8 * 8 / 7, rounded up


def row_nbytes(shape: RowShape) -> int:
    """Bytes of one row: observation, action, reward, version, flags, and its share of the tree."""
    return shape.obs_nbytes + 4 * shape.action_words + 4 + 4 + 1 + LEAF_NBYTES


def default_capacity(shape: RowShape) -> int:
    """Rows when none are configured: 1,000,000, or what 2 GiB hold, at least 1024."""
    held = DEFAULT_NBYTES // row_nbytes(shape)
    return max(1024, min(DEFAULT_ROWS, held))


def lane_rows_for(capacity: int, n_lanes: int) -> int:
    """Rows per lane: capacity / n_lanes, rounded up to whole nodes of the tree."""
    rows = -(-capacity // n_lanes)
    return rows + -rows % FANOUT


def least_lane_rows(n_step: int, stack: int) -> int:
    """A window, its successor, the row being written, and the older frames of a stack."""
    return n_step + 2 + stack - 1


def check_lanes(capacity: int, n_lanes: int, n_step: int, stack: int) -> None:
    """Raises ConfigError when a lane would be shorter than its n-step windows and stacks need."""
    lane_rows, least = lane_rows_for(capacity, n_lanes), least_lane_rows(n_step, stack)
    if lane_rows < least:
        stacks = f" with stacks of {stack} frames" if stack > 1 else ""
        raise ConfigError(
            f"replay.capacity = {capacity}: {n_lanes} environments get {lane_rows} rows each and "
            f"replay.n_step = {n_step}{stacks} needs {least}; {max(64, least) * n_lanes} works"
        )


def level_sizes(n_leaves: int) -> list[int]:
    """float64 values of each level of the tree, leaves first, padding included."""
    used = n_leaves
    sizes = [used + -used % FANOUT]
    while used > 1:
        used = -(-used // FANOUT)
        sizes.append(used + -used % FANOUT)
    return sizes


def nbytes_for(capacity: int, n_lanes: int, shape: RowShape) -> int:
    """Bytes that the rows and the tree of such a replay take when full."""
    rows = n_lanes * lane_rows_for(capacity, n_lanes)
    columns = row_nbytes(shape) - LEAF_NBYTES
    return rows * columns + 8 * sum(level_sizes(rows))
