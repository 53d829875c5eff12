"""Training for long while workers are killed at random: nothing may grow, nothing be lost.

    python tests/stress/soak.py --minutes 60

Two workers, every message checked (--check), a replay that is full before the second quarter. Every
2 to 8 seconds SIGKILL meets a worker. Then Ctrl-C, and all of this must hold:

- memory (RSS), descriptors and threads of every lasting process are flat: the median of the last
  quarter is not above that of the second by more than 2 % and 4 MiB, by no descriptor, by no
  thread; of workers, those count that are younger than 10 s;
- samples per insert are held within 2 %; the books close; every kill was one restart;
- exit code 130, no process left, nothing left in /dev/shm.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
ALLOWED = {"MiB": 4.0, "descriptors": 0.0, "threads": 0.0}  # growth beside SHARE of memory
SHARE = 0.02

Sample = dict[str, float]  # MiB, descriptors, threads


def role_of(process: psutil.Process) -> str:
    """trainer, inference, evaluator, env_worker; supervisor for any other."""
    words = [w for w in process.cmdline() if w.startswith("fdql.proc.")]
    return words[0].removeprefix("fdql.proc.") if words else "supervisor"


def look(process: psutil.Process) -> Sample:
    with process.oneshot():
        memory = process.memory_info()
        return {
            "MiB": (memory.rss - memory.shared) / MIB,  # the segment is one and counted nowhere
            "descriptors": process.num_fds(),
            "threads": process.num_threads(),
        }


def growth(samples: list[tuple[float, Sample]], seconds: float) -> dict[str, tuple[float, float]]:
    """What grew, by the rule above: {quantity: (second quarter, last quarter)}.

    samples  (time since the start, what was seen)
    """
    found = {}
    for what, allowed in ALLOWED.items():
        second = [s[what] for t, s in samples if seconds / 4 <= t < seconds / 2]
        last = [s[what] for t, s in samples if 3 * seconds / 4 <= t]
        if not second or not last:
            raise ValueError(f"{len(samples)} samples in {seconds:.0f} s are too few to judge by")
        before, after = statistics.median(second), statistics.median(last)
        if after > before + allowed + (SHARE * before if what == "MiB" else 0.0):
            found[what] = (before, after)
    return found


class Soak:
    """One run and what was seen of it."""

    def __init__(self, minutes: float, seed: int, folder: Path) -> None:
        self.seconds, self.rng, self.folder = 60 * minutes, random.Random(seed), folder
        self.shm = set(os.listdir("/dev/shm"))
        self.samples: dict[str, list[tuple[float, Sample]]] = {}
        self.pids: set[int] = set()
        self.kills = 0
        words = (
            "--env Pendulum-v1 --stop-at-return never --total-timesteps 1000000000 --workers 2 "
            "--envs-per-worker 4 --replay.capacity 8192 --check --engine.restarts 1000000"
        )
        self.output = (folder / "output.txt").open("w")
        self.run = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), *words.split(), "--run-dir", folder / "run"],
            stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder,
        )  # fmt: skip

    def soak(self) -> list[str]:
        """Let it run; what is wrong, one line each."""
        try:
            self._until_it_trains()
            began = time.monotonic()
            kill_at = began + self.rng.uniform(2, 8)
            while (now := time.monotonic()) < began + self.seconds:
                if self.run.poll() is not None:
                    return [f"the run ended by itself, code {self.run.returncode}"]
                if now >= kill_at:
                    self._kill()
                    kill_at = now + self.rng.uniform(2, 8)
                self._sample(now - began)
                time.sleep(1.0)
            return self._end()
        finally:
            self.run.kill()
            self.output.close()

    def _until_it_trains(self) -> None:
        metrics, deadline = self.folder / "run" / "metrics.jsonl", time.monotonic() + 300
        while not (metrics.exists() and '"eval/mean_reward"' in metrics.read_text()):
            if self.run.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "output.txt").read_text())
            time.sleep(0.5)

    def _processes(self) -> list[psutil.Process]:
        main = psutil.Process(self.run.pid)
        return [main, *main.children(recursive=True)]

    def _kill(self) -> None:
        ready = [p for p in self._processes()[1:] if role_of(p) == "env_worker"]
        old = [p for p in ready if time.time() - p.create_time() > 2]  # its environments are made
        if old:
            self.rng.choice(old).kill()
            self.kills += 1

    def _sample(self, at: float) -> None:
        for process in self._processes():
            try:
                role = role_of(process)
                if role == "env_worker" and time.time() - process.create_time() > 10:
                    continue  # the environments of one that lives on have seen more
                self.samples.setdefault(role, []).append((at, look(process)))
                self.pids.add(process.pid)
            except psutil.Error:
                continue  # killed just now

    def _end(self) -> list[str]:
        self.run.send_signal(signal.SIGINT)
        code = self.run.wait(timeout=120)
        time.sleep(1.0)
        s = json.loads((self.folder / "run" / "summary.json").read_text())
        wrong = [] if code == 130 else [f"exit code {code}: {s['problem']}"]
        for role, samples in self.samples.items():
            first, last = samples[0][1], samples[-1][1]
            print(f"{role}: {len(samples)} looks, first {first}, last {last}")
            for what, (before, after) in growth(samples, self.seconds).items():
                wrong.append(f"{role}: {what} grew from {before:.1f} to {after:.1f}")
        target, actual = s["samples_per_insert_target"], s["samples_per_insert_actual"]
        if abs(actual / target - 1) > 0.02:
            wrong.append(f"samples per insert {actual:.2f}, target {target:g}")
        if s["steps_fault"]:
            wrong.append(s["steps_fault"])
        if s["worker_restarts"] != self.kills:
            wrong.append(f"{self.kills} kills and {s['worker_restarts']} restarts")
        left = [pid for pid in self.pids if psutil.pid_exists(pid)]
        if left:
            wrong.append(f"processes left: {left}")
        shm = set(os.listdir("/dev/shm")) - self.shm
        if shm:
            wrong.append(f"left in /dev/shm: {shm}")
        print(
            f"{self.seconds / 60:g} minutes: {s['env_steps']:,} steps, {s['updates']:,} updates, "
            f"{self.kills} kills, {s['worker_restarts']} restarts, {s['steps_dropped']} steps "
            f"without outcome, {s['steps_in_flight']} under way, {actual:.3f} samples per insert"
        )
        return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fdql-soak-") as folder:
        wrong = Soak(options.minutes, options.seed, Path(folder)).soak()
    for line in wrong:
        print(line)
    print(f"{len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
