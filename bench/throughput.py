"""How fast: acting, training, both together; per stage; peers and the machine's limits beside us.

    python bench/throughput.py --quick            # under a minute, no peers
    python bench/throughput.py --figure docs/images/throughput.png
    python bench/throughput.py --only acting --env CartPole-v1 --repeats 3

Contestants of a group take turns; a row is the median of --repeats readings. Libraries have one
thread; training is pinned to one core for everyone. The last line is a JSON object. Exit code 1
when a result of ours is wrong: a transition lost or doubled, samples per insert out of band, a
number that is not finite. What cannot be measured here is listed with the reason.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from peers.runs import ROOT, machine, revision, stolen_seconds, usable_cores  # noqa: E402
from rates import NULL  # noqa: E402
from rates.contestants import PIXELS, groups  # noqa: E402
from rates.reading import Row, take_turns  # noqa: E402
from rates.table import result, show  # noqa: E402
from rates.training import SHAPES  # noqa: E402

KINDS = ("limits", "acting", "training", "together")
ENVS = ("null", "CartPole-v1", "Pendulum-v1", "HalfCheetahBulletEnv-v0", PIXELS)
FORMAT = 1


def parse(words: list[str] | None) -> argparse.Namespace:
    """The arguments; "null" becomes the environment's own name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=KINDS, default=list(KINDS))
    add(
        "--env",
        nargs="+",
        help=f"acting and together; default {' '.join(ENVS)}; null costs nothing",
    )
    add("--shape", nargs="+", choices=SHAPES, help="training; default all")
    add("--seconds", type=float, help="of one reading; default 3, with --quick 1")
    add("--repeats", type=int, help="readings of a row; default 5, with --quick 1")
    add("--workers", type=int, help="of ours; default: the product's")
    add("--envs-per-worker", type=int, help="of ours; default: the product's")
    add("--venvs", type=Path, default=ROOT / "build" / "peers", help="where build.sh put the peers")
    add("--quick", action="store_true", help="one short reading of the main rows, no peers")
    add("--figure", type=Path, help="PNG to draw (needs matplotlib: the extra `plot`)")
    args = parser.parse_args(words)
    quick = args.quick
    args.env = args.env or (["null", "CartPole-v1"] if quick else list(ENVS))
    args.env = [NULL if e == "null" else e for e in args.env]
    args.shape = args.shape or (
        ["default-cartpole", "default-halfcheetah"] if quick else list(SHAPES)
    )
    args.seconds = args.seconds or (1.0 if quick else 3.0)
    args.repeats = args.repeats or (1 if quick else 5)
    return args


def versions() -> dict[str, str]:
    """Of what decides our speed; the peers' are in bench/peers/requirements-*.txt."""
    found = {"fdql": revision(), "python": platform.python_version()}
    for package in ("numba", "numpy", "scipy", "gymnasium"):
        found[package] = importlib.metadata.version(package)
    return found


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    path = [str(HERE), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in path if p)  # children find rates.null_env
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # peers under way are ended too
    started, stolen = time.monotonic(), stolen_seconds()
    rows: list[Row] = []
    for group in groups(args):
        rows += take_turns(
            group, args.repeats, lambda text: print(text, file=sys.stderr, flush=True)
        )
    facts: dict[str, Any] = {
        "format": FORMAT, "machine": machine(), "cores": usable_cores(), "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
        "stolen_seconds": round(stolen_seconds() - stolen, 1),
        "settings": {"seconds": args.seconds, "repeats": args.repeats, "workers": args.workers,
                     "envs_per_worker": args.envs_per_worker, "quick": args.quick},
    }  # fmt: skip
    print(f"{facts['machine']}, fdql {facts['versions']['fdql']}, {facts['seconds']} s")
    show(rows)
    if args.figure:
        from rates.figure import draw

        draw(rows, args.figure)
    answer = result(rows, facts)
    print(json.dumps(answer))
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
