"""Observations as rows: which ones are images and how they lie, the row that one becomes, and the
stack of newest rows that the network sees. Imports neither torch nor numba.

Stage 1 of 8, `step`: the environment workers, the evaluator and a loaded policy make their rows
here, so that all three see the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fdql.config import BadValueError, ConfigError

if TYPE_CHECKING:  # trainer and inference start without Gymnasium
    from gymnasium.spaces import Box

SMALLEST_SIDE = 36  # pixels; a smaller image leaves the convolutions nothing to slide over
LEAST_CONTRAST = 128  # between an image's darkest and brightest pixel, as its space says
MOST_STACKED = 16  # frames of an observation that comes stacked
STACK = 4  # frames that the network sees of an environment that gives one at a time

ToRow = Callable[[Any], NDArray[Any]]


def has_sides(shape: tuple[int, ...]) -> bool:
    """True where an observation of `shape` is large enough in two directions to be an image."""
    return sum(side >= SMALLEST_SIDE for side in shape) >= 2


def check_pixels(env: str, obs: Box) -> None:
    """Refuse images that would be taken for vectors, or for darkness, without a word: floats or
    other numbers of 0 to 1 or to 255, and uint8 that hardly differs. ConfigError says what works.
    """
    if not has_sides(obs.shape):
        return
    low, high = float(obs.low.min()), float(obs.high.max())
    if obs.dtype != np.uint8 and low == 0.0 and high in (1.0, 255.0):
        raise ConfigError(
            f"env = {env!r} has observations {obs}: images must be uint8, 0 to 255, not scaled by "
            "the environment; if they are none, gymnasium.wrappers.FlattenObservation in your own "
            "factory makes a vector of them"
        )
    if obs.dtype == np.uint8 and high - low < LEAST_CONTRAST:
        raise ConfigError(
            f"env = {env!r} has images from {low:g} to {high:g}: 0 to 255 is what the network "
            "looks for; spread them in your own factory, or take them as numbers with "
            "gymnasium.wrappers.FlattenObservation"
        )


def image_layout(env: str, shape: tuple[int, ...]) -> tuple[tuple[int, int, int] | None, int]:
    """How observations of `shape`, uint8, are taken: ((channels, height, width), stack), or (None,
    1) when they are not images and flattened to a vector.

    (H, W)     H, W >= 36: one grey frame; the network sees the newest 4
    (H, W, C)  C in 1..4: one frame, channels last; the network sees the newest 4
    (1, H, W)  the same as (H, W)
    (K, H, W)  K in 2..16: K frames that the environment stacked itself; the network sees these

    One frame hides what moves, hence the 4. Without two sides of at least 36 it is no image: a
    vector, or a grid such as MiniGrid's. Raises ConfigError for any other shape.
    """
    if not has_sides(shape):
        return None, 1
    match shape:
        case (height, width) | (1, height, width):
            return (1, height, width), STACK
        case (height, width, channels) if channels <= 4:
            return (channels, height, width), STACK
        case (stacked, height, width) if stacked <= MOST_STACKED:
            return (stacked, height, width), 1
    raise ConfigError(
        f"env = {env!r} has image observations of shape {shape}: (height, width), (height, width, "
        f"channels) with up to 4 channels and (frames, height, width) with up to {MOST_STACKED} "
        "frames work; in your own factory gymnasium.wrappers.GrayscaleObservation takes the "
        "colours away and gymnasium.wrappers.ResizeObservation(env, (84, 84)) sets the size; "
        "frames need not be stacked: of single ones the network sees the newest 4"
    )


def channels_last(obs_shape: tuple[int, ...], image: tuple[int, int, int] | None) -> bool:
    """True for (H, W, C): H is at least 36 and C at most 4, so it equals no (C, H, W)."""
    return image is not None and len(obs_shape) == 3 and obs_shape != image


def row_function(obs_shape: tuple[int, ...], image: tuple[int, int, int] | None) -> ToRow:
    """The function from one observation to its row (obs_dim,): a vector's numbers as float32, an
    image's as uint8, channel by channel. The row may share the observation's memory.

    It raises BadValueError, with an end of "the environment returned ...", when an observation is
    no numbers, too many or too few, or an image of another shape or not of uint8.
    """
    if image is None:
        asarray, dtype = np.asarray, np.float32  # names of its own: every vector step comes by
        obs_dim = math.prod(obs_shape)

        def vector(obs: Any) -> NDArray[Any]:
            try:
                return asarray(obs, dtype).reshape(obs_dim)
            except (TypeError, ValueError) as error:
                shape = getattr(obs, "shape", None)
                what = f"an observation of shape {shape}" if shape is not None else repr(obs)[:80]
                raise BadValueError(f"{what} where its space says {obs_shape} ({error})") from None

        return vector
    last = channels_last(obs_shape, image)

    def row(obs: Any) -> NDArray[Any]:
        frame = np.asarray(obs)
        if frame.dtype != np.uint8:  # 0..1 as floats would become black without a word
            raise BadValueError(f"an image of {frame.dtype}; its observation space says uint8")
        if frame.shape != obs_shape:
            raise BadValueError(f"an image of shape {frame.shape} where its space says {obs_shape}")
        return (frame.transpose(2, 0, 1) if last else frame).reshape(-1)

    return row


def to_rows(
    obs: NDArray[Any], obs_shape: tuple[int, ...], image: tuple[int, int, int] | None, stack: int
) -> NDArray[Any]:
    """Many stacks at once: (n, stack, *obs_shape), or (n, *obs_shape) when stack is 1, to
    (n, stack * obs_dim), contiguous and of the same dtype. Oldest first, as FrameStacks has them.
    """
    frames = obs.reshape(-1, *obs_shape)
    if channels_last(obs_shape, image):
        frames = frames.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(frames.reshape(len(frames) // stack, -1))


class FrameStacks:
    """The newest `stack` rows of n environments each: what the network is asked about.

    rows    (n, stack * obs_dim) float32 or uint8, given: an environment's rows, oldest first; the
            episode's first again for those before it
    newest  (n, obs_dim), a view of rows
    """

    def __init__(self, rows: NDArray[Any], stack: int) -> None:
        obs_dim = rows.shape[1] // stack
        self.rows, self.newest = rows, rows[:, -obs_dim:]
        self._older, self._later = rows[:, :-obs_dim], rows[:, obs_dim:]
        # Without a stack both are one assignment, and the caller's loop is a hot one.
        self.reset: Callable[[int, NDArray[Any]], None] = self.newest.__setitem__
        self.push: Callable[[int, NDArray[Any]], None] = self.newest.__setitem__
        if stack > 1:
            self.reset, self.push = self._reset, self._push

    def _reset(self, i: int, row: NDArray[Any]) -> None:
        """`row` (obs_dim,) is environment i's first of an episode."""
        self.rows[i].reshape(-1, len(row))[:] = row

    def _push(self, i: int, row: NDArray[Any]) -> None:
        """`row` (obs_dim,) is environment i's next of its episode."""
        self._older[i] = self._later[i]  # they overlap; NumPy copies in the order that is right
        self.newest[i] = row
