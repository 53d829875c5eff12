"""bench/learning.py: a run that was interrupted goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = Path(__file__).parents[1] / "bench" / "learning.py"


def test_an_interrupted_run_goes_on(tmp_path):
    """Ctrl-C in the middle: nothing is recorded, the same command makes one run of both parts."""
    words = ["--env", "CartPole-v1", "--who", "fdql+stop-at-return=never", "--seeds", "3"]
    words += ["--no-warm-up", "--keep", str(tmp_path / "runs"), "--out", str(tmp_path / "out.json")]
    command = [sys.executable, str(COMMAND), *words, "--max-seconds"]
    metrics = tmp_path / "runs" / "CartPole-v1-fdql+stop-at-return=never-3" / "run/metrics.jsonl"
    first = subprocess.Popen([*command, "100"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not metrics.exists() or metrics.read_text().count('"eval/updates"') < 2:
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=90)[1]
    assert first.returncode == 130, said
    assert not (tmp_path / "out.json").exists()
    rows = [json.loads(row) for row in metrics.read_text().splitlines()]
    behind = rows[-1]["time/time_elapsed"]
    played = [r["eval/env_steps"] for r in rows if "eval/updates" in r]
    subprocess.run([*command, f"{behind + 12:.0f}"], check=True, timeout=120)
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    seconds, steps = ([point[i] for point in run["curve"]] for i in (0, 1))
    assert steps[: len(played) - 1] == played[:-1]  # the last may be after the checkpoint
    assert steps[-1] > played[-1]
    assert seconds == sorted(seconds)
    assert behind < run["command_seconds"]
    assert run["exit_code"] == 130
