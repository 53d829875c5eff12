"""All together: a short real training run, ended after a while by Ctrl-C.

Evaluation is put off, so that the rates are those of environments, inference and trainer;
bench/learning.py measures with it. The window begins when the warm-up's updates are made.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fdql.config import Config
from fdql.config_file import load_toml
from peers.runs import ROOT, usable_cores

from rates.command import started
from rates.reading import Reading

START_SECONDS = 300.0  # the first start compiles the kernels
LEAVE_SECONDS = 60.0
IN_FLIGHT_STEPS = 512  # steps that may lie between a commit and its update, beyond those ahead
RATIO_TOLERANCE = 0.02


class RunFailed(RuntimeError):
    """The run did not start, or ended otherwise than told to."""


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics so far, whole lines only."""
    file = folder / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def warm_rows(rows: list[dict[str, Any]], config: Config) -> list[dict[str, Any]]:
    """Those after the warm-up's updates are made; its stored steps wait for them."""
    paid = config.explore.warmup_steps * float(config.samples_per_insert) / config.sac.batch_size
    return [r for r in rows if r["train/n_updates"] > paid]


def run(
    env: str, seconds: float, *, workers: int | None = None, envs_per_worker: int | None = None
) -> Reading:
    """Environment steps/s of a run with everything on; updates/s, ratio, duty cycle, lag beside."""
    words = [sys.executable, str(ROOT / "main.py"), "--env", env, "--stop-at-return", "never"]
    words += ["--total-timesteps", str(10**9), "--eval.every-steps", str(10**9)]
    words += [] if workers is None else ["--workers", str(workers)]
    words += [] if envs_per_worker is None else ["--envs-per-worker", str(envs_per_worker)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        running = started([*words, "--run-dir", str(folder)], usable_cores())
        process = running.process
        config: Config | None = None
        deadline, end = time.monotonic() + START_SECONDS, math.inf
        try:
            while time.monotonic() < min(deadline, end) and process.poll() is None:
                time.sleep(0.1)
                if end < math.inf or not (rows := rows_of(folder)):
                    continue  # not to read while the window is open
                config = config or load_toml(folder / "config.toml")  # derived settings included
                if warm_rows(rows, config):
                    end = time.monotonic() + seconds + 0.5  # its rows are a second apart
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            out, err = running.ended(LEAVE_SECONDS)
        if process.returncode != 130 or end == math.inf or config is None:
            raise RunFailed(f"exit code {process.returncode}: {(out + err)[-500:]}")
        summary = json.loads((folder / "summary.json").read_text())
        rows = [r for r in warm_rows(rows_of(folder), config) if r["time/fps"] > 0]
    return reading(rows, summary, config)


def reading(rows: list[dict[str, Any]], summary: dict[str, Any], config: Config) -> Reading:
    """Rates between the first and the last row of the window, and what is wrong with the run."""
    if len(rows) < 2:
        raise RunFailed(f"{len(rows)} rows of metrics after the warm-up: give it more --seconds")
    first, last = rows[0], rows[-2] if len(rows) > 2 else rows[-1]  # the last row: already leaving
    took, steps, updates = (
        last[key] - first[key]
        for key in ("time/time_elapsed", "time/total_timesteps", "train/n_updates")
    )
    wrong = []
    ratio = updates * config.sac.batch_size / steps if steps else math.inf
    paid = steps * float(config.samples_per_insert) / config.sac.batch_size  # updates
    slack = RATIO_TOLERANCE * paid + config.engine.ahead_updates
    slack += IN_FLIGHT_STEPS * float(config.samples_per_insert) / config.sac.batch_size
    if abs(updates - paid) > slack:
        wrong.append(
            f"{updates} updates for {steps} steps: {ratio:.2f} samples per insert, target "
            f"{config.samples_per_insert}"
        )
    committed, in_flight = summary["steps_committed"], summary["steps_in_flight"]
    if in_flight < 0 or committed != summary["env_steps"] + in_flight:
        wrong.append(
            f"{committed} steps committed, {summary['env_steps']} stored, {in_flight} under way"
        )
    if summary["problem"] or summary["worker_restarts"]:
        wrong.append(f"problem {summary['problem']}, {summary['worker_restarts']} restarts")
    for key, value in last.items():
        if key.startswith("train/") and isinstance(value, float) and not math.isfinite(value):
            wrong.append(f"{key} = {value}")
    if "train/critic_loss" not in last:
        wrong.append("no losses in the metrics")
    facts = {
        "updates_per_second": round(updates / took, 1),
        "samples_per_insert": round(ratio, 2),
        "duty_cycle": round(summary["trainer_duty_cycle"], 3),
        "policy_lag_p50": summary["policy_lag_p50"],
        "policy_lag_p99": summary["policy_lag_p99"],
        "workers": summary["workers"],
        "envs_per_worker": summary["envs_per_worker"],
        "window_seconds": round(took, 1),
    }
    return Reading(value=steps / took, facts=facts, stages=summary["stages_us"], wrong=wrong)
