"""Do runs that are killed and go on learn as well as runs that are left alone?

    python tests/stress/resumed_scores.py [--seeds 3] [--kills 2]

The asynchronous mode, with the defaults. Each seed runs once undisturbed and once with SIGKILL at
random moments, each followed by `fdql resume`. Compared are the last evaluations: the mean of the
resumed runs must be within the 95 % interval of the undisturbed ones' mean, widened by nothing;
samples per insert and counters must be what they are without kills, and every kill must have
struck. About 3 minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

STEPS = {"CartPole-v1": 12_000, "Pendulum-v1": 8_000}
FDQL = [sys.executable, "-m", "fdql.cli"]


def finish(words: list[str], folder: Path) -> dict[str, Any]:
    done = subprocess.run([*FDQL, *words], stdout=subprocess.DEVNULL)
    assert done.returncode == 0, words
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def killed(words: list[str], folder: Path, steps: int) -> bool:
    """Start, kill once it has written a checkpoint with so many steps. False: it ended before."""
    old = set(folder.glob("checkpoints/0*"))
    process = subprocess.Popen([*FDQL, *words], stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            for path in set(folder.glob("checkpoints/0*")) - old:
                with contextlib.suppress(FileNotFoundError):  # cleared up meanwhile
                    manifest = json.loads((path / "manifest.json").read_text())
                    if manifest["facts"]["env_steps"] >= steps:
                        return True
            time.sleep(0.01)
        return False
    finally:
        process.kill()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=2)
    a = parser.parse_args()
    if a.seeds < 2:
        parser.error("--seeds: an interval needs 2")
    wrong = 0
    with tempfile.TemporaryDirectory() as parent:
        for env, total in STEPS.items():
            scores: dict[str, list[float]] = {"undisturbed": [], "resumed": []}
            for seed in range(a.seeds):
                draws = random.Random(f"{env} {seed}")
                common = ["train", "--env", env, "--seed", str(seed), "--stop-at-return", "never"]
                common += ["--total-timesteps", str(total), "--checkpoint-every", "0.3"]
                for how, values in scores.items():
                    folder = Path(parent) / f"{env}-{seed}-{how}"
                    words = [*common, "--run-dir", str(folder)]
                    kills = 0
                    if how == "resumed":
                        for k in range(a.kills):
                            share = (k + draws.random()) / a.kills
                            kills += killed(words, folder, int(0.9 * share * total))
                            words = ["resume", str(folder)]
                    s = finish(words, folder)
                    values.append(s["eval_return_mean"])
                    ratio = s["samples_per_insert_actual"]
                    exact = s["env_steps"] == total and abs(ratio / 32.0 - 1) < 0.02
                    exact &= kills == (a.kills if how == "resumed" else 0)
                    exact &= s["steps_committed"] == total + s["steps_in_flight"]
                    wrong += not exact
                    print(
                        f"{env} seed {seed} {how}: {values[-1]:.1f} after {s['env_steps']:,} steps "
                        f"and {s['updates']:,} updates, samples per insert {ratio:.2f}, "
                        f"{kills} kills, {s['wall_seconds']:.1f} s{'' if exact else '  WRONG'}",
                        flush=True,
                    )
            whole, again = (np.array(v) for v in scores.values())
            half = stats.t.ppf(0.975, len(whole) - 1) * whole.std(ddof=1) / len(whole) ** 0.5
            low, high = whole.mean() - half, whole.mean() + half
            good = low <= again.mean() <= high or again.mean() >= whole.mean()
            wrong += not good
            print(
                f"{env}: undisturbed {whole.mean():.1f} ({low:.1f} to {high:.1f}), resumed "
                f"{again.mean():.1f}{'' if good else '  WRONG'}",
                flush=True,
            )
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
