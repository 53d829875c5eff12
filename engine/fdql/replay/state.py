"""A replay as named arrays and back, for checkpoints: rows, priorities, statistics, draws.

Called by the thread that owns the replay, between two of its other calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.config import ConfigError
from fdql.replay.lanes import HEAD
from fdql.replay.replay import Replay

State = dict[str, NDArray[Any]]

WORD = (1 << 64) - 1


def _columns(replay: Replay) -> State:
    rows = replay.rows
    return {
        "flags": rows.flags,
        "reward": rows.reward,
        "version": rows.version,
        "action": rows.action,
        "obs": rows.obs,
        "leaves": replay.tree.leaves,
    }


def _tables(replay: Replay) -> State:
    rows, statistics = replay.rows, replay.statistics
    return {
        "table": rows.table,
        "counters": rows.counters,
        "running": statistics.running,
        "reward_sums": statistics.sums,
        "moments": statistics.moments,
        "obs_mean": statistics.obs_mean,
        "obs_scale": statistics.obs_scale,
    }


def _shape(replay: Replay) -> dict[str, int]:
    """What must be equal for the arrays to mean the same."""
    rows = replay.rows
    return {
        "lanes": rows.n_lanes,
        "rows per lane": rows.lane_rows,
        "n_step": rows.n_step,
        "observation components": rows.obs.shape[1],
        "bytes per component": rows.obs.itemsize,
        "frames per stack": rows.stack,
        "words of an action": rows.action.shape[1],
    }


def replay_state(replay: Replay) -> State:
    """Everything that decides what the replay does next; bit-exact through load_replay_state.

    Columns are (lanes, rows, ...) and hold only the rows that were ever written. Views, not copies:
    write them out before the replay is used again.
    """
    rows = replay.rows
    used = int(min(rows.table[:, HEAD].max(), rows.lane_rows))
    state = {
        name: column.reshape(rows.n_lanes, rows.lane_rows, *column.shape[1:])[:, :used]
        for name, column in _columns(replay).items()
    }
    generator: Any = replay.rng.bit_generator.state
    words = [generator["state"]["state"], generator["state"]["inc"]]
    halves = [half for word in words for half in (word & WORD, word >> 64)]
    spare = [generator["has_uint32"], generator["uinteger"]]
    scalars = [replay.new_priority, replay.statistics.reward_scale]
    counts = [replay.stale, replay.rescale_at]
    return state | {
        **_tables(replay),
        "shape": np.array(list(_shape(replay).values()), dtype=np.int64),
        "scalars": np.array(scalars, dtype=np.float64),
        "counts": np.array(counts, dtype=np.int64),
        "generator": np.array(halves + spare, dtype=np.uint64),
    }


def load_replay_state(replay: Replay, state: State) -> None:
    """Make a fresh `replay` what the saved one was. Close its lanes if the environments start anew.

    ConfigError when it was built for other lanes, rows, n_step, observations or actions; then
    nothing has changed.
    """
    for (name, here), saved in zip(_shape(replay).items(), state["shape"].tolist(), strict=True):
        if here != saved:
            raise ConfigError(f"the saved replay has {name} = {saved} and this one {here}")
    rows = replay.rows
    used = state["flags"].shape[1]
    for name, column in _columns(replay).items():
        if name != "leaves":
            column.reshape(rows.n_lanes, rows.lane_rows, *column.shape[1:])[:, :used] = state[name]
    for name, table in _tables(replay).items():
        table[...] = state[name]
    for lane in range(rows.n_lanes):  # lane by lane: the tree's scratch grows with what it is given
        first = lane * rows.lane_rows
        priority = np.ascontiguousarray(state["leaves"][lane], dtype=np.float64)
        replay.tree.set(np.arange(first, first + used, dtype=np.int64), priority)
    replay.new_priority, replay.statistics.reward_scale = state["scalars"].tolist()
    replay.stale, replay.rescale_at = state["counts"].tolist()
    s0, s1, i0, i1, has_spare, spare = (int(x) for x in state["generator"])
    replay.rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": s0 | s1 << 64, "inc": i0 | i1 << 64},
        "has_uint32": has_spare,
        "uinteger": spare,
    }
