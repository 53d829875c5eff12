"""What both learners keep, and do with it alike. Stage 5 of 8, `update`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fdql.config import SacConfig
from fdql.sac.learner import (
    ADAM_BETA1,
    ADAM_BETA2,
    ADAM_EPS,
    LN_TEMPERATURE_MAX,
    SOLVE_EVERY,
    SOLVE_RATE,
    SOLVE_WHOLE,
    Averages,
    NotFiniteError,
    check_state,
    fill_snapshot,
    pack_generator,
    target_entropy,
    unpack_generator,
)
from fdql.sac.nets import (
    F32,
    NetSpec,
    all_shapes,
    initialise,
    is_matrix,
    size_of,
    value_shapes,
    views,
)


class LearnerState:
    """`learner.Learner` but for `update`, which writes params, target and moments in place."""

    def __init__(self, spec: NetSpec, config: SacConfig, seed: int) -> None:
        self.spec, self.config = spec, config
        self._rng = np.random.default_rng(seed)
        self.params: F32 = initialise(spec, self._rng)
        self._split = size_of(value_shapes(spec))  # critics and encoder before it, actor after it
        self.target: F32 = self.params[: self._split].copy()
        self.moments: F32 = np.zeros((2, len(self.params)), dtype=np.float32)
        self.ln_temperature = math.log(config.init_temperature)
        self._temperature_moments = np.zeros(2)
        self.updates = 0
        self._averages = Averages(spec.discrete)
        self._decay: F32 = np.ones_like(self.params)  # what AdamW multiplies the parameters by
        for name, part in views(self._decay, all_shapes(spec)).items():
            if is_matrix(name):
                part[...] = 1.0 - config.step_size * config.weight_decay

    def _pull(self) -> None:
        """Bring the arrays up to date where a device has memory of its own."""

    def _push(self) -> None:
        """The inverse of _pull."""

    def _check_norm(self, what: str, norm: float, loss: float) -> None:
        if not math.isfinite(norm):
            at = f"at update {self.updates}, loss {loss}"
            raise NotFiniteError(f"{what} gradient norm is {norm} {at}")

    def _after_critics(
        self, clipped: float, loss: float, norm: float, value: float, error: float
    ) -> None:
        self._averages.add("critic_loss", loss)
        self._averages.add("critic_grad_norm", norm)
        self._averages.add("q_mean", value)
        self._averages.add("td_error", error)
        self._averages.add("clipped_targets", clipped)

    def _after_actor(self, loss: float, norm: float, entropy: float, std: float) -> None:
        """Also a step of the temperature: down entropy - goal (Haarnoja 2018), by Adam."""
        goal = target_entropy(self.spec, self.config, self.updates)
        self._temperature_step(entropy - goal, self._actor_turn)
        self._averages.add("actor_loss", loss)
        self._averages.add("actor_grad_norm", norm)
        self._averages.add("entropy", entropy)
        self._averages.add("action_std", std)

    def _temperature_step(self, gradient: float, step: int) -> None:
        """Adam (Kingma 2015, algorithm 1) on ln temperature, then back into [min_temperature, 1].

        step is counted from 1.
        """
        m = self._temperature_moments
        m[0] += (1.0 - ADAM_BETA1) * (gradient - m[0])
        m[1] += (1.0 - ADAM_BETA2) * (gradient * gradient - m[1])
        root = math.sqrt(m[1] / (1.0 - ADAM_BETA2**step)) + ADAM_EPS
        rate = self.config.temperature_learning_rate / (1.0 - ADAM_BETA1**step)
        moved = self.ln_temperature - rate * float(m[0]) / root
        low = math.log(self.config.min_temperature)
        self.ln_temperature = min(max(moved, low), LN_TEMPERATURE_MAX)

    @property
    def _solve_due(self) -> bool:
        """Whether this update finds a discrete policy's temperature."""
        return self.updates % SOLVE_EVERY == 0

    @property
    def _actor_turn(self) -> int:
        """Which of the actor's updates belongs to this one of the critics, from 1; 0: none."""
        turn, rest = divmod(self.updates, self.config.policy_delay)
        return 0 if rest else turn + 1

    def _solved(self, root: float) -> None:
        """Move ln temperature, of the next update, towards the root that this one found."""
        rate = 1.0 if self.updates <= SOLVE_WHOLE else SOLVE_RATE
        self.ln_temperature += rate * (root - self.ln_temperature)

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
