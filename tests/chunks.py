"""Replays and chunks for tests: rows by number, rows at random."""

from __future__ import annotations

import numpy as np
from fdql.config import ReplayConfig
from fdql.replay.replay import Replay
from fdql.shm.chunk import ChunkSchema, ChunkViews, RowShape
from oracles import BOUNDARY, Row

OBS, ACTIONS, V_MAX = 3, 2, 5.0

VECTOR = RowShape(obs_dim=OBS, action_dim=ACTIONS, discrete=False)
DISCRETE = RowShape(obs_dim=OBS, action_dim=ACTIONS, discrete=True)
PIXELS = RowShape(obs_dim=OBS, action_dim=ACTIONS, discrete=True, pixels=True, stack=3)
STACKED = RowShape(obs_dim=OBS, action_dim=ACTIONS, discrete=False, stack=3)
SHAPES = [VECTOR, DISCRETE, PIXELS, STACKED]


def make(
    *, n_lanes=4, capacity=1024, n_step=3, discount=0.9, batch_size=32, seed=0, shape=VECTOR
) -> Replay:
    return Replay(
        ReplayConfig(capacity=capacity, n_step=n_step), shape=shape, n_lanes=n_lanes,
        discount=discount, v_max=V_MAX, batch_size=batch_size, seed=seed,
    )  # fmt: skip


def chunk_of(rows: list[tuple[int, Row]], shape: RowShape = VECTOR) -> ChunkViews:
    """Views of a chunk with these (lane, row) pairs."""
    schema = ChunkSchema(max(1, len(rows)), shape)
    views = schema.views(bytearray(schema.nbytes))
    for k, (lane, row) in enumerate(rows):
        views.lane[k], views.flags[k], views.version[k] = lane, row.flags, row.version
        views.obs[k], views.reward[k] = row.obs, row.reward
        if row.action:
            views.action[k] = row.action[0] if shape.discrete else row.action
    return views


def numbered(n: int, flags: dict[int, int] | None = None, lane: int = 0) -> list[tuple[int, Row]]:
    """n rows: row k has observation (k, k, k), action (k, -k), reward k, version k."""
    return [
        (lane, Row((k, k, k), (k, -k), float(k), (flags or {}).get(k, 0), version=k))
        for k in range(n)
    ]


def random_chunk(
    rng: np.random.Generator, n: int, n_lanes: int, shape: RowShape = VECTOR
) -> ChunkViews:
    """n steps of random lanes, one in ten ending its episode; their BOUNDARY rows included."""
    rows = []
    for _ in range(n):
        lane, action = int(rng.integers(n_lanes)), tuple(rng.random(ACTIONS))
        how = int(rng.choice([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]))
        numbers = rng.normal(size=OBS).astype(np.float32)
        obs = tuple((rng.integers(256, size=OBS) if shape.pixels else numbers).tolist())
        rows.append((lane, Row(obs, action, float(np.float32(rng.normal())), how, version=n)))
        if how:
            rows.append((lane, Row(obs, flags=BOUNDARY)))
    return chunk_of(rows, shape)
