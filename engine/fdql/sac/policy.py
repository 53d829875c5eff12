"""Acting: the forward pass of a published policy, and exploration noise on top of it. No torch.

Stage `inference` (one owner: the inference process) and the evaluator. A Policy is loaded from
the flat snapshot that the learner publishes (nets.policy_shapes); an Explorer turns its output into
actions for training and keeps the held noise of every lane. An inference round is one
`Explorer.act` for all rows that are ready, whatever lanes they belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fdql.config import ExploreConfig
from fdql.sac import health
from fdql.sac import kernels_act as kernels
from fdql.sac.learner import pack_generator, unpack_generator
from fdql.sac.nets import (
    F32,
    HEADS,
    OBS_CLIP,
    NetSpec,
    output_support,
    policy_shapes,
    size_of,
    views,
)

I64 = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Obs = NDArray[Any]  # float32 (n, O), or uint8 (n, O) where the policy sees images
HELD = ("left", "held", "warmup_left", "warmup_held")  # noise that lanes hold
Actions = NDArray[Any]  # float32 (n, A) in [-1, 1], or int32 (n,) when discrete


class Policy:
    """What the learner published last, ready to be evaluated; one thread at a time.

    spec   shapes of the networks
    flat   float32 (size_of(policy_shapes(spec)),): copied, so it may be shared memory
    """

    def __init__(self, spec: NetSpec, flat: F32) -> None:
        self.spec: Final = spec
        shapes = policy_shapes(spec)
        self.snapshot: Final[F32] = np.empty(size_of(shapes), dtype=np.float32)
        self._views: Final = views(self.snapshot, shapes)
        self.support: Final[F32] = output_support(spec)
        self._encoder: Callable[[NDArray[np.uint8]], F32] | None = None
        if spec.image is not None:
            from fdql.sac.encoder import Encoder  # brings torch, which takes seconds

            self._encoder = Encoder(spec, self._views)
        self._scratch = self._allocate(8)
        self.load(flat)

    def load(self, flat: F32) -> None:
        """Copy a snapshot. ValueError when its length or type is not that of this policy's spec."""
        if flat.shape != self.snapshot.shape or flat.dtype != np.float32:
            raise ValueError(
                f"snapshot is {flat.dtype} {flat.shape}, must be float32 {self.snapshot.shape} "
                f"for {self.spec}"
            )
        self.snapshot[:] = flat

    @property
    def temperature(self) -> float:
        """Temperature at the time of the snapshot, scaled reward units."""
        return float(self._views["temperature"][0])

    @property
    def reward_scale(self) -> float:
        """Divisor of the rewards at the time of the snapshot: raw value = value * reward_scale."""
        return float(self._views["reward_scale"][0])

    def features(self, obs: Obs) -> F32:
        """What the network's kernels take: vectors as they are, images encoded, (n, F) float32.

        obs (n >= 1, O) C-contiguous, float32, or uint8 where images are seen; else ValueError.
        """
        images, spec = self._encoder is not None, self.spec
        dtype = np.uint8 if images else np.float32
        good = obs.ndim == 2 and obs.shape[0] > 0 and obs.shape[1] == spec.obs_dim
        if not good or obs.dtype != dtype or not obs.flags.c_contiguous:
            raise ValueError(
                f"obs is {obs.dtype} {obs.shape}, must be C-contiguous {np.dtype(dtype).name} "
                f"(n >= 1, {spec.obs_dim})"
            )
        return obs if self._encoder is None else self._encoder(obs)

    def action_values(self, obs: Obs, action: Actions) -> F32:
        """Mean of both critics at the actions, float32 (n,), scaled reward units."""
        return health.action_values(self.spec, self._views, self._normalised(obs), action)

    def dead_share(self, obs: Obs, action: Actions) -> float:
        """Share of the critics' hidden units that none of these rows excites."""
        return health.dead_share(self.spec, self._views, self._normalised(obs), action)

    def _normalised(self, obs: Obs) -> F32:
        x, v = self.features(obs), self._views
        if self.spec.image is not None:
            return x
        scaled: F32 = np.clip((x - v["obs_mean"]) * v["obs_scale"], -OBS_CLIP, OBS_CLIP)
        return scaled

    def q_values(self, obs: Obs) -> F32:
        """Mean of both critics, float32 (n, A), scaled reward units; discrete only (ValueError)."""
        if not self.spec.discrete:
            raise ValueError(
                "q_values needs discrete actions; action_values judges given ones of either kind"
            )
        x = self.features(obs)
        return np.array(kernels.mean_q(self.snapshot, x, self.support, self.scratch(len(x))))

    def distribution(self, obs: Obs) -> tuple[F32, F32]:
        """Mean and deviation before tanh, float32 (n, A) each; continuous only (ValueError)."""
        if self.spec.discrete:
            raise ValueError("distribution needs continuous actions; q_values is for discrete ones")
        x = self.features(obs)
        mean, std = kernels.mean_and_std(self.snapshot, x, self.scratch(len(x)))
        return np.array(mean), np.array(std)

    def greedy(self, obs: Obs, out: Actions) -> None:
        """The best action for every row of obs (n, O), raw: argmax of q_values, or tanh of mean."""
        check_actions(self.spec, len(obs), out)
        x = self.features(obs)
        scratch = self.scratch(len(x))
        if self.spec.discrete:
            kernels.greedy_discrete(self.snapshot, x, self.support, scratch, out)
        else:
            kernels.greedy_continuous(self.snapshot, x, scratch, out)

    def scratch(self, rows: int) -> kernels.Scratch:
        """Working memory of the kernels for so many rows."""
        if rows > len(self._scratch.x):
            self._scratch = self._allocate(1 << (rows - 1).bit_length())
        return self._scratch

    def _allocate(self, rows: int) -> kernels.Scratch:
        s = self.spec
        width, outputs = (
            (s.critic_width, s.critic_out) if s.discrete else (s.actor_width, 2 * s.action_dim)
        )
        columns = (s.features, width, width, None, outputs, s.action_dim, s.action_dim)
        return kernels.Scratch(
            HEADS.index(s.head),
            s.scales,
            s.obs_dim + s.scales + 2,
            *(np.empty(rows if c is None else (rows, c), dtype=np.float32) for c in columns),
        )


def check_actions(spec: NetSpec, rows: int, out: Actions) -> None:
    """ValueError unless `out` can take the actions of `rows` observations."""
    shape, dtype = ((rows,), np.int32) if spec.discrete else ((rows, spec.action_dim), np.float32)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"out is {out.dtype} {out.shape}, must be C-contiguous {np.dtype(dtype).name} {shape}"
        )


def precompile(net: NetSpec) -> None:
    """Compile, or load from the cache, every kernel that acting calls: seconds once, then 0.4 s.

    Call it before the first environment step, or the first action of each kind waits for it.
    """
    discrete = net.discrete
    spec = NetSpec(
        obs_dim=1, action_dim=2, discrete=discrete, critic_width=8, actor_width=8, bins=3
    )
    policy = Policy(spec, np.ones(size_of(policy_shapes(spec)), dtype=np.float32))
    explorer = Explorer(spec, ExploreConfig(), 1, explorer_mask(1.0, 1), 0)
    obs, lanes = np.zeros((1, 1), np.float32), np.zeros(1, np.int64)
    out: Actions = np.zeros(1, np.int32) if discrete else np.zeros((1, 2), np.float32)
    policy.greedy(obs, out)
    for warmup in (True, False):
        explorer.act(policy, obs, lanes, warmup, out)
    if net.image is not None:
        seeing = Policy(net, np.zeros(size_of(policy_shapes(net)), dtype=np.float32))
        seeing.features(np.zeros((1, net.obs_dim), dtype=np.uint8))


def explorer_mask(share: float, n_lanes: int) -> BoolArray:
    """The first round(share * n_lanes) lanes explore. bool (n_lanes,)."""
    return np.arange(n_lanes) < round(share * n_lanes)


def hold_distribution(exponent: float, longest: int) -> NDArray[np.float64]:
    """Cumulative probability of a hold of 1..longest steps, P(k) ~ k ** -exponent; (longest,)."""
    weights = np.arange(1.0, longest + 1.0) ** -exponent
    return np.cumsum(weights / weights.sum())


class Explorer:
    """Training actions of lanes 0..n_lanes-1 and the noise each lane holds; one thread at a time.

    White noise alone finds no distant goals, noise held for k ~ zeta(2) steps does (Dabney 2021;
    pink noise, Eberhard 2023). Noise is held in warm-up, where it is all there is, by explorers,
    and by every continuous policy, which otherwise falls before it can run. Continuous explorers
    are explorers for explorer_steps actions in all; discrete ones always.

    explorer   bool (n_lanes,): which lanes explore harder than the policy
    seed       of the noise; the same calls give the same actions
    """

    def __init__(
        self, spec: NetSpec, config: ExploreConfig, n_lanes: int, explorer: BoolArray,
        seed: int | Sequence[int],
    ) -> None:  # fmt: skip
        if explorer.shape != (n_lanes,) or explorer.dtype != np.bool_:
            raise ValueError(
                f"explorer is {explorer.dtype} {explorer.shape}, must be bool ({n_lanes},)"
            )
        self.spec: Final = spec
        self.explorer: Final[BoolArray] = explorer.copy()
        self._n_lanes = n_lanes
        self._epsilon = config.explorer_epsilon
        self._factor = np.float32(config.explorer_std_factor)
        self._least = np.float32(config.explorer_min_std)
        self._steps_left = config.explorer_steps
        self.skip(0)
        self._rng = np.random.default_rng(seed)
        exponent = config.hold_exponent
        self._cumulative = hold_distribution(exponent, config.hold_longest)
        self._policy_cumulative = hold_distribution(exponent, config.policy_hold_longest)
        held: Any = np.zeros((n_lanes, spec.action_dim), dtype=np.float32)
        if spec.discrete:
            held = np.zeros(n_lanes, dtype=np.int64)
        self._left, self._held = np.zeros(n_lanes, np.int64), held
        self._warmup_left, self._warmup_held = self._left.copy(), held.copy()

    def act(self, policy: Policy | None, obs: Obs, lanes: I64, warmup: bool, out: Actions) -> None:
        """Write one action per row. Row i is the newest observation of lane lanes[i].

        policy   may be None during warm-up, which does not look at it
        obs      (n, O), raw                  lanes  int64 (n,) in 0..n_lanes-1
        out      float32 (n, A) in [-1, 1], or int32 (n,) when discrete
        Raises ValueError for anything of another shape or type, and for a lane out of range.
        """
        rows = len(obs)
        check_actions(self.spec, rows, out)
        if lanes.shape != (rows,) or lanes.dtype != np.int64 or not lanes.flags.c_contiguous:
            raise ValueError(
                f"lanes is {lanes.dtype} {lanes.shape}, must be C-contiguous int64 ({rows},)"
            )
        if rows and lanes.view(np.uint64).max() >= self._n_lanes:  # a negative lane is a huge one
            raise ValueError(f"lanes {lanes.tolist()}: must be in 0..{self._n_lanes - 1}")
        self.skip(rows)
        if warmup:
            self._warm_up(lanes, out)
            return
        if policy is None:
            raise ValueError("act without a policy is for warm-up only")
        x = policy.features(obs)
        scratch = policy.scratch(rows)
        noise = (self._cumulative, self._left, self._held, out)
        if self.spec.discrete:
            uniform = self._rng.random((rows, self.spec.action_dim + 3))
            kernels.act_boltzmann(
                policy.snapshot, x, policy.support, scratch, lanes, self.explorer,
                uniform, self._epsilon, *noise,
            )  # fmt: skip
        else:
            normal = self._rng.standard_normal((rows, self.spec.action_dim), dtype=np.float32)
            kernels.act_tanh_normal(
                policy.snapshot, x, scratch, lanes, self.explorer,
                normal, self._rng.random(rows), self._factor, self._least,
                self._policy_cumulative, *noise,
            )  # fmt: skip

    def skip(self, steps: int) -> None:
        """Count so many actions as taken: what continuous explorers have left of their time."""
        self._steps_left -= steps
        if self._steps_left <= 0 and not self.spec.discrete:
            self.explorer[:] = False

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of everything that the next actions depend on beside the policy."""
        steps = np.array([self._steps_left])
        held = {name: getattr(self, "_" + name).copy() for name in HELD}
        return held | {"generator": pack_generator(self._rng), "steps_left": steps}

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Continue where `state`, of an explorer with the same lanes, was taken."""
        for name in HELD:
            getattr(self, "_" + name)[...] = state[name]
        self._rng = unpack_generator(state["generator"])
        self.skip(self._steps_left - int(state["steps_left"][0]))

    def _warm_up(self, lanes: I64, out: Actions) -> None:
        noise = (self._cumulative, self._warmup_left, self._warmup_held, out)
        actions = self.spec.action_dim
        if self.spec.discrete:
            kernels.hold_uniform_discrete(lanes, actions, self._rng.random((lanes.size, 2)), *noise)
        else:
            uniform = self._rng.random((lanes.size, actions), dtype=np.float32)
            kernels.hold_uniform(lanes, uniform, self._rng.random(lanes.size), *noise)
