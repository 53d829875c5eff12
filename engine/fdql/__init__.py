"""Fast Deep Q Learning: asynchronous SAC for ordinary computers.

Reading order: proc/env_worker.py (stages 1 and 2: step, ring), replay/lanes.py (3: ingest),
replay/sum_tree.py and replay/replay.py (4: sample), sac/update.py (5: update; sac/kernels.py is the
same, compiled), proc/trainer.py (6: publish), proc/inference.py (7 and 8: infer, act),
supervisor.py.

Public names: those of __all__. They are imported on first use, because environment workers import
this package too and must stay free of what they do not use. No module here has the name of a
function in __all__: once imported it would take its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "Config",
    "ConfigError",
    "EngineConfig",
    "EvalConfig",
    "ExploreConfig",
    "Policy",
    "ReplayConfig",
    "RunResult",
    "SacConfig",
    "config",
    "evaluate",
    "load",
    "resume",
    "run_config",
    "train",
]

if TYPE_CHECKING:
    from fdql import config
    from fdql.callbacks import Callback
    from fdql.config import (
        Config,
        ConfigError,
        EngineConfig,
        EvalConfig,
        ExploreConfig,
        ReplayConfig,
        SacConfig,
    )
    from fdql.ending import RunResult
    from fdql.going_on import resume, run_config
    from fdql.play import Policy, evaluate, load
    from fdql.supervisor import train

_HOMES = {
    "Callback": "callbacks",
    "Policy": "play",
    "RunResult": "ending",
    "evaluate": "play",
    "load": "play",
    "resume": "going_on",
    "run_config": "going_on",
    "train": "supervisor",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fdql' has no attribute {name!r}")
    from importlib import import_module

    home = import_module(f"fdql.{_HOMES.get(name, 'config')}")
    return home if name == "config" else getattr(home, name)
