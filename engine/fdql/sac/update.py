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
from fdql.sac.adamw import adamw_step, clip_gradient
from fdql.sac.critic_heads import critic_head
from fdql.sac.forward import Params, actor_moments, critic_outputs
from fdql.sac.learner import F64, I32, U8, check_batch, error_unit, target_entropy
from fdql.sac.learner_state import LearnerState
from fdql.sac.nets import F32, NetSpec, actor_shapes, all_shapes, value_shapes, views
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


class TorchLearner(LearnerState):
    """Implements `learner.Learner`; every parameter is a torch view on the vector `params`."""

    def __init__(
        self, spec: NetSpec, config: SacConfig, priority_exponent: float, seed: int,
        device: str = "cpu", threads: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(spec, config, seed)
        self.threads = threads
        self.thread_counts: tuple[int, ...] = (threads,)
        shared = spec.image is not None and device == "cpu"
        torch.set_num_threads(1 if shared else threads)
        self._shares = Shares(max(SHARES, threads) if shared else 1, threads)
        if spec.image is not None:
            encoder.keep_freed_memory()
        self._device = torch.device(device)
        self._image_dtype = encoder.image_dtype(config.image_dtype, device)
        self._exponent = priority_exponent
        self._head = critic_head(spec, config, self._device)
        self._unit = error_unit(spec, config)
        # On the CPU these share the arrays' memory; elsewhere _pull and _push copy.
        self._keep = self._tensor(self._decay)
        self._flat = self._tensor(self.params)
        self._flat_target = self._tensor(self.target)
        self._flat_moments = self._tensor(self.moments)
        # The same bytes twice: leaves that collect a gradient, frozen views that record nothing.
        frozen = views(self._flat, all_shapes(spec))
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
        scaled = self._tensor(reward) / float(reward_scale[0])
        actions, discounts = self._tensor(action), self._tensor(discount)
        temperature = math.exp(self.ln_temperature)  # of this whole update
        noise = None if self.spec.discrete else self._noise(len(obs))
        shift, next_shift = self._shifts(len(obs)), self._shifts(len(obs))

        def look(rows: slice) -> Share:
            inputs = self._inputs(obs[rows], obs_mean, obs_scale, shift[rows])
            next_inputs = self._inputs(next_obs[rows], obs_mean, obs_scale, next_shift[rows])
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
        clipped = sum(share.clipped for share in shares)
        self._after_critics(clipped, loss, norm, q.mean().item(), error.abs().mean().item())
        if self.spec.discrete:
            self._averages.add("entropy", entropy.mean().item())
            if self._solve_due:
                goal = target_entropy(self.spec, self.config)
                self._solved(heads.temperature_root(next_q, goal, self.config.min_temperature))
        elif self._actor_turn:
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
            if noise is None:  # policy from the online critics, values from the targets (double Q)
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

    def _shifts(self, n: int) -> I32:
        """(n, 2) rows and columns by which images are moved. (DrQ, Kostrikov 2021, section 3.1)"""
        if self.spec.image is None:
            return np.zeros((n, 2), np.int32)
        most = [int(self.config.image_shift * side) for side in self.spec.image[1:]]
        low, high = np.negative(most), np.add(most, 1)
        return self._rng.integers(low, high, (n, 2), dtype=np.int32)

    def _inputs(self, obs: F32 | U8, mean: F32, scale: F32, shift: I32) -> Tensor:
        """Normalised vectors (B, O), or images less their mean, moved, (B, C, H, W)."""
        if self.spec.image is None:
            return heads.normalised_obs(*(self._tensor(x) for x in (obs, mean, scale)))
        image, dtype = self.spec.image, self._image_dtype
        return encoder.less_mean(obs, image, mean, dtype, shift).to(self._device)

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

    def _action_outputs(self, critic: Params, x: Tensor) -> Tensor:
        """What both critics say of every discrete action, (2, B, A, K)."""
        return critic_outputs(critic, x).view(2, len(x), self.spec.action_dim, self.spec.bins)

    def _actor_step(self, x: Tensor, temperature: float) -> None:
        """Move the actor up the critics, ln temperature down entropy - goal (Haarnoja 2018)."""
        mean, ln_std = actor_moments(self._actor, x)
        noise = self._noise(len(x))
        std = ln_std.exp()
        pre_tanh = mean + std * noise
        ln_density = heads.squashed_normal_ln_density(pre_tanh, noise, ln_std)
        q = self._head.value(critic_outputs(self._frozen, torch.cat([x, torch.tanh(pre_tanh)], 1)))
        loss = heads.actor_loss(ln_density, q, temperature)
        gradient = self._gradient(loss, self._actor)
        norm = self._step(
            "actor", gradient, loss.item(), slice(self._split, None), self._actor_turn
        )
        self._after_actor(loss.item(), norm, -ln_density.mean().item(), std.mean().item())

    def _gradient(self, loss: Tensor, leaves: Params) -> Tensor:
        """Of the loss, (leaves' sizes together,)."""
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return torch.cat([g.flatten() for g in gradients])

    def _step(self, what: str, gradient: Tensor, loss: float, part: slice, step: int) -> float:
        """Clip, apply AdamW to one network; returns the norm before the clip."""
        norm = clip_gradient(gradient, self.config.gradient_clip)
        self._check_norm(what, norm, loss)
        moments, keep = self._flat_moments[:, part], self._keep[part]
        adamw_step(self._flat[part], gradient, moments, keep, self.config.step_size, step)
        return norm

    def _noise(self, n: int) -> Tensor:
        """(n, A) standard normal."""
        shape = (n, self.spec.action_dim)
        return self._tensor(self._rng.standard_normal(shape, dtype=np.float32))
