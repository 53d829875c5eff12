"""How large a replay is, in rows and bytes: known before anything is allocated. Imports no Numba."""

from __future__ import annotations

from fdql.shm.chunk import action_words

DEFAULT_ROWS = 1_000_000  # capacity when none is configured ...
DEFAULT_NBYTES = 2 << 30  # ... unless that many rows take more than this


def row_nbytes(obs_dim: int, action_dim: int, discrete: bool) -> int:
    """Bytes of one row: observation, action, reward, version, flags, and its share of the tree."""
    return 4 * obs_dim + 4 * action_words(discrete, action_dim) + 4 + 4 + 1 + 10


def lane_rows_for(capacity: int, n_lanes: int) -> int:
    """Rows per lane: capacity / n_lanes, rounded up to whole nodes of the tree (8)."""
    rows = -(-capacity // n_lanes)
    return rows + -rows % 8


def nbytes_for(capacity: int, n_lanes: int, obs_dim: int, action_dim: int, discrete: bool) -> int:
    """Upper bound of the bytes that a replay of `capacity` rows in `n_lanes` lanes may take when full."""
    rows = n_lanes * lane_rows_for(capacity, n_lanes)
    return rows * row_nbytes(obs_dim, action_dim, discrete) + 4096
