"""Whether a run can go on from a checkpoint: what its networks and rows were made for must be what
it was. Called before anything is started or written.
"""

from __future__ import annotations

from typing import Any

from fdql.checkpoint_folder import CannotGoOn
from fdql.config import Config
from fdql.env_spec import EnvSpec
from fdql.manifest import Manifest
from fdql.proc.resumed import config_of, env_of

# Of an environment, what decides the networks' shapes or the meaning of their numbers.
_SAME = {
    "obs_shape": "observations have the shape",
    "image": "images are, channels first,",
    "stack": "images are seen at once in number",
    "atari": "rewards are an Atari game's, their sign alone:",
    "discrete": "actions are discrete:",
    "action_dim": "actions, or their components, are in number",
    "action_shape": "actions have the shape",
    "action_start": "first action is",
    "low": "lowest action is",
    "high": "highest action is",
}


def check_fit(manifest: Manifest, config: Config, env: EnvSpec) -> None:
    """Raises CannotGoOn when the checkpoint is of other networks or another environment, and
    CheckpointError when it does not say.
    """
    sac, saved = config.sac, config_of(manifest).sac
    names = ["critic_width", "head"]
    names += [] if env.discrete else ["actor_width"]
    names += ["quantiles"] if saved.head == "tqc" else ["bins", "v_max"]
    was = env_of(manifest)
    for key, words in _SAME.items() if was is not None else ():
        old, new = getattr(was, key), getattr(env, key)
        if old != new:
            raise CannotGoOn(
                f"env = {config.env!r}: its {words} {_shown(new)}, and {_shown(old)} when the run "
                "was saved; the environment as it was works, fdql train begins a new run"
            )
    for name in names:
        old, new = getattr(saved, name), getattr(sac, name)
        if old != new:
            raise CannotGoOn(
                f"sac.{name} = {new!r}: the saved networks have {old!r}, and a run keeps them; "
                f"--sac.{name.replace('_', '-')} {old} works, fdql train begins a new run"
            )


def _shown(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)
