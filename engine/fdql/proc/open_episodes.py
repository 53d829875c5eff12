"""Open episodes across a resume of serial mode: environments cannot be saved, so each is played
again from its reset, with the actions that the replay holds, and its end is compared.

That repeats environments that their seed, Gymnasium's generator and the actions decide. Where the
end differs the episode is cut at its last known observation and a new one begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.proc.env_state import EnvState
from fdql.proc.env_worker import EnvWorker
from fdql.replay.lanes import HEAD
from fdql.replay.replay import Replay
from fdql.replay.state import oldest
from fdql.shm.chunk import BOUNDARY

_KEPT = ("steps", "episode_return", "episode_length", "lives", "random", "seed")


def episodes_of(worker: EnvWorker) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
    """What `repeat` needs beside the replay: the rows that the policy is asked about and the flags
    of the rows to come, as arrays; of each environment the episode it is in.
    """
    arrays = {
        "rows": np.stack([stacks.rows for stacks in worker.stacks]),
        "fresh": np.stack(worker.fresh),
    }
    states = [state for group in worker.states for state in group]
    return arrays, [{name: getattr(s, name) for name in _KEPT} for s in states]


def repeat(
    worker: EnvWorker, replay: Replay, arrays: dict[str, NDArray[Any]],
    episodes: list[dict[str, Any]],
) -> list[int]:  # fmt: skip
    """In place of `worker.start`. Returns the lanes whose episodes could not be repeated: they are
    cut in the replay and begin anew.
    """
    cut = []
    for g, group in enumerate(worker.states):
        for e, state in enumerate(group):
            again = _Again(worker, g, e, state, episodes[state.lane])
            actions = _newest_actions(replay, state.lane, again.length)
            if actions is not None and again.played(actions, arrays["rows"][g, e]):
                worker.fresh[g][e] = arrays["fresh"][g, e]
            else:
                cut.append(state.lane)
                replay.close_lanes(state.lane, 1)
                again.begin_anew()
        worker.slots.submit(g)
    return cut


def _newest_actions(replay: Replay, lane: int, n: int) -> NDArray[Any] | None:
    """(n, W) words of the lane's newest n actions; None when not all are there any more."""
    store = replay.rows
    serials = np.arange(oldest(replay)[lane], store.table[lane, HEAD])
    rows = lane * store.lane_rows + serials % store.lane_rows
    steps = rows[(store.flags[rows] & BOUNDARY) == 0]
    return store.action[steps[len(steps) - n :]] if len(steps) >= n else None


@dataclass(slots=True)
class _Again:
    """One environment on its way back to where it was."""

    worker: EnvWorker
    group: int
    e: int
    state: EnvState
    saved: dict[str, Any]

    @property
    def length(self) -> int:
        """Steps of the open episode."""
        return int(self.saved["episode_length"])

    def played(self, words: NDArray[Any], end: NDArray[Any]) -> bool:
        """Play the episode again. True when it ends where it was, `end` and return and all."""
        worker, state, saved = self.worker, self.state, self.saved
        stacks, to_row, discrete = worker.stacks[self.group], worker.to_row, worker.spec.discrete
        actions = words[:, 0] if discrete else words.view(np.float32)
        state.seed = int(saved["seed"])
        try:
            first, info = state.env.reset(seed=state.seed)
            if saved["random"] is not None:
                bits = np.random.PCG64()
                bits.state = saved["random"]
                state.env.unwrapped.np_random = np.random.Generator(bits)
                first, info = state.env.reset()
            stacks.reset(self.e, to_row(first))
            lives, total, over = info.get("lives", 0), 0.0, False
            for action in worker.scale(actions):
                if over:
                    return False
                after, reward, terminated, truncated, info = state.env.step(action)
                over = terminated or truncated
                total += float(reward)
                stacks.push(self.e, to_row(after))
                if worker.spec.atari and (left := info.get("lives", 0)) != lives:
                    if left < lives:
                        stacks.reset(self.e, stacks.newest[self.e])
                    lives = left
        except Exception:
            return False  # whatever it is: the environment is not where it was
        ended = stacks.rows[self.e].tobytes() == end.tobytes()
        if over or not ended or total != saved["episode_return"]:
            return False
        state.steps, state.episode_length = int(saved["steps"]), self.length
        state.episode_return, state.lives, state.random = total, lives, saved["random"]
        return True

    def begin_anew(self) -> None:
        """A new episode, from the seed that the lane has after this resume."""
        self.state.seed = self.worker.lane_seed(self.state.lane)
        self.worker.reset(self.group, self.e, self.state, self.state.seed)
