"""What every learner agrees on: the interface, the numbers no setting changes, the random state.

Two learners implement it: `update.TorchLearner`, the readable reference, and a compiled one. Given
the same seed and the same batches both follow the same path up to rounding. Stage 5 of 8, `update`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fdql.config import BadValueError, SacConfig
from fdql.sac.nets import F32, NetSpec, critic_shapes, policy_shapes, size_of, value_shapes

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]

# AdamW and Adam (Kingma 2015, Loshchilov 2019); denominator sqrt(v / (1 - BETA2^t)) + ADAM_EPS
ADAM_BETA1 = 0.9
ADAM_BETA2 = 0.999
ADAM_EPS = 1e-8
CLIP_EPS = 1e-6  # a gradient g becomes g * min(1, clip / (|g| + CLIP_EPS))

# Discrete temperature: before updates 0, 10, 20, ... the exact root by bisection on ln temperature,
# taken as it is while `updates` <= SOLVE_WHOLE, averaged in with weight SOLVE_RATE afterwards.
SOLVE_EVERY = 10
SOLVE_BISECTIONS = 12
SOLVE_WHOLE = 50
SOLVE_RATE = 0.1
LN_TEMPERATURE_MAX = 0.0  # both kinds of action; the minimum is a setting

METRIC_RATE = 0.02  # metrics are exponential averages with this rate, begun at the first value


class NotFiniteError(BadValueError):
    """A gradient is NaN or infinite; nothing was changed by the step that would have used it."""


class Learner(Protocol):
    """One SAC learner; one thread calls it. Constructed by a `LearnerFactory`.

    spec, config   as given
    params         (P,) float32, all_shapes(spec)
    target         (C,) float32: targets of critics and encoder, value_shapes(spec)
    moments        (2, P) float32: AdamW's first and second moment of every parameter
    ln_temperature natural logarithm of the temperature, scaled reward units
    updates        updates made so far
    thread_counts  numbers of threads it can take without changing a bit of its numbers
    threads        which of them the next update takes; write it between updates
    The arrays are the learner's own memory: read them between updates, write only by load_state.

    Random draws come from one generator np.random.default_rng(seed): first `initialise(spec, rng)`;
    then, continuous actions only and in this order, standard_normal((B, A), dtype=float32) for the
    next action at every update, once more for the actor's action at updates 0, policy_delay, ...
    """

    spec: NetSpec
    config: SacConfig
    params: F32
    target: F32
    moments: F32
    ln_temperature: float
    updates: int
    thread_counts: tuple[int, ...]
    threads: int

    def update(
        self,
        obs: F32 | U8,
        action: F32 | I32,
        reward: F32,
        discount: F32,
        next_obs: F32 | U8,
        obs_mean: F32,
        obs_scale: F32,
        reward_scale: F32,
        priority_out: F64,
    ) -> None:
        """One update of critics, actor, temperature and target critics from one batch.

        obs, next_obs  (B, O) float32, raw; inside: clip((x - obs_mean) * obs_scale, -5, 5);
                       images (B, O) uint8, O = channels * height * width, inside:
                       (x - obs_mean) / 255
        action         (B, A) float32 in [-1, 1], or (B,) int32 in [0, A) when discrete
        reward         (B,) float32, raw sum of discounted rewards; inside divided by reward_scale
        discount       (B,) float32, gamma^m of the bootstrap, 0 where the episode terminated
        obs_mean, obs_scale  (O,) float32; obs_scale is 1 / deviation, of images (0,)
        reward_scale   (1,) float32
        priority_out   (B,) float64, overwritten with the new priorities
        Raises NotFiniteError when a gradient is not finite.
        """
        ...

    def snapshot(self, out: F32, obs_mean: F32, obs_scale: F32, reward_scale: F32) -> None:
        """Fill `out`, (size_of(policy_shapes(spec)),) float32, with what acting needs."""
        ...

    def metrics(self) -> dict[str, float]:
        """Averages over recent updates: critic_loss, q_mean, td_error, clipped_targets, entropy,
        critic_grad_norm, continuous also actor_loss, actor_grad_norm, action_std; as they are now:
        temperature, target_entropy. NaN what no update has produced yet."""
        ...

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Copies of everything that the next update depends on; one learner's state fits the other.

        params, target, moments  as the attributes
        temperature  (3,) float64: ln temperature, first and second Adam moment (continuous)
        updates      (1,) int64
        generator    (6,) uint64, pack_generator
        averages     float64, Averages.values
        """
        ...

    def load_state(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Continue bit for bit where `state` was taken. ValueError names what does not fit."""
        ...


LearnerFactory = Callable[[NetSpec, SacConfig, float, int], Learner]
"""(spec, config, priority_exponent, seed) -> Learner"""


class Averages:
    """Exponential averages behind `Learner.metrics`; NaN until a name gets its first value."""

    NAMES = ("critic_loss", "critic_grad_norm", "q_mean", "td_error", "clipped_targets", "entropy")
    CONTINUOUS_NAMES = ("actor_loss", "actor_grad_norm", "action_std")

    def __init__(self, discrete: bool) -> None:
        self._at = {n: i for i, n in enumerate(self.NAMES + self.CONTINUOUS_NAMES * (not discrete))}
        self.values: F64 = np.full(len(self._at), np.nan)
        """(names,) float64: the whole state."""

    def add(self, name: str, value: float) -> None:
        """Move the average of `name` by METRIC_RATE towards `value`; from NaN it jumps."""
        i = self._at[name]
        old = self.values[i]
        self.values[i] = old + METRIC_RATE * (value - old) if old == old else value

    def as_dict(self) -> dict[str, float]:
        """Name -> average."""
        return {name: float(self.values[i]) for name, i in self._at.items()}


def check_batch(
    spec: NetSpec,
    obs: F32 | U8,
    action: F32 | I32,
    reward: F32,
    discount: F32,
    next_obs: F32 | U8,
    obs_mean: F32,
    obs_scale: F32,
    reward_scale: F32,
    priority_out: F64,
) -> None:
    """Refuse arguments of `Learner.update` with a wrong shape, type or layout: ValueError.

    A (B, 1) reward would otherwise broadcast without a word, and a compiled kernel would read on.
    """
    n, o, a = len(obs), spec.obs_dim, spec.action_dim
    if not (
        obs.shape == next_obs.shape == (n, o)
        and n > 0
        and action.shape == ((n,) if spec.discrete else (n, a))
        and action.dtype == (np.int32 if spec.discrete else np.float32)
        and reward.shape == discount.shape == priority_out.shape == (n,)
        and (obs_mean.shape, obs_scale.shape) == ((o,), (spec.scales,))
        and obs.dtype == next_obs.dtype == (np.float32 if spec.image is None else np.uint8)
        and reward_scale.shape == (1,)
        and priority_out.dtype == np.float64
    ):
        raise ValueError(
            f"batch of obs {obs.shape} {obs.dtype}, action {action.shape} {action.dtype}, "
            f"reward {reward.shape}, discount {discount.shape}, next_obs {next_obs.shape}, "
            f"obs_mean {obs_mean.shape}, obs_scale {obs_scale.shape}, "
            f"reward_scale {reward_scale.shape}, priority_out "
            f"{priority_out.shape} {priority_out.dtype} does not fit {spec}"
        )
    if not (obs.flags.c_contiguous and next_obs.flags.c_contiguous):
        raise ValueError("batch has observations that are not in C order")
    for x in (reward, discount, obs_mean, obs_scale, reward_scale):
        if x.dtype != np.float32 or not x.flags.c_contiguous:
            raise ValueError(
                f"batch has a column of {x.dtype} {x.strides}; float32 in C order works"
            )


def check_state(
    mine: dict[str, NDArray[np.generic]], given: dict[str, NDArray[np.generic]]
) -> None:
    """Refuse a state whose names, shapes or types differ from `mine`: ValueError names which."""
    if mine.keys() != given.keys():
        raise ValueError(f"state has {sorted(given)}; this learner needs {sorted(mine)}")
    for name, array in mine.items():
        if (array.shape, array.dtype) != (given[name].shape, given[name].dtype):
            raise ValueError(
                f"state[{name!r}] is {given[name].shape} {given[name].dtype}; "
                f"this learner needs {array.shape} {array.dtype}"
            )


def fill_snapshot(
    spec: NetSpec, params: F32, ln_temperature: float, obs_mean: F32, obs_scale: F32,
    reward_scale: F32, out: F32,
) -> None:  # fmt: skip
    """`Learner.snapshot` of a learner's params. ValueError when `out` has another shape or type."""
    if out.shape != (size_of(policy_shapes(spec)),) or out.dtype != np.float32:
        raise ValueError(f"snapshot of {out.shape} {out.dtype} for {policy_shapes(spec)}")
    ends = [size_of(critic_shapes(spec)), size_of(value_shapes(spec))]
    critics, encoder, actor = np.split(params, ends)
    networks = (critics, encoder) if spec.discrete else (actor, encoder, critics)
    temperature = np.float32(math.exp(ln_temperature))
    np.concatenate([obs_mean, obs_scale, [temperature], reward_scale, *networks], out=out)


def target_entropy(spec: NetSpec, config: SacConfig, updates: int = 0) -> float:
    """The entropy (nats) that the temperature holds the policy at, stated as a noise level.

    continuous  A ln(std sqrt(2 pi e)): a normal density of that deviation (FlashSAC), target_std
                until target_std_updates, then falling as 1 / sqrt(updates)
    discrete    entropy of "greedy with chance 1 - epsilon, else uniform", 0 for a single action
    """
    n = spec.action_dim
    if not spec.discrete:
        fall = math.sqrt(min(1.0, config.target_std_updates / max(updates, 1)))
        return n * math.log(config.target_std * fall * math.sqrt(2 * math.pi * math.e))
    other = config.target_epsilon / n
    best = 1 - config.target_epsilon + other
    return -best * math.log(best) - (n - 1) * other * math.log(other)


def error_unit(spec: NetSpec, config: SacConfig) -> float:
    """The error up to which samples are equal to LAP: a bin's width, or Huber's threshold."""
    return config.quantile_huber if spec.head == "tqc" else 2.0 * spec.v_max / (spec.bins - 1)


def pack_generator(rng: np.random.Generator) -> U64:
    """State of a PCG64 generator as (6,) uint64: plain numbers, no objects."""
    s = rng.bit_generator.state
    mask = (1 << 64) - 1
    word, inc = s["state"]["state"], s["state"]["inc"]
    parts = [word >> 64, word & mask, inc >> 64, inc & mask, s["has_uint32"], s["uinteger"]]
    return np.array(parts, dtype=np.uint64)


def unpack_generator(packed: NDArray[np.generic]) -> np.random.Generator:
    """Inverse of pack_generator."""
    p = [int(x) for x in packed]
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": p[0] << 64 | p[1], "inc": p[2] << 64 | p[3]},
        "has_uint32": p[4],
        "uinteger": p[5],
    }
    return np.random.Generator(bits)
