"""What the engine knows of an environment, and the way of actions back to it. Imports no
Gymnasium, so that trainer and inference start without it.

Stage 1 of 8, `step`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.facts import from_facts
from fdql.frames import ToRow, row_function
from fdql.shm.chunk import RowShape


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvSpec:
    """What the engine knows of an environment.

    obs_dim           components of the observation, flattened
    obs_shape         its shape in the environment
    discrete          kind of action
    action_dim        actions to choose from (discrete) or components of the action
    action_shape      shape of a continuous action in the environment
    action_start      first action's number (discrete)
    low, high         bounds of a continuous action, flattened
    return_threshold  mean return at which the environment counts as solved, None when nobody says
    eval_episodes     episodes that such a mean is taken over
    image             (channels, height, width) of an observation that is an image, else None:
                      obs_dim counts its numbers, which are stored as uint8, channel by channel
    stack             newest images that the network sees at once
    eval_epsilon      share of random actions in these episodes (docs/adr/0021)
    atari             training sees the sign of a reward, and a lost life as the episode's end
    """

    env: str
    obs_dim: int
    obs_shape: tuple[int, ...]
    discrete: bool
    action_dim: int
    action_shape: tuple[int, ...]
    action_start: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    return_threshold: float | None
    eval_episodes: int
    image: tuple[int, int, int] | None = None
    stack: int = 1
    atari: bool = False
    eval_epsilon: float = 0.0

    @property
    def to_row(self) -> ToRow:
        """The function from one observation to its row (obs_dim,). Ask once, call it often."""
        return row_function(self.obs_shape, self.image)

    @property
    def rows(self) -> RowShape:
        """What one step of it leaves in a chunk and in the replay."""
        return RowShape(
            obs_dim=self.obs_dim,
            action_dim=self.action_dim,
            discrete=self.discrete,
            pixels=self.image is not None,
            stack=self.stack,
        )

    @property
    def net_inputs(self) -> dict[str, Any]:
        """What decides the outer shapes of networks for it, by the names that NetSpec has."""
        image = self.image and (self.stack * self.image[0], *self.image[1:])
        return {
            "obs_dim": self.stack * self.obs_dim,
            "action_dim": self.action_dim,
            "discrete": self.discrete,
            "image": image,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Any) -> EnvSpec:
        """Inverse of to_dict. Raises ValueError when a key is missing, unknown or of another
        type.
        """
        return from_facts(EnvSpec, values)


class ActionScale:
    """From the policy's actions to the environment's: [-1, 1] onto the Box, or indices onto the
    Discrete.
    """

    def __init__(self, spec: EnvSpec) -> None:
        self._spec = spec
        self._low = np.asarray(spec.low, dtype=np.float64)
        self._half = (np.asarray(spec.high, dtype=np.float64) - self._low) / 2

    def __call__(self, actions: NDArray[Any]) -> Sequence[Any]:
        """Many actions at once: (n, A) float32 in [-1, 1] or (n,) int32; returns what env.step
        takes, n times.
        """
        if self._spec.discrete:
            return [int(a) for a in (actions + self._spec.action_start).tolist()]
        # In float64, so that -1 and 1 hit the float32 bounds exactly and never step over them.
        scaled = (self._low + (actions.astype(np.float64) + 1.0) * self._half).astype(np.float32)
        return list(scaled.reshape(-1, *self._spec.action_shape))
