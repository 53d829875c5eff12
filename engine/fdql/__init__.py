"""Fast Deep Q Learning: asynchronous SAC for ordinary computers.

Reading order: proc/env_worker.py (stages 1 and 2: step, ring), replay/lanes.py (3: ingest),
replay/sum_tree.py and replay/replay.py (4: sample), sac/update.py (5: update; sac/kernels.py is the
same, compiled), proc/trainer.py (6: publish), proc/inference.py (7 and 8: infer, act),
supervisor.py.

Public names: Config, train, resume, evaluate, load, Policy, Callback. They are imported on first
use, because environment workers import this package too and must stay free of what they do not use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Callback", "Config", "Policy", "evaluate", "load", "resume", "train"]

if TYPE_CHECKING:
    from fdql.callbacks import Callback
    from fdql.config import Config
    from fdql.play import Policy, evaluate, load
    from fdql.resume import resume
    from fdql.supervisor import train

_HOMES = {
    "Callback": "fdql.callbacks",
    "Policy": "fdql.play",
    "Config": "fdql.config",
    "evaluate": "fdql.play",
    "load": "fdql.play",
    "resume": "fdql.resume",
    "train": "fdql.supervisor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fdql' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
