"""Wall clock to a score, for fdql and its peers by one rule, one run after another.

    bash bench/peers/build.sh
    python bench/learning.py --env CartPole-v1 --who fdql serial sb3 sbx --seeds 0 1 2 \\
        --out docs/results/cartpole.json

The rule: the clock starts when the run's command is started, so imports, process starts and
evaluations count, and stops at the end of the first evaluation whose mean return reaches the line.
It is this command's clock for everyone: every 20 ms it looks at the file to which the run appends
its evaluations. An evaluation is 20 greedy episodes (Pendulum-v1: 100; Atari: 10, without sticky
actions one action in 100 of them random) from fixed starts, the same for everyone.
HalfCheetahBulletEnv-v0 has no line: its runs take --max-seconds, and their curves are compared.

fdql runs with its defaults: `python main.py --env E --seed S --stop-at-return LINE`; "serial" adds
--serial, "fdql-cold" starts without the cache of compiled kernels. It evaluates at most every 1000
environment steps, beside the training; serial in between, as seldom as a peer. An experiment names
its settings: --who serial "serial+sac.pessimism=0" "serial+replay.n-step=1".

A peer is sb3-dqn, sbx-sac, ...; "sb3" is all its algorithms that have settings for the environment.
It uses RL Zoo's settings (peers/zoo.py) and its own defaults, with OMP_NUM_THREADS at the number of
usable cores (--threads); RLtools its defaults (peers/peer_rltools.py). It evaluates in its own
process, in between, at most every 1000 steps (LunarLander-v3 5000, HalfCheetahBulletEnv-v0 10000),
only when its policy changed, all episodes side by side. JAX compiles anew in every run: it keeps no
cache unless told to.

Before the first measured run of each, a short one warms the caches and is thrown away. Runs that
--out holds are not repeated, so an interrupted campaign goes on where it stopped; only those are
that failed, had too little time, or during which the whole machine stood still ("stalled_seconds").
With --keep a run of fdql that was itself interrupted goes on from its newest checkpoint; its times
are then its own clock's, which starts a moment after the command and does not count the break.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers.runs import (
    OURS,
    ROOT,
    TASKS,
    Start,
    Task,
    machine,
    own_name,
    stolen_seconds,
    usable_cores,
)
from peers.table import show

FORMAT = 1  # of the file of runs
POLL = 0.02  # seconds between two looks at a run: the error of its time
GRACE = 60.0  # seconds to end orderly after SIGINT
STALL = 0.5  # seconds between two looks from which on the machine, not the run, stood still
WARM_UP_STEPS = 1500  # past fdql's 1000 of uniform actions, so that every kernel is compiled
WARM_UP_SECONDS = 600.0

Run = dict[str, Any]
Point = tuple[float, int, int, float]  # seconds, environment steps, updates, mean return


class Watch:
    """The evaluations that a run appends to its file, stamped when they are first seen; those of
    one that goes on by its own clock.
    """

    def __init__(self, metrics: Path, began: float, goes_on: bool) -> None:
        self.metrics, self.began, self.goes_on = metrics, began, goes_on
        self.curve: list[Point] = []
        self.stalled = 0.0  # seconds in which this process could not look
        self._read = 0  # bytes of whole lines taken in
        self._last = began

    def look(self) -> None:
        """Take in what was appended since the last look."""
        gap, self._last = time.monotonic() - self._last, time.monotonic()
        self.stalled += gap if gap > STALL else 0.0
        size = self.metrics.stat().st_size if self.metrics.exists() else 0
        if size == self._read:
            return
        if size < self._read:  # cut to its newest checkpoint
            self._read, self.curve = 0, []
        now = round(time.monotonic() - self.began, 3)
        with self.metrics.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self._read += len(line)
                row = json.loads(line)
                if "eval/updates" in row:  # other rows are fdql's metrics in between
                    keys = ("eval/env_steps", "eval/updates", "eval/mean_reward")
                    steps, updates, mean = (row[key] for key in keys)
                    seconds = round(row["time/time_elapsed"], 3) if self.goes_on else now
                    self.curve.append((seconds, steps, updates, mean))


def made_before(metrics: Path) -> float:
    """Seconds of its own clock that a run has behind it."""
    rows = metrics.read_text().splitlines() if metrics.exists() else []
    clocks = [json.loads(row)["time/time_elapsed"] for row in rows if row.endswith("}")]
    return float(clocks[-1]) if clocks else 0.0


def execute(start: Start, log: Path, max_seconds: float) -> tuple[Watch, float, int]:
    """Run until it ends, or SIGINT at `max_seconds`. Returns what was seen, seconds, exit code."""
    before = made_before(start.metrics)
    words, variables = start.command(), start.variables()
    with log.open("w") as output:
        began = time.monotonic() - before
        process = subprocess.Popen(
            words, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        watch = Watch(start.metrics, began, before > 0.0)
        try:
            while process.poll() is None and time.monotonic() - began < max_seconds:
                watch.look()
                time.sleep(POLL)
            watch.look()
        finally:  # also when this command is interrupted
            seconds = time.monotonic() - began
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    return watch, seconds, process.returncode


def prepare(
    who: str, seed: int, folder: str, args: argparse.Namespace, most_steps: int | None = None
) -> Start:
    """The run of one contestant in an empty folder."""
    return Start(
        who=who, env=args.env, seed=seed, folder=Path(folder), venvs=args.venvs.absolute(),
        threads=args.threads, most_steps=most_steps,
    )  # fmt: skip


def folder_of(
    who: str, seed: int, args: argparse.Namespace
) -> contextlib.AbstractContextManager[str]:
    """Where a run leaves its files: with --keep a folder that stays."""
    if args.keep is None or not own_name(who):
        return tempfile.TemporaryDirectory(prefix="fdql-learning-")
    folder = args.keep.absolute() / f"{args.env.replace('/', '-')}-{who}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return contextlib.nullcontext(str(folder))


def measure(who: str, seed: int, args: argparse.Namespace) -> Run:
    """One run: when, and after how much, the line was reached; without that, how far it came."""
    task = TASKS[args.env]
    load, stolen = os.getloadavg()[0], stolen_seconds()
    with folder_of(who, seed, args) as name:
        start = prepare(who, seed, name, args)
        log = start.folder / "log.txt"
        watch, seconds, code = execute(start, log, args.max_seconds)
        error, end = log.read_text(errors="replace").rstrip(), {}
        if code in (0, 130):
            try:
                end = start.facts(error)
            except (OSError, ValueError, KeyError) as problem:
                error += f"\n{type(problem).__name__}: {problem}"
    curve = watch.curve
    last = curve[-1][3] if curve else None
    reached = next((p for p in curve if task.line is not None and p[3] >= task.line), None)
    point = reached or (round(seconds, 3), end.get("env_steps"), end.get("updates"), last)
    run = {
        "who": who, "env": args.env, "seed": seed, "seconds": point[0], "env_steps": point[1],
        "updates": point[2], "score": point[3], "passed": reached is not None, "line": task.line,
        "episodes": task.episodes, "max_seconds": args.max_seconds,
        "command_seconds": round(seconds, 3), "exit_code": code,
        "load_before": round(load, 2), "stalled_seconds": round(watch.stalled, 2),
        "stolen_seconds": round(stolen_seconds() - stolen, 2),
        "threads": None if own_name(who) else args.threads, "machine": machine(),
        "versions": end.pop("versions", {}), "end": end, "curve": curve,
    }  # fmt: skip
    return run if end else run | {"error": error[-2000:]}


def warm_up(who: str, args: argparse.Namespace) -> None:
    """A short run whose result is thrown away: files are read and kernels compiled."""
    with tempfile.TemporaryDirectory(prefix="fdql-learning-") as name:
        start = prepare(who, 0, name, args, WARM_UP_STEPS)
        log = start.folder / "log.txt"
        _, seconds, code = execute(start, log, WARM_UP_SECONDS)
        said = f", exit code {code}: {log.read_text(errors='replace')[-500:]}" if code else ""
    print(f"{who}: warmed up in {seconds:.1f} s{said}", flush=True)


def read_runs(out: Path) -> list[Run]:
    """The runs made before. Raises ValueError when the file holds something else."""
    if not out.exists():
        return []
    try:
        content = json.loads(out.read_text())
        runs: list[Run] = content["runs"]
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, not {FORMAT}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--out {out} holds no runs of this command ({error})") from None
    return runs


def done_before(run: Run, max_seconds: float) -> bool:
    """It need not be repeated: nothing disturbed it, and it passed or had at least as long."""
    undisturbed = "error" not in run and not run["stalled_seconds"]
    return undisturbed and (run["passed"] or run["max_seconds"] >= max_seconds)


def campaign(names: list[str], args: argparse.Namespace) -> list[Run]:
    """Make the runs that --out lacks, everyone's of one seed, then the next. Returns all."""
    runs = read_runs(args.out)
    warm = {n for n in names if args.no_warm_up or own_name(n) == "fdql-cold"}
    for seed in args.seeds:
        for who in names:
            key = (who, args.env, seed)
            old = next((r for r in runs if (r["who"], r["env"], r["seed"]) == key), None)
            if old and done_before(old, args.max_seconds):
                print(f"{who} seed {seed}: kept, {old['seconds']} s, {old['versions']}", flush=True)
                continue
            if who not in warm:
                warm_up(who, args)
                warm.add(who)
            run = measure(who, seed, args)
            print(json.dumps(run), flush=True)
            runs = [r for r in runs if r is not old] + [run]
            lines = ",\n".join(json.dumps(r) for r in runs)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            written = args.out.with_suffix(".tmp")
            written.write_text(f'{{"format": {FORMAT}, "runs": [\n{lines}\n]}}\n')
            written.replace(args.out)
    return runs


def chosen(words: list[str], task: Task) -> list[str]:
    """The contestants that --who names. Raises ValueError when a word names none."""
    names: list[str] = []
    for word in words:
        found = [word] if own_name(word) else [n for n in task.peers if n == word]
        found += [n for n in task.peers if n.partition("-")[0] == word]
        if not found:
            raise ValueError(
                f"--who {word}: none here; {', '.join(OURS + task.peers)}, sb3, sbx are"
            )
        names += [n for n in found if n not in names]
    return names


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--env", choices=TASKS, required=True)
    add("--who", nargs="+", default=["fdql", "serial", "sb3", "sbx"])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add(
        "--out",
        type=Path,
        required=True,
        help="JSON file of the runs; an existing one is continued",
    )
    add("--max-seconds", type=float, default=900.0, help="of one run")
    add("--keep", type=Path, help="where runs of fdql stay, so that an interrupted one goes on")
    add("--venvs", type=Path, default=ROOT / "build" / "peers", help="where build.sh put the peers")
    add("--threads", type=int, default=usable_cores(), help="OMP_NUM_THREADS of the peers")
    add("--no-warm-up", action="store_true", help="the first run of each may find cold caches")
    args = parser.parse_args()
    try:
        names = chosen(args.who, TASKS[args.env])
        read_runs(args.out)
    except ValueError as error:
        parser.error(str(error))
    for library in {n.partition("-")[0] for n in names if not own_name(n)}:
        if not (args.venvs / library / "bin" / "python").exists():
            parser.error(
                f"--venvs {args.venvs} has no {library}: bash bench/peers/build.sh makes it"
            )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the run under way is ended too
    try:
        runs = campaign(names, args)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    show(runs, names, args.env)
    return 0


if __name__ == "__main__":
    sys.exit(main())
