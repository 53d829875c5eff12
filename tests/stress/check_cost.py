"""What --check costs: acting alone and training, with it and without, in turns.

    python tests/stress/check_cost.py

Each run is timed by its own metrics, once it acts or learns. Prints the steps per second of every
pair, and the median of the ratios with their range.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOR_EVER = "1000000000"
KINDS = {
    "acting, CartPole": ["CartPole-v1", "--ratio", "free", "--explore.warmup-steps", FOR_EVER],
    "training, CartPole": ["CartPole-v1"],
    "training, Pendulum": ["Pendulum-v1"],
}


def steps_per_second(words: list[str], seconds: float, *, check: bool) -> float:
    """Of one run, after its start."""
    with tempfile.TemporaryDirectory(prefix="fdql-check-") as folder:
        run = Path(folder) / "run"
        command = [sys.executable, str(ROOT / "main.py"), "--env", *words, "--run-dir", str(run)]
        command += ["--stop-at-return", "never", "--eval.every-steps", FOR_EVER]
        command += ["--total-timesteps", FOR_EVER] + (["--check"] if check else [])
        with (Path(folder) / "output").open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            try:
                rows: list[tuple[float, int]] = []
                while not rows or rows[-1][0] - rows[0][0] < seconds:
                    try:
                        process.wait(timeout=0.5)
                        raise RuntimeError((Path(folder) / "output").read_text())
                    except subprocess.TimeoutExpired:
                        rows = measured(run / "metrics.jsonl", training="--ratio" not in words)
            finally:
                process.terminate()
                process.wait()
        (t0, n0), (t1, n1) = rows[0], rows[-1]
        return (n1 - n0) / (t1 - t0)


def measured(metrics: Path, *, training: bool) -> list[tuple[float, int]]:
    """(seconds, steps) of the rows that count, the first two left out."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    rows = [json.loads(line) for line in lines]
    rows = [r for r in rows if r["time/total_timesteps"] and (r["train/n_updates"] or not training)]
    return [(r["time/time_elapsed"], r["time/total_timesteps"]) for r in rows[2:]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run")
    parser.add_argument("--only", default="", help="part of a name")
    options = parser.parse_args()
    for name, words in KINDS.items():
        if options.only not in name:
            continue
        ratios = []
        for i in range(options.repeats):
            rates = {}
            for check in (False, True) if i % 2 else (True, False):
                rates[check] = steps_per_second(words, options.seconds, check=check)
            ratios.append(rates[True] / rates[False])
            print(f"{name}: {rates[False]:,.0f} steps/s, {rates[True]:,.0f} with --check")
        print(
            f"{name}: ratio {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}), {len(ratios)} pairs",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
