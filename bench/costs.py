"""Where an update of the compiled learner spends its time, by `perf`'s samples.

    python bench/costs.py

Makes updates of random batches in this process, BLAS and learner on one thread, while `perf record`
(Debian: linux-perf) looks 1999 times a second. Needs the right to watch one's own process
(kernel.perf_event_paranoid <= 2). The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench_update import ROWS, SPECS, batches
from fdql.config import SacConfig
from fdql.sac.kernels import CompiledLearner
from threadpoolctl import threadpool_limits

PARTS = {  # of a sample, by the name perf finds; the first that matches
    "matrix products (BLAS)": r"gemm_(kernel|small|beta)|gemv_|dot_k|gemm_[nt][nt]$",
    "their operands packed (BLAS)": r"gemm_[io][nt]copy",
    "our kernels: layer norm, losses, AdamW, ...": r"^\[unknown\]",  # Numba's code has no names
    "logarithms, powers, memset": r"log|pow|exp|memset|memcpy|memmove",
    "random numbers": r"normal|random|pcg",
    "Python: checks, averages, calls": r"",
}


def sampled(name: str, seconds: float) -> tuple[Counter[str], Counter[str], float]:
    """Samples by part, by perf's names, and updates per second, of one shape."""
    learner, data = CompiledLearner(SPECS[name], SacConfig(), 0.4, 0), batches(SPECS[name])
    for _ in range(4):  # compiled, and warm
        learner.update(*data[0])
    with tempfile.TemporaryDirectory(prefix="fdql-costs-") as folder:
        out = str(Path(folder) / "perf.data")
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "1999", "-o", out]
        watch = subprocess.Popen([*record, "-p", str(os.getpid())], stderr=subprocess.PIPE)
        time.sleep(0.5)
        start, first = time.perf_counter(), learner.updates
        while time.perf_counter() - start < seconds:
            learner.update(*data[learner.updates % len(data)])
        rate = (learner.updates - first) / (time.perf_counter() - start)
        watch.send_signal(signal.SIGINT)
        said = watch.communicate(timeout=60)[1].decode().strip()
        script = subprocess.run(
            ["perf", "script", "-i", out, "-F", "sym"], capture_output=True, text=True, check=False
        )
    names = Counter(line.strip() for line in script.stdout.splitlines() if line.strip())
    if not names:
        raise SystemExit(f"perf took no samples: {said or script.stderr.strip()}")
    parts: Counter[str] = Counter()
    for symbol, n in names.items():
        parts[next(part for part, form in PARTS.items() if re.search(form, symbol))] += n
    return parts, names, rate


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of updates, each shape")
    args = parser.parse_args()
    if shutil.which("perf") is None:
        raise SystemExit("perf is not installed: apt-get install linux-perf")
    answer = {}
    for name in SPECS:
        parts, names, rate = sampled(name, args.seconds)
        total = sum(parts.values())
        print(
            f"{name}: {rate:.0f} updates/s of {ROWS} rows; share of {total} samples, us an update"
        )
        for part, n in parts.most_common():
            print(f"  {n / total:6.1%} {1e6 / rate * n / total:8.0f}  {part}")
        print("  most seen:", ", ".join(f"{s} {n / total:.1%}" for s, n in names.most_common(8)))
        answer[name] = {part: round(n / total, 4) for part, n in parts.items()}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    with threadpool_limits(1, "blas"):
        sys.exit(main())
