"""A trained policy outside of training: load it from a run folder, act with it, evaluate it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.checkpoint import CheckpointError, Tensors
from fdql.config import Config, ConfigError, EngineConfig, EvalConfig, ExploreConfig
from fdql.env_spec import ActionScale, EnvSpec
from fdql.envs import MOST_COMPONENTS
from fdql.facts import from_facts
from fdql.frames import image_layout, to_rows
from fdql.leaderboard import PLACES, read
from fdql.probe import look_at
from fdql.proc.arena import Evaluation, play
from fdql.sac import policy as acting
from fdql.sac.nets import NetSpec, policy_shapes, size_of

MOST_EPISODES = 10_000  # of one evaluation


@dataclass(frozen=True, slots=True)
class Policy:
    """A trained policy with its observation statistics.

    env     what it was trained on
    facts   what its file says: updates, env_steps, return
    discount  that it was trained with
    network   its forward pass
    explorer  draws from the policy, for predict(deterministic=False)
    longest_episode  steps after which its run cut an evaluation episode; later ones are cut there
    epsilon  share of random actions in its run's evaluations, and in later ones unless it is
        replaced (dataclasses.replace)
    """

    env: EnvSpec
    facts: dict[str, Any]
    discount: float
    network: acting.Policy
    explorer: acting.Explorer
    longest_episode: int = EvalConfig().longest_episode
    epsilon: float = 0.0

    def predict(self, obs: NDArray[Any], deterministic: bool = True) -> NDArray[Any]:
        """The environment's action for one observation (shape of the space) or many (one more axis
        in front).

        Images are uint8. A policy that sees several at once (env.stack > 1) takes each observation
        as (stack, *shape of the space), the newest last and the episode's first again for those
        before it: gymnasium.wrappers.FrameStackObservation(env, stack) gives them so.
        deterministic=False draws from the policy instead of taking its greedy action. Raises
        ValueError for another shape, for images of another dtype, or for a NaN or infinity.
        """
        obs, one = self._checked(obs)
        if len(obs) == 0:
            kind = np.int64 if self.env.discrete else np.float32
            return np.zeros((0, *self.env.action_shape), dtype=kind)
        rows = to_rows(obs, self.env.obs_shape, self.env.image, self.env.stack)
        shape, dtype = ((), np.int32) if self.env.discrete else ((self.env.action_dim,), np.float32)
        actions = np.zeros((len(rows), *shape), dtype=dtype)
        if deterministic:
            self.network.greedy(rows, actions)
        else:
            self.explorer.act(
                self.network, rows, np.zeros(len(rows), dtype=np.int64), False, actions
            )
        scale = ActionScale(self.env)
        out = np.stack([np.asarray(a) for a in scale(actions)])
        return out[0] if one else out

    def _checked(self, obs: NDArray[Any]) -> tuple[NDArray[Any], bool]:
        """The observations, float32 or uint8, and whether it is a single one."""
        spec = self.env
        obs = np.asarray(obs) if spec.image else np.asarray(obs, dtype=np.float32)
        shape = spec.obs_shape if spec.stack == 1 else (spec.stack, *spec.obs_shape)
        one = obs.shape == shape
        if not one and obs.shape[1:] != shape:
            wrapped = f": gymnasium.wrappers.FrameStackObservation(env, {spec.stack}) gives them"
            raise ValueError(
                f"obs has shape {obs.shape}; {shape} or (n, *{shape}) works"
                + (wrapped if spec.stack > 1 else "")
            )
        if spec.image and obs.dtype != np.uint8:
            raise ValueError(
                f"obs is an image of {obs.dtype}; uint8 works, as the environment gives it"
            )
        if not spec.image and not np.isfinite(obs).all():
            raise ValueError("obs holds a NaN or an infinity")
        return obs, one


def _file_in(run: Path, which: str | int) -> Path:
    """The policy's file in a run folder."""
    rank = 1 if which == "best" else 0
    if str(which).isascii() and str(which).isdigit():
        rank = int(which)
    if which != "last" and not 1 <= rank <= PLACES:
        raise ConfigError(
            f"which = {which!r}: must be 'best', 'last' or a rank in 1..{PLACES}; 'best' works"
        )
    if which == "last":
        return run / "policy.safetensors"
    entries = read(run / "best")
    if rank > max(1, len(entries)):
        raise ConfigError(
            f"which = {which!r}: {run} has kept {len(entries)} policies; {len(entries)} works"
        )
    # A run that ended before its first evaluation has a last policy only.
    return run / "best" / entries[rank - 1].file if entries else run / "policy.safetensors"


def load(run_dir: str | Path, which: str | int = "best") -> Policy:
    """Load a policy from a run folder: `best` by evaluated return, its rank on the leaderboard, or
    `last`. Or from a .safetensors file.

    Raises ConfigError when there is none, CheckpointError when the file is damaged.
    """
    if not isinstance(run_dir, str | os.PathLike):
        raise ConfigError(f"run = {run_dir!r}: must be a folder's path; 'runs/mine' works")
    path = Path(run_dir)
    if path.is_file() and which != "best":
        raise ConfigError(
            f"which = {which!r}: {path} is one policy; leaving it out works, or the folder of a run"
        )
    file = _file_in(path, which) if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"run = {str(run_dir)!r}: no policy there; a run folder has {file.name} once it has "
            "learned"
        )
    try:
        with Tensors(file) as kept:
            net = _described(kept.facts)[1]
            flat = kept.read("policy", np.float32, (size_of(policy_shapes(net)),))
        return policy_from(kept.facts, flat)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{file}: not a policy of fdql ({error})") from None


def policy_from(facts: dict[str, Any], flat: NDArray[Any]) -> Policy:
    """The policy of these facts, RunPlan.policy_facts and more, and of its numbers. Nothing is
    allocated by what the facts say before that is found to fit the numbers there are.

    Raises KeyError, TypeError, ValueError or ConfigError when they do not.
    """
    env, net, discount, longest, epsilon = _described(facts)
    if flat.dtype != np.float32 or flat.shape != (size_of(policy_shapes(net)),):
        raise ValueError(f"holds {flat.dtype} {flat.shape}, not this policy's float32 numbers")
    plain = acting.Explorer(
        net, ExploreConfig(policy_hold_longest=1), 1, np.zeros(1, dtype=np.bool_), 0
    )
    return Policy(env, facts, discount, acting.Policy(net, flat), plain, longest, epsilon)


def _described(facts: dict[str, Any]) -> tuple[EnvSpec, NetSpec, float, int, float]:
    """Environment, network, discount, longest episode and epsilon; raises what policy_from does."""
    if facts["format"] != 4:
        raise ValueError(f"format {facts['format']!r}, this version reads format 4")
    discount = facts["discount"]
    if not isinstance(discount, float) or not 0.0 <= discount < 1.0:
        raise ValueError(f"its discount is {discount!r}, not in [0, 1)")
    # Policies from before it was said were played to the default, and greedily.
    longest = facts.get("longest_episode", EvalConfig().longest_episode)
    if type(longest) is not int or longest < 1:
        raise ValueError(f"its longest episode is {str(longest)[:40]!r}, not a number of steps")
    epsilon = facts.get("epsilon", 0.0)
    if not isinstance(epsilon, float) or not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"its epsilon is {str(epsilon)[:40]!r}, not in [0, 1]")
    env = EnvSpec.from_dict(facts["env"])
    net = from_facts(NetSpec, {**facts["net"], **env.net_inputs})
    _check(env, net)
    return env, net, discount, longest, epsilon


def _check(env: EnvSpec, net: NetSpec) -> None:
    """Raises ValueError or ConfigError for what `describe` and a config would not have let by."""
    size, actions = math.prod(env.obs_shape), math.prod(env.action_shape)
    if not (min(env.obs_shape, default=1) >= 1 and size == env.obs_dim <= MOST_COMPONENTS):
        raise ValueError(f"{env.obs_dim} components of shape {env.obs_shape}")
    layout = image_layout(env.env, env.obs_shape) if env.image else (None, 1)
    if layout != (env.image, env.stack):
        raise ValueError(f"images {env.image}, {env.stack} of them, of shape {env.obs_shape}")
    bounds = len(env.low), len(env.high)
    if env.discrete:
        good = env.action_dim >= 2 and env.action_shape == () and bounds == (0, 0)
        good &= abs(env.action_start) + env.action_dim < 1 << 31  # actions are int32
    else:
        good = min(env.action_shape, default=0) >= 1 and bounds == (actions, actions)
        good &= env.action_dim == actions
        most = float(np.finfo(np.float32).max)
        good &= all(-most <= a < b <= most for a, b in zip(env.low, env.high, strict=False))
    if not good:
        raise ValueError(f"{env.action_dim} actions of shape {env.action_shape} in these bounds")
    if not (min(net.critic_width, net.actor_width) >= 1 and net.bins >= 2 and net.v_max > 0):
        raise ValueError(f"networks of {net.critic_width}, {net.actor_width}, {net.bins} units")


def environment_of(policy: Policy, env: str | None = None, seed: int = 0) -> EnvSpec:
    """The environment to play a policy in: `env`, or the one it was trained on. It is looked at in
    a process of its own first, as before a run.

    Raises ConfigError when it cannot be made, reset and stepped, when its spaces are not those of
    the policy, and when the policy's file names a module:factory and `env` does not repeat it: a
    file never decides what code runs.
    """
    name = env or policy.env.env
    if env is None and ":" in name:  # Gymnasium too imports what stands before a colon
        raise ConfigError(
            f"the policy was trained on {name!r}, which runs code of that module; say so: --env "
            f"{name}"
        )
    spec, _ = look_at(name, seed, EngineConfig().start_timeout)
    if (spec.rows, spec.image) != (policy.env.rows, policy.env.image):
        raise ConfigError(
            f"env = {name!r}: its spaces are not those of {policy.env.env!r}, which the policy "
            "was trained on"
        )
    return spec


def check_numbers(episodes: int, seed: int, epsilon: float) -> None:
    """Raises ConfigError for numbers that no evaluation can have."""
    whole = isinstance(episodes, Integral) and not isinstance(episodes, bool)
    if not (whole and 1 <= episodes <= MOST_EPISODES):
        raise ConfigError(
            f"episodes = {episodes!r}: must be a whole number in 1..{MOST_EPISODES}; 20 works"
        )
    if not (isinstance(epsilon, Real) and 0 <= epsilon <= 1):
        raise ConfigError(f"epsilon = {epsilon!r}: must be in [0, 1]; 0.01 works")
    Config(seed=seed)  # the rule of a run's


def evaluate(
    policy: Policy, env: str | None = None, episodes: int = 20, seed: int = 0
) -> Evaluation:
    """Play `episodes` episodes, in `env` or in the one it was trained on, from other starts than
    those that chose the best policy: greedy ones, but for `policy.epsilon`, the share of random
    actions that its run evaluated with (its setting `eval.epsilon`).

    Raises ConfigError as environment_of does and for wrong numbers, EnvFailedError where the
    environment raises, BadValueError where it returns what cannot be used.
    """
    if not isinstance(policy, Policy):
        raise ConfigError(f"policy = {policy!r}: must be a fdql.Policy; fdql.load(run) gives it")
    check_numbers(episodes, seed, policy.epsilon)
    spec = environment_of(policy, env, seed)
    discount, longest, epsilon = policy.discount, policy.longest_episode, policy.epsilon
    return play(policy.network, spec, int(episodes), int(seed), discount, longest, epsilon)
