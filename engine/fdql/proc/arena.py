"""Episodes of one policy in environments side by side, from the same start seeds every time: greedy
but for a share of random actions, which are the same every time too.

The evaluator keeps one for the whole run; a loaded policy plays in one too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.config import BadValueError, ConfigError
from fdql.env_spec import ActionScale, EnvSpec
from fdql.envs import make_env
from fdql.frames import FrameStacks
from fdql.interval import interval_95
from fdql.registry import Env
from fdql.sac.policy import Policy

MOST_ENVS = 32  # environments that play side by side
# Streams of start seeds beside training's: of the evaluations that choose a run's best policy, and
# of those that judge it afterwards, which would be flattered by the starts it was chosen on.
WHILE_TRAINING, AFTERWARDS = 2, 3


class EnvFailedError(RuntimeError):
    """An environment raised something, its cause: which environment, what, in which episode."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Undiscounted returns and lengths of the episodes of one evaluation, in the order of their
    seeds; beside them what the critics promised.

    discounted  discounted sum of what the learner counts as reward until what it counts as the end
    values      Q of the first observation and action, scaled reward units
    cut         episodes that were not over after the longest that is allowed
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    discounted: NDArray[np.float64]
    values: NDArray[np.float32]
    cut: int = 0

    def q_bias(self, reward_scale: float) -> float:
        """Mean of Q less what came of it, scaled reward units: above 0, critics promise too much.

        An episode that was cut counts as if nothing had come after.
        """
        return float((self.values - self.discounted / reward_scale).mean())

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns over the episodes."""
        return float(self.returns.std())

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean, None for a single episode."""
        return interval_95(self.returns.tolist())


def start_seeds(seed: int, stream: int, episodes: int) -> list[int]:
    """Seeds of the episodes' starts; the i-th is the same for any number of episodes."""
    return [int(s) for s in np.random.SeedSequence([seed, stream]).generate_state(episodes)]


class Arena:
    """Environments for evaluation, kept between evaluations; episode i always starts from seeds[i],
    which also decides which of its actions are random, a share of `epsilon`, and what they are.
    Atari games are played to their end, lost lives and all, and count their rewards as they are.

    Raises EnvFailedError where an environment raises, BadValueError where it returns what cannot
    be used.
    """

    def __init__(
        self, env: EnvSpec, seeds: list[int], longest: int, discount: float,
        epsilon: float = 0.0, render_mode: str | None = None,
    ) -> None:  # fmt: skip
        self.episodes, self.longest, self.discount = len(seeds), longest, discount
        self.epsilon = epsilon
        self.seeds, self.env, self.atari = seeds, env, env.atari
        self.envs = [self._made(render_mode) for _ in range(min(len(seeds), MOST_ENVS))]
        self.lives = [0] * len(self.envs)  # left in Atari games
        self.whims = [np.random.default_rng(0)] * len(self.envs)  # of the episode that each plays
        self.ended = 0  # episodes of the evaluation that is played, or was last
        self.scale = ActionScale(env)
        rows = np.zeros((len(self.envs), env.stack * env.obs_dim), dtype=env.rows.obs_dtype)
        self.to_row, self.stacks = env.to_row, FrameStacks(rows, env.stack)
        shape, dtype = ((), np.int32) if env.discrete else ((env.action_dim,), np.float32)
        self.out = np.zeros((len(self.envs), *shape), dtype=dtype)

    def _made(self, render_mode: str | None) -> Env:
        try:
            return make_env(self.env.env, render_mode)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            raise self.failed("while it was made", error) from error

    def play(self, policy: Policy, goes_on: Callable[[], bool]) -> Evaluation | None:
        """Play every episode once. None when `goes_on` says no in between."""
        n, obs = len(self.envs), self.stacks.rows
        returns, lengths = np.zeros(self.episodes), np.zeros(self.episodes, dtype=np.int64)
        discounted, values = np.zeros(self.episodes), np.zeros(self.episodes, dtype=np.float32)
        weight = np.ones(self.episodes)  # of the next reward in the discounted sum
        episode = list(range(n))  # that each environment is playing
        started, self.ended, cut = n, 0, 0
        for i in range(n):
            if i and not goes_on():  # asked, and so seen alive, between two that may take long
                return None
            self._reset(i, i)
        live = list(range(n))
        while live:
            if not goes_on():
                return None
            actions = self.out[: len(live)]
            policy.greedy(obs[live], actions)
            if self.epsilon:
                self._stray(live, actions)
            fresh = [k for k, i in enumerate(live) if lengths[episode[i]] == 0]
            if fresh:
                asked = [live[k] for k in fresh]
                judged = policy.action_values(obs[asked], actions[fresh])
                values[[episode[i] for i in asked]] = judged
            for i, action in zip(list(live), self.scale(actions), strict=True):
                e = episode[i]
                try:
                    step, raw, terminated, truncated, info = self.envs[i].step(action)
                    reward = float(raw)
                except (Exception, SystemExit) as error:
                    raise self.failed(self._place(e, int(lengths[e]) + 1), error) from error
                returns[e] += reward
                lengths[e] += 1
                discounted[e] += weight[e] * (float(np.sign(reward)) if self.atari else reward)
                weight[e] *= self.discount
                if self.atari:
                    lives = info.get("lives", 0)
                    if lives < self.lives[i]:
                        weight[e] = 0.0
                    self.lives[i] = lives
                if not math.isfinite(reward):
                    raise self._bad(e, int(lengths[e]), f"the reward {reward}")
                if not (terminated or truncated or lengths[e] >= self.longest):
                    self.stacks.push(i, self._row(step, e, int(lengths[e])))
                    continue
                self.ended += 1
                cut += not (terminated or truncated)
                if started < self.episodes:
                    if not goes_on():  # many may be reset in one pass
                        return None
                    episode[i] = started
                    self._reset(i, started)
                    started += 1
                else:
                    live.remove(i)
        return Evaluation(returns, lengths, discounted, values, cut)

    def _reset(self, i: int, episode: int) -> None:
        try:
            first, info = self.envs[i].reset(seed=self.seeds[episode])
        except (Exception, SystemExit) as error:
            raise self.failed(self._place(episode, 0), error) from error
        self.lives[i] = info.get("lives", 0)
        if self.epsilon:  # not the environment's own stream, which begins with the seed alone
            self.whims[i] = np.random.default_rng([self.seeds[episode], 1])
        self.stacks.reset(i, self._row(first, episode, 0))

    def _stray(self, live: list[int], actions: NDArray[Any]) -> None:
        """Replace a share of the actions by uniformly random ones."""
        for k, i in enumerate(live):
            rng = self.whims[i]
            if rng.random() < self.epsilon:
                if self.env.discrete:
                    actions[k] = rng.integers(self.env.action_dim)
                else:
                    actions[k] = rng.uniform(-1.0, 1.0, self.env.action_dim)

    def _row(self, obs: Any, episode: int, step: int) -> NDArray[Any]:
        """The row of an observation. Raises BadValueError naming what cannot be used."""
        try:
            row = self.to_row(obs)
        except BadValueError as error:
            raise self._bad(episode, step, str(error)) from None
        if self.env.image is None and not np.isfinite(row).all():
            raise self._bad(episode, step, f"the observation {row}")
        return row

    def _place(self, episode: int, step: int) -> str:
        return f"(episode of an evaluation, seed {self.seeds[episode]}, step {step})"

    def failed(self, where: str, error: BaseException) -> EnvFailedError:
        """What is raised `from error`, which an environment raised."""
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
        return EnvFailedError(f"environment {self.env.env!r} raised {said} {where}")

    def _bad(self, episode: int, step: int, what: str) -> BadValueError:
        return BadValueError(
            f"environment {self.env.env!r} {self._place(episode, step)} returned {what}: its "
            "spaces must say what it returns, and every number must be finite in float32; repair "
            "it in the environment"
        )

    def close(self) -> None:
        """Close the environments. One that cannot be closed has played its episodes all the
        same.
        """
        for env in self.envs:
            with contextlib.suppress(Exception):
                env.close()


def play(
    policy: Policy, env: EnvSpec, episodes: int, seed: int, discount: float, longest: int,
    epsilon: float,
) -> Evaluation:  # fmt: skip
    """One evaluation of a finished policy, in environments made for it; episodes that do not end
    are cut after `longest` steps, a share of `epsilon` of their actions is random.
    """
    arena = Arena(env, start_seeds(seed, AFTERWARDS, episodes), longest, discount, epsilon)
    try:
        result = arena.play(policy, lambda: True)
        assert result is not None
        return result
    finally:
        arena.close()
