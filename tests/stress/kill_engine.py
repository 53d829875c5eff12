"""SIGKILL at every compiled-in kill point of every process of a real run: the matrix.

    python tests/stress/kill_engine.py                  # everything: about 12 minutes on two cores
    python tests/stress/kill_engine.py --only 'worker ring'
    python tests/stress/kill_engine.py --short          # what .ci/run does

For each process, point, and passage (first, second, and the fifth, where the rings, which have four
places here, begin anew) one run, see kill_case.py. It goes on (worker, evaluator) or ends and names
the cause; no committed step is missing and none is there twice; nobody reads a mixed chunk, a mixed
snapshot or somebody else's action; it ends before a deadline; nothing is left. Then the same eyes
look at engines with a planted fault, which they must see. Last, the supervisor itself is killed,
and a worker again and again: how long until everything is gone, until the death is noticed, until a
successor hands over its first chunk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from builds import Plant, build

HERE = Path(__file__).parent
ALL = (1, 2, 5)

# Which points a process passes, and at which passages it is killed. A worker attaches once.
POINTS: dict[str, dict[str, tuple[int, ...]]] = {
    "worker": {
        "ring.attach.before_incarnation": (1,),
        "ring.commit.before_header": ALL,
        "ring.commit.before_head": ALL,
        "ring.commit.before_steps": ALL,
        "ring.commit.before_bell": ALL,
        "bell.ring.before_bump": ALL,
        "bell.ring.before_wake": ALL,
        "bell.arm.armed": ALL,  # the ring is full
        "bell.sleep.before_wait": ALL,
        "slots.submit.before_req": ALL,
        "slots.submit.before_bell": ALL,
        "slots.await.before_sleep": ALL,
        "slots.await.woken": ALL,
        "record.set.before_store": (1,),
        "record.add.before_store": ALL,
    },
    "inference": {
        "slots.collect.taken": ALL,
        "slots.reply.before_rep": ALL,
        "slots.reply.before_wake": ALL,
        "weights.acquire.pinned": ALL,
        "weights.release.before_clear": ALL,
        "bell.arm.armed": ALL,
        "bell.sleep.before_wait": ALL,
        "record.set.before_store": ALL,
    },
    "trainer": {
        "ring.release.before_steps": ALL,
        "ring.release.before_tail": ALL,
        "ring.release.before_bell": ALL,
        "weights.publish.before_copy": ALL,
        "weights.publish.before_latest": ALL,
        "weights.publish.after_latest": ALL,
        "bell.ring.before_bump": ALL,
        "bell.ring.before_wake": ALL,
        "bell.arm.armed": ALL,
        "bell.sleep.before_wait": ALL,
        "record.set.before_store": ALL,
        "record.add.before_store": ALL,
    },
    "evaluator": {
        "weights.acquire.pinned": ALL,
        "weights.release.before_clear": ALL,
        "bell.arm.armed": ALL,
        "bell.sleep.before_wait": ALL,
        "record.add.before_store": ALL,
    },
}
SHORT = (
    ("worker", "ring.commit.before_head", 5),
    ("worker", "slots.await.before_sleep", 2),
    ("trainer", "weights.publish.before_latest", 1),
)
# Faults, each with a death that must bring it to light.
PLANTED: dict[str, tuple[str, Plant, tuple[str, str, int]]] = {
    "a chunk is published before it is whole": (
        "ring",
        Plant(
            "spsc.pxd",
            '    TP("ring.commit.before_header")\n',
            '    store_release(&w.ring.head, w.head + 1)\n    TP("ring.commit.before_header")\n',
        ),
        ("worker", "ring.commit.before_header", 5),
    ),
    "a successor begins one chunk too early": (
        "ring",
        Plant(
            "spsc.pxd",
            "    w.head = load_relaxed(&ring.head)  ",
            "    w.head = load_relaxed(&ring.head) - (load_relaxed(&ring.head) > 0)  ",
        ),
        ("worker", "ring.commit.before_header", 5),
    ),
    "a snapshot is published before it is copied": (
        "weights",
        Plant(
            "snapshots.pxd",
            '        TP("weights.publish.before_copy")\n',
            "        store_release(&weights.latest, version << 8 | <uint64_t>b)\n"
            '        TP("weights.publish.before_copy")\n',
        ),
        ("trainer", "weights.publish.before_copy", 5),
    ),
}


def cases(only: str) -> list[tuple[str, str, int]]:
    """Every case whose "role point hit" holds the regular expression."""
    every = [(r, p, h) for r, points in POINTS.items() for p, hits in points.items() for h in hits]
    return [case for case in every if re.search(only, "{} {} {}".format(*case))]


def environment(engine: Path) -> dict[str, str]:
    """Of a process that uses the package in `engine`."""
    path = os.pathsep.join(map(str, (engine, HERE)))
    return os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}


def outcomes(engine: Path, folder: Path, wanted: list[tuple[str, str, int]]) -> Iterator[Any]:
    """Runs the cases one after the other; each outcome as kill_case.py prints it."""
    words = [json.dumps(dict(zip(("role", "point", "hit"), case, strict=True))) for case in wanted]
    command = [sys.executable, str(HERE / "kill_case.py"), str(folder), *words]
    with subprocess.Popen(
        command,
        env=environment(engine),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,  # what the runs say of the death
    ) as process:
        assert process.stdout is not None
        left = len(wanted)
        for line in process.stdout:
            left -= 1
            yield json.loads(line)
    if left:
        raise RuntimeError(f"kill_case.py ended before {left} of {len(wanted)} cases")


def matrix(engine: Path, folder: Path, wanted: list[tuple[str, str, int]]) -> int:
    """Runs the cases and prints the table; how many were wrong."""
    table: dict[str, Counter[str]] = {}
    for o in outcomes(engine, folder, wanted):
        row = table.setdefault(o["role"], Counter())
        row["deaths"] += 1
        row["wrong"] += bool(o["wrong"])
        row[o.get("ends", "")] += 1
        row["rows lost"] = max(row["rows lost"], o.get("lost", 0))
        row["seconds"] = max(row["seconds"], round(o.get("seconds", 0)))
        name = f"{o['role']} {o['point']}:{o['hit']}"
        if o["wrong"]:
            print(f"WRONG {name}", *o["wrong"], sep="\n    ", flush=True)
        else:
            print(f"ok    {name:45} {o['ends']}, {o['lost']} rows of the open chunk lost, "
                  f"{o['seconds']:.1f} s", flush=True)  # fmt: skip
    columns = ("deaths", "goes on", "names the cause", "rows lost", "seconds", "wrong")
    print(f"\n{'process':10}" + "".join(f"{c:>17}" for c in columns))
    for role, row in table.items():
        print(f"{role:10}" + "".join(f"{row[c]:>17}" for c in columns))
    print("rows lost: most in one run, never handed over; seconds: the longest run\n")
    return sum(row["wrong"] for row in table.values())


def planted(folder: Path) -> int:
    """How many planted faults were not seen."""
    missed = 0
    for i, (fault, (module, plant, case)) in enumerate(PLANTED.items()):
        place = folder / f"planted-{i}"
        engine = build(place, modules=(module,), kill_points=True, plants=(plant,))
        (o,) = outcomes(engine, place, [case])
        missed += not o["wrong"]
        first = o["wrong"][0].strip().splitlines()[-1] if o["wrong"] else "NOT SEEN"
        print(f"planted: {fault}: {first}", flush=True)
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="regular expression over 'role point hit'")
    parser.add_argument("--short", action="store_true", help="three deaths, one planted fault")
    parser.add_argument("--engine", type=Path, help="a build with kill points that is there")
    parser.add_argument("--times", type=int, default=10, help="repetitions of what is timed")
    words, began = parser.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if words.short:
            modules: tuple[str, ...] = ("ring", "slots", "weights")
            PLANTED.pop(next(reversed(PLANTED)))
            PLANTED.pop(next(reversed(PLANTED)))
        else:
            modules = ()
        engine = words.engine or build(folder / "build", modules=modules, kill_points=True)
        print(f"built in {time.monotonic() - began:.0f} s", flush=True)
        wrong = matrix(engine, folder, list(SHORT) if words.short else cases(words.only))
        if not words.only:
            wrong += planted(folder)
            if not words.short:
                for program in (["kill_points.py"], ["kill_times.py", name, str(words.times)]):
                    command = [sys.executable, str(HERE / program[0]), *program[1:]]
                    done = subprocess.run(command, env=environment(engine), cwd=folder)
                    wrong += done.returncode != 0
    print(f"{wrong} wrong, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
