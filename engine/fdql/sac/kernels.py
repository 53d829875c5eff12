"""The compiled learner: the update of update.py as Numba kernels on BLAS, no torch, no GIL.

Stage 5 of 8, `update`; the trainer is its only caller. The equations stand in kernels_discrete.py
and kernels_continuous.py, on top of kernels_targets.py and kernels_critic.py (critics),
kernels_gauss.py and kernels_quantiles.py (their heads), kernels_heads.py (formulas),
kernels_dense.py and kernels_backward.py (networks), kernels_adamw.py (steps), kernels_math.py.
This file owns the memory, the random numbers and the checks. A state saved by one learner loads
into the other.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fdql.config import SacConfig
from fdql.sac.jit import two_threads
from fdql.sac.kernels_continuous import Actor, update_continuous
from fdql.sac.kernels_critic import Critics, Rates, with_threads
from fdql.sac.kernels_discrete import Discrete, update_discrete
from fdql.sac.learner import F64, I32, U8, check_batch, error_unit, target_entropy
from fdql.sac.learner_state import LearnerState
from fdql.sac.nets import F32, HEADS, NetSpec, output_support

_WINDOW_SIGMAS = 6.0  # half width of the bins computed around a target; the mass beyond is 2e-9


class CompiledLearner(LearnerState):
    """Implements `learner.Learner`. Memory is laid out at the first update, for its batch size.

    threads   at most this many, 1 or 2: the two critics side by side; the same numbers bit for bit
    """

    def __init__(
        self, spec: NetSpec, config: SacConfig, priority_exponent: float, seed: int,
        threads: int = 1,
    ) -> None:  # fmt: skip
        if spec.image is not None:
            raise ValueError(f"{spec} has images; update.TorchLearner learns from them")
        if threads not in (1, 2):
            raise ValueError(f"threads = {threads}: 1, or 2 for one of each critic")
        self.threads = threads
        self.thread_counts = tuple(range(1, threads + 1))
        if threads == 2:
            two_threads()
        super().__init__(spec, config, seed)
        self._gradient: F32 = np.zeros_like(self.params)
        self._rates = Rates(
            learning_rate=config.step_size,
            gradient_clip=config.gradient_clip,
            target_rate=config.target_rate,
            v_max=spec.v_max,
            sigma_bins=config.sigma_bins,
            ln_min_temperature=math.log(config.min_temperature),
            priority_exponent=priority_exponent,
            pessimism=config.pessimism_for(spec.discrete),
            entropy_backup=config.entropy_backup,
        )
        self._rows = 0
        self._critics: dict[int, Critics]  # by the number of threads
        self._discrete: dict[int, Discrete]
        self._actor: Actor

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
        """See `learner.Learner.update`. ValueError too when an array is read-only or an action
        index is out of range."""
        batch = (
            obs, action, reward, discount, next_obs,
            obs_mean, obs_scale, reward_scale, priority_out,
        )  # fmt: skip
        check_batch(self.spec, *batch)
        if not all(x.flags.carray for x in batch):  # one layout, one compiled version
            raise ValueError("batch has a column that is read-only, unaligned or not in C order")
        if len(obs) != self._rows:
            self._allocate(len(obs))
        if self.spec.discrete:
            if action.view(np.uint32).max() >= self.spec.action_dim:  # a negative one is huge
                raise ValueError(f"action {action.min()}..{action.max()} does not fit {self.spec}")
            self._update_discrete(batch)
        else:
            self._update_continuous(batch)
        self.updates += 1

    def _update_discrete(self, batch: tuple[Any, ...]) -> None:
        entropy, root, clipped, loss, norm, value, error = update_discrete(
            self._critics[self.threads], self._discrete[self.threads], self._rates,
            math.exp(self.ln_temperature),
            target_entropy(self.spec, self.config), self._solve_due, self.updates + 1, *batch,
        )  # fmt: skip
        self._averages.add("entropy", entropy)
        if self._solve_due:
            self._solved(root)
        self._check_norm("critic", norm, loss)
        self._after_critics(clipped, loss, norm, value, error)

    def _update_continuous(self, batch: tuple[Any, ...]) -> None:
        shape = (self._rows, self.spec.action_dim)
        actor_step = self._actor_turn
        next_noise = self._rng.standard_normal(shape, dtype=np.float32)
        noise = self._rng.standard_normal(shape, dtype=np.float32) if actor_step else next_noise
        clipped, loss, norm, value, error, actor_loss, entropy, std, actor_norm = update_continuous(
            self._critics[self.threads], self._actor, self._rates, math.exp(self.ln_temperature),
            self.updates + 1, actor_step, next_noise, noise, *batch,
        )  # fmt: skip
        self._check_norm("critic", norm, loss)
        self._after_critics(clipped, loss, norm, value, error)
        if actor_step:
            self._check_norm("actor", actor_norm, actor_loss)
            self._after_actor(actor_loss, actor_norm, entropy, std)

    def _allocate(self, rows: int) -> None:
        """Working memory for batches of `rows`. Nothing in it outlives an update."""
        s, split, t = self.spec, self._split, self.thread_counts[-1:]
        w, actions = s.critic_width, s.action_dim if s.discrete else 1
        critics = Critics(
            **_head(s, self.config, rows, actions),
            params=self.params[:split], target=self.target, grad=self._gradient[:split],
            m=self.moments[0, :split], v=self.moments[1, :split], keep=self._decay[:split],
            **_activations(t, rows, w),
            outputs=_f32(*t, rows, s.bins), columns=_f32(*t, w, s.bins),
            y=_f32(rows), q=_f32(2, rows), loss=np.zeros(2),
            starts=np.linspace(0, rows, actions + 1).astype(np.int64),
        )  # fmt: skip
        self._critics = {n: with_threads(critics, n) for n in self.thread_counts}
        order = np.arange(rows)
        if s.discrete:
            discrete = Discrete(
                order=order, x=_f32(rows, s.obs_dim), next_x=_f32(rows, s.obs_dim),
                out=_f32(*t, rows, s.critic_out), online=_f32(2, rows, actions),
                q=_f32(rows, actions), policy=_f32(rows, actions), bonus=_f32(rows),
            )  # fmt: skip
            by_threads = [(n, discrete._replace(out=discrete.out[:n])) for n in self.thread_counts]
            self._discrete = dict(by_threads)
        else:
            self._actor = Actor(
                params=self.params[split:], grad=self._gradient[split:], keep=self._decay[split:],
                m=self.moments[0, split:], v=self.moments[1, split:],
                **_activations((), rows, s.actor_width),
                s=_f32(rows, s.obs_dim), next_s=_f32(rows, s.obs_dim), x=_f32(rows, s.critic_in),
                out=_f32(rows, 2 * s.action_dim), action=_f32(rows, s.action_dim),
                da=_f32(rows, s.action_dim), one=_f32(2, rows, s.action_dim),
                ln_density=_f32(rows), bonus=_f32(rows),
                policy=np.ones((rows, 1), dtype=np.float32), order=order,
            )  # fmt: skip
        self._rows = rows


def _f32(*shape: int) -> F32:
    return np.zeros(shape, dtype=np.float32)


def _head(s: NetSpec, config: SacConfig, rows: int, actions: int) -> dict[str, Any]:
    """What targets and losses of the head need, by the names of `Critics`; the other's is empty."""
    tqc = s.head == "tqc"
    kept = 2 * (s.bins - config.quantiles_dropped) if tqc else 0
    window = min(2 * math.ceil(_WINDOW_SIGMAS * config.sigma_bins) + 1, s.bins)
    return {
        "head": HEADS.index(s.head),
        "unit": error_unit(s, config),
        "support": output_support(s),
        "slow": _f32(2, 0 if tqc else rows, actions),
        "first": np.zeros(0 if tqc else rows, np.int64),
        "p": _f32(0 if tqc else rows, window),
        "pool": _f32(2, rows if tqc else 0, actions * s.bins),
        "z": _f32(rows, kept),
    }


def _activations(threads: tuple[int, ...], rows: int, width: int) -> dict[str, Any]:
    """What a forward and backward pass of one network keeps, by the names of the kernels."""
    wide = {name: _f32(*threads, rows, width) for name in ("n0", "x1", "n1", "x2", "d2", "d1")}
    return wide | {"r0": _f32(*threads, rows), "r1": _f32(*threads, rows)}
