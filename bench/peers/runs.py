"""What is asked of an environment, and how a contestant is started and read, for bench/learning.py.

Ours are "fdql", "serial" and "fdql-cold", each with settings of its own where it goes on like
"serial+sac.pessimism=0+seed=7"; a peer is named library-algorithm, as "sb3-dqn".
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
SUMMARY = (
    "exit_reason", "env_steps", "updates", "wall_seconds", "first_time_at_stop_return",
    "trainer_duty_cycle", "samples_per_insert_target", "samples_per_insert_actual",
    "policy_lag_p50", "policy_lag_p99", "worker_restarts", "workers", "envs_per_worker", "learner",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is asked of an environment.

    line         mean return at which the clock stops; None: never
    episodes     of one evaluation
    every_steps  environment steps between two evaluations where training waits for them, at least
    peers        those with settings for it in zoo.py
    """

    line: float | None
    episodes: int = 20
    every_steps: int = 1000
    peers: tuple[str, ...]


def _game(line: float) -> Task:
    return Task(line=line, episodes=10, every_steps=20_000, peers=())


OURS = ("fdql", "serial", "fdql-cold")
DISCRETE = ("sb3-dqn", "sb3-ppo", "sbx-dqn", "sbx-ppo")
CONTINUOUS = ("sb3-sac", "sbx-sac")
TASKS = {
    "CartPole-v1": Task(line=475.0, peers=DISCRETE),
    "Pendulum-v1": Task(line=-180.0, episodes=100, peers=(*CONTINUOUS, "rltools-sac")),
    "Acrobot-v1": Task(line=-90.0, peers=("sb3-dqn", "sb3-qrdqn", "sbx-dqn")),
    "MountainCar-v0": Task(line=-110.0, peers=("sb3-dqn", "sbx-dqn")),
    "MountainCarContinuous-v0": Task(line=90.0, peers=CONTINUOUS),
    "LunarLander-v3": Task(line=200.0, every_steps=5000, peers=DISCRETE),
    "LunarLanderContinuous-v3": Task(line=236.0, every_steps=5000, peers=(*CONTINUOUS, "sbx-tqc")),
    "bench.novel:CartPoleNoVel": Task(line=429.0, peers=()),
    "bench.novel:PendulumNoVel": Task(line=-366.0, peers=()),
    "bench.novel:MountainCarContinuousNoVel": Task(line=73.0, peers=()),
    "bench.bitflip:BitFlip15": Task(line=0.85, peers=()),
    "PongNoFrameskip-v4": _game(14.7),
    "BreakoutNoFrameskip-v4": _game(393.0),
    "BeamRiderNoFrameskip-v4": _game(14_609.0),
    "EnduroNoFrameskip-v4": _game(2747.0),
    "MsPacmanNoFrameskip-v4": _game(2327.0),
    "QbertNoFrameskip-v4": _game(13_308.0),
    "SeaquestNoFrameskip-v4": _game(2184.0),
    "SpaceInvadersNoFrameskip-v4": _game(1637.0),
    "ALE/Pong-v5": _game(14.3),
    "ALE/Breakout-v5": _game(250.0),
    "BipedalWalker-v3": Task(line=280.0, every_steps=10_000, peers=()),
    "HalfCheetahBulletEnv-v0": Task(line=None, every_steps=10_000, peers=(*CONTINUOUS, "sbx-tqc")),
    "HopperBulletEnv-v0": Task(line=2335.0, every_steps=10_000, peers=()),
    "Walker2DBulletEnv-v0": Task(line=2135.0, every_steps=10_000, peers=()),
    "AntBulletEnv-v0": Task(line=3016.0, every_steps=10_000, peers=()),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """One run to be started.

    folder      for its files: empty, or holding those of the same run of ours, interrupted
    venvs       where the peers' virtual environments are
    threads     OMP_NUM_THREADS of a peer
    most_steps  environment steps after which it ends, whatever its score; None: line or time
    """

    who: str
    env: str
    seed: int
    folder: Path
    venvs: Path
    threads: int
    most_steps: int | None = None

    @property
    def ours(self) -> str:
        """Which of ours it is, empty for a peer."""
        return own_name(self.who)

    @property
    def metrics(self) -> Path:
        """The file that the run appends its evaluations to, one JSON object a line."""
        return self.folder / ("run/metrics.jsonl" if self.ours else "metrics.jsonl")

    def command(self) -> list[str]:
        """The words of its command."""
        task = TASKS[self.env]
        line = None if self.most_steps else task.line
        words = ["--env", self.env, "--seed", str(self.seed)]
        if self.ours:
            words = [sys.executable, str(ROOT / "main.py"), *words]
            run = self.folder / "run"
            words += ["--run-dir", str(run), *(["--resume", "auto"] if run.exists() else [])]
            words += ["--stop-at-return", "never" if line is None else f"{line:g}"]
            if self.ours == "serial":
                words += ["--serial", "--eval.every-steps", str(task.every_steps)]
            for setting in self.who.split("+")[1:]:
                key, _, value = setting.partition("=")
                words += [f"--{key}", *([value] if value else [])]
        else:
            library, algorithm = self.who.split("-")
            python = str(self.venvs / library / "bin" / "python")
            script = "peer_rltools.py" if library == "rltools" else "peer.py"
            words = [python, str(ROOT / "bench" / "peers" / script), *words]
            words += ["--library", library, "--algorithm", algorithm]
            words += ["--episodes", str(task.episodes), "--every-steps", str(task.every_steps)]
            words += ["--metrics", str(self.metrics)]
            words += [] if line is None else [f"--line={line:g}"]
        if line is None:  # fdql would end at a million steps
            words += ["--total-timesteps", str(self.most_steps or 10**9)]
        return words

    def variables(self) -> dict[str, str]:
        """Its environment variables: this process's, without their settings of threads."""
        kept = {k: v for k, v in os.environ.items() if k not in THREADS}
        if not self.ours:
            return kept | {"OMP_NUM_THREADS": str(self.threads), "JAX_PLATFORMS": "cpu"}
        if self.ours == "fdql-cold":
            return kept | {"NUMBA_CACHE_DIR": str(self.folder / "numba")}
        return kept

    def facts(self, output: str) -> dict[str, Any]:
        """What the run said of itself at its end; `output` is what it printed.

        Raises OSError, ValueError or KeyError when it said nothing or evaluated by another rule.
        """
        if not self.ours:
            said: dict[str, Any] = json.loads(output.splitlines()[-1] if output else "")
            return {key: said[key] for key in ("exit_reason", "env_steps", "updates", "versions")}
        summary = json.loads((self.folder / "run" / "summary.json").read_text())
        played, asked = summary["eval_episodes"], TASKS[self.env].episodes
        if played not in (None, asked):
            raise ValueError(f"{played} episodes per evaluation, not {asked}")
        versions = {"fdql": revision(), "python": platform.python_version()}
        for package in ("torch", "numba", "numpy", "gymnasium"):
            versions[package] = importlib.metadata.version(package)
        return {key: summary[key] for key in SUMMARY} | {"versions": versions}


def own_name(who: str) -> str:
    """Which of ours a contestant is, its settings left out; empty for a peer."""
    base = who.partition("+")[0]
    return base if base in OURS else ""


def revision() -> str:
    """Commit of this checkout, with a + when files differ from it; empty outside of git."""
    words = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def stolen_seconds() -> float:
    """Processor time that the host took from this virtual machine since it started, all cores."""
    if not (stat := Path("/proc/stat")).exists():
        return 0.0
    return int(stat.read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """Processor, usable cores, system."""
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {usable_cores()} cores, {platform.system()}"
