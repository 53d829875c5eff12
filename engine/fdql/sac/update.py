"""The reference learner: one SAC update in eager torch, read top to bottom.

Entropy-free backup (Yu 2022), twin distributional critics (critic_heads.py) on scaled rewards,
exact Boltzmann policy for discrete actions, tanh-Gaussian actor for continuous ones. Reads batches
as numpy arrays, writes the parameters and the batch's new priorities; the trainer is its only
caller. Stage 5 of 8, `update`.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fdql.config import SacConfig
from fdql.sac import encoder, heads
from fdql.sac.adamw import adam_scalar_step, adamw_step, clip_gradient
from fdql.sac.critic_heads import critic_head
from fdql.sac.forward import Params, actor_moments, critic_outputs
from fdql.sac.learner import (
    F64,
    I32,
    LN_TEMPERATURE_MAX,
    SOLVE_EVERY,
    SOLVE_RATE,
    SOLVE_WHOLE,
    U8,
    Averages,
    NotFiniteError,
    check_batch,
    check_state,
    error_unit,
    fill_snapshot,
    pack_generator,
    target_entropy,
    unpack_generator,
)
from fdql.sac.nets import (
    F32,
    NetSpec,
    actor_shapes,
    all_shapes,
    initialise,
    is_matrix,
    size_of,
    value_shapes,
    views,
)
from fdql.sac.shares import Shares

SHARES = 2  # of a batch of images, at least, so that one thread and two give the same sums


class Share(NamedTuple):
    """What some rows of a batch give, b of them.

    gradient  (C,) of their part of the critics' loss
    loss      that part
    clipped   share of the batch whose targets are theirs and beyond what the head can say
    rows      (b, F) features of s, (b,) values of (s, a), (b,) their targets, (b, A) values at s'
              (A = 0 where actions are continuous), (b,) the policy's entropy at s'
    """

    gradient: Tensor
    loss: Tensor
    clipped: float
    rows: tuple[Tensor, ...]


class TorchLearner:
    """Implements `learner.Learner`; every parameter is a torch view on the vector `params`."""

    def __init__(
        self, spec: NetSpec, config: SacConfig, priority_exponent: float, seed: int,
        device: str = "cpu", threads: int = 1,
    ) -> None:  # fmt: skip
        self.threads = threads
        self.thread_counts: tuple[int, ...] = (threads,)
        shared = spec.image is not None and device == "cpu"
        torch.set_num_threads(1 if shared else threads)  # sums depend on their number
        self._shares = Shares(max(SHARES, threads) if shared else 1, threads)
        if spec.image is not None:
            encoder.keep_freed_memory()
        self.spec = spec
        self._device = torch.device(device)
        self._image_dtype = encoder.image_dtype(config.image_dtype, device)
        self.config = config
        self._exponent = priority_exponent
        self._rng = np.random.default_rng(seed)
        self.params = initialise(spec, self._rng)
        self._split = size_of(value_shapes(spec))  # critics and encoder before it, actor after it
        self.target = self.params[: self._split].copy()
        self.moments = np.zeros((2, len(self.params)), dtype=np.float32)
        self.ln_temperature = math.log(config.init_temperature)
        self._temperature_moments = np.zeros(2)
        self.updates = 0
        self._averages = Averages(spec.discrete)
        self._head = critic_head(spec, config, self._device)
        self._unit = error_unit(spec, config)
        shapes = all_shapes(spec)
        keep = np.ones_like(self.params)
        for name, part in views(keep, shapes).items():
            if is_matrix(name):
                part[...] = 1.0 - config.step_size * config.weight_decay
        # On the CPU these share the arrays' memory; elsewhere _pull and _push copy.
        self._keep = self._tensor(keep)
        self._flat = self._tensor(self.params)
        self._flat_target = self._tensor(self.target)
        self._flat_moments = self._tensor(self.moments)
        # The same bytes twice: leaves that collect a gradient, frozen views that record nothing.
        frozen = views(self._flat, shapes)
        leaves = {k: v.detach().requires_grad_() for k, v in frozen.items()}
        self._critic = {k: v for k, v in leaves.items() if k in value_shapes(spec)}
        self._actor = {k: v for k, v in leaves.items() if k in actor_shapes(spec)}
        self._frozen = frozen
        self._frozen_target = views(self._flat_target, value_shapes(spec))

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _pull(self) -> None:
        """Bring params, target and moments up to date where the device has memory of its own."""
        if self._device.type != "cpu":
            for array, tensor in self._pairs():
                array[...] = tensor.cpu().numpy()

    def _push(self) -> None:
        """The inverse of _pull."""
        if self._device.type != "cpu":
            for array, tensor in self._pairs():
                tensor.copy_(torch.from_numpy(array))

    def _pairs(self) -> list[tuple[F32, Tensor]]:
        tensors = (self._flat, self._flat_target, self._flat_moments)
        return list(zip((self.params, self.target, self.moments), tensors, strict=True))

    def update(
        self, obs: F32 | U8, action: F32 | I32, reward: F32, discount: F32, next_obs: F32 | U8,
        obs_mean: F32, obs_scale: F32, reward_scale: F32, priority_out: F64,
    ) -> None:  # fmt: skip
        """See `learner.Learner.update`."""
        check_batch(
            self.spec, obs, action, reward, discount, next_obs, obs_mean, obs_scale, reward_scale,
            priority_out,
        )  # fmt: skip
        statistics = self._tensor(obs_mean), self._tensor(obs_scale)
        scaled = self._tensor(reward) / float(reward_scale[0])
        actions, discounts = self._tensor(action), self._tensor(discount)
        temperature = math.exp(self.ln_temperature)  # of this whole update
        noise = None if self.spec.discrete else self._noise(len(obs))

        def look(rows: slice) -> Share:
            inputs, next_inputs = (self._inputs(o[rows], *statistics) for o in (obs, next_obs))
            drawn = None if noise is None else noise[rows]
            batch = actions[rows], scaled[rows], discounts[rows]
            return self._look(inputs, next_inputs, *batch, drawn, temperature, len(obs))

        shares = self._shares(look, len(obs))
        gradient = reduce(torch.add, [share.gradient for share in shares])
        loss = sum(share.loss.item() for share in shares)
        norm = self._step("critic", gradient, loss, slice(0, self._split), self.updates + 1)
        columns = zip(*(share.rows for share in shares), strict=True)
        x, q, target, next_q, entropy = (torch.cat(column) for column in columns)
        error = target - q
        priority = heads.lap_priority(error, self._unit, self._exponent)
        priority_out[:] = priority.cpu().numpy()
        self._averages.add("critic_loss", loss)
        self._averages.add("critic_grad_norm", norm)
        self._averages.add("q_mean", q.mean().item())
        self._averages.add("td_error", error.abs().mean().item())
        self._averages.add("clipped_targets", sum(share.clipped for share in shares))
        if self.spec.discrete:
            self._averages.add("entropy", entropy.mean().item())
            self._solve_temperature(next_q)
        elif self.updates % self.config.policy_delay == 0:
            self._actor_step(x, temperature)
        self._flat_target.lerp_(self._flat[: self._split], self.config.target_rate)
        self.updates += 1

    def _look(
        self, inputs: Tensor, next_inputs: Tensor, action: Tensor, reward: Tensor, discount: Tensor,
        noise: Tensor | None, temperature: float, batch_size: int,
    ) -> Share:  # fmt: skip
        """What some rows of a batch give; changes nothing."""
        with torch.no_grad():
            online_x = self._features(self._frozen, next_inputs)
            slow_x = self._features(self._frozen_target, next_inputs)
            if noise is None:
                next_q = self._head.value(self._action_outputs(self._frozen, online_x)).mean(0)
                ln_policy = heads.boltzmann_policy(next_q, temperature)
                policy, surprise = ln_policy.exp(), heads.policy_entropy(ln_policy)
                slow = self._action_outputs(self._frozen_target, slow_x)
            else:
                next_q = online_x[:, :0]
                policy, surprise, slow = self._continuous_next(online_x, slow_x, noise)
            bonus = self.config.entropy_backup * temperature * surprise
            target = self._head.target(reward, discount, policy, bonus, slow)
        x = self._features(self._critic, inputs)
        if self.spec.discrete:
            each = torch.arange(len(x), device=x.device)
            outputs = self._action_outputs(self._critic, x)[:, each, action.long()]
        else:
            outputs = critic_outputs(self._critic, torch.cat([x, action], 1))
        share = len(x) / batch_size
        loss = self._head.loss(outputs, target.goal) * share
        gradient = self._gradient(loss, self._critic)
        q = self._head.value(outputs.detach()).mean(0)
        rows = (x.detach(), q, target.value, next_q, surprise)
        return Share(gradient, loss.detach(), target.clipped * share, rows)

    def _inputs(self, obs: F32 | U8, mean: Tensor, scale: Tensor) -> Tensor:
        """Normalised vectors (B, O), or centred images (B, C, H, W)."""
        if self.spec.image is None:
            return heads.normalised_obs(self._tensor(obs), mean, scale)
        return encoder.centred(obs, self.spec.image, self._image_dtype).to(self._device)

    def _features(self, p: Params, inputs: Tensor) -> Tensor:
        """What critics and actor see: the vector itself, or the encoder's view of images."""
        return inputs if self.spec.image is None else encoder.encode(p, inputs)

    def _continuous_next(
        self, online_x: Tensor, slow_x: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """1, -ln pi(a'|s') and what the target critics say, (2, b, 1, K), of one a' ~ pi(.|s').

        online_x, slow_x  features of s' of the online and of the target encoder
        """
        mean, ln_std = actor_moments(self._frozen, online_x)
        pre_tanh = mean + ln_std.exp() * noise
        inputs = torch.cat([slow_x, torch.tanh(pre_tanh)], 1)
        outputs = critic_outputs(self._frozen_target, inputs)[:, :, None]
        surprise = -heads.squashed_normal_ln_density(pre_tanh, noise, ln_std)
        return torch.ones_like(surprise)[:, None], surprise, outputs

    def _solve_temperature(self, next_q: Tensor) -> None:
        """Every SOLVE_EVERY updates that of the next one moves towards its root; next_q (B, A)."""
        if self.updates % SOLVE_EVERY == 0:
            goal = target_entropy(self.spec, self.config)
            root = heads.temperature_root(next_q, goal, self.config.min_temperature)
            rate = 1.0 if self.updates <= SOLVE_WHOLE else SOLVE_RATE
            self.ln_temperature += rate * (root - self.ln_temperature)

    def _action_outputs(self, critic: Params, x: Tensor) -> Tensor:
        """What both critics say of every discrete action, (2, B, A, K)."""
        return critic_outputs(critic, x).view(2, len(x), self.spec.action_dim, self.spec.bins)

    def _actor_step(self, x: Tensor, temperature: float) -> None:
        """Move the actor up the critics, ln temperature down entropy - goal (Haarnoja 2018)."""
        step = self.updates // self.config.policy_delay + 1
        mean, ln_std = actor_moments(self._actor, x)
        noise = self._noise(len(x))
        std = ln_std.exp()
        pre_tanh = mean + std * noise
        ln_density = heads.squashed_normal_ln_density(pre_tanh, noise, ln_std)
        q = self._head.value(critic_outputs(self._frozen, torch.cat([x, torch.tanh(pre_tanh)], 1)))
        loss = heads.actor_loss(ln_density, q, temperature)
        gradient = self._gradient(loss, self._actor)
        norm = self._step("actor", gradient, loss.item(), slice(self._split, None), step)

        entropy = -ln_density.mean().item()
        goal = target_entropy(self.spec, self.config, self.updates)
        self._temperature_step(entropy - goal, step)
        self._averages.add("actor_loss", loss.item())
        self._averages.add("actor_grad_norm", norm)
        self._averages.add("entropy", entropy)
        self._averages.add("action_std", std.mean().item())

    def _gradient(self, loss: Tensor, leaves: Params) -> Tensor:
        """Of the loss, (leaves' sizes together,)."""
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return torch.cat([g.flatten() for g in gradients])

    def _step(self, what: str, gradient: Tensor, loss: float, part: slice, step: int) -> float:
        """Clip, apply AdamW to one network; returns the norm before the clip."""
        norm = clip_gradient(gradient, self.config.gradient_clip)
        if not math.isfinite(norm):
            where = f"at update {self.updates}, loss {loss}"
            raise NotFiniteError(f"{what} gradient norm is {norm} {where}")
        moments, keep = self._flat_moments[:, part], self._keep[part]
        adamw_step(self._flat[part], gradient, moments, keep, self.config.step_size, step)
        return norm

    def _temperature_step(self, gradient: float, step: int) -> None:
        """Adam on ln temperature, then back into [min_temperature, 1]."""
        moved = self.ln_temperature + adam_scalar_step(
            self._temperature_moments, gradient, self.config.temperature_learning_rate, step
        )
        low = math.log(self.config.min_temperature)
        self.ln_temperature = min(max(moved, low), LN_TEMPERATURE_MAX)

    def _noise(self, n: int) -> Tensor:
        """(n, A) standard normal."""
        shape = (n, self.spec.action_dim)
        return self._tensor(self._rng.standard_normal(shape, dtype=np.float32))

    def snapshot(self, out: F32, obs_mean: F32, obs_scale: F32, reward_scale: F32) -> None:
        """See `learner.Learner.snapshot`."""
        self._pull()
        statistics = (obs_mean, obs_scale, reward_scale)
        fill_snapshot(self.spec, self.params, self.ln_temperature, *statistics, out)

    def metrics(self) -> dict[str, float]:
        """See `learner.Learner.metrics`."""
        goal = target_entropy(self.spec, self.config, self.updates)
        now = {"temperature": math.exp(self.ln_temperature), "target_entropy": goal}
        return self._averages.as_dict() | now

    def state(self) -> dict[str, NDArray[np.generic]]:
        """See `learner.Learner.state`."""
        self._pull()
        return {
            "params": self.params.copy(),
            "target": self.target.copy(),
            "moments": self.moments.copy(),
            "temperature": np.array([self.ln_temperature, *self._temperature_moments]),
            "updates": np.array([self.updates], dtype=np.int64),
            "generator": pack_generator(self._rng),
            "averages": self._averages.values.copy(),
        }

    def load_state(self, state: dict[str, NDArray[np.generic]]) -> None:
        """See `learner.Learner.load_state`."""
        check_state(self.state(), state)
        np.copyto(self.params, state["params"])
        np.copyto(self.target, state["target"])
        np.copyto(self.moments, state["moments"])
        self._push()
        np.copyto(self._averages.values, state["averages"])
        np.copyto(self._temperature_moments, state["temperature"][1:])
        self.ln_temperature = float(state["temperature"][0])
        self.updates = int(state["updates"][0])
        self._rng = unpack_generator(state["generator"])
