"""Environments that harm the process they live in: the run goes on, or it ends and says which
process, why, in which stage, and what to do. Nothing hangs, nothing is left behind.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fdql.config import EngineConfig
from fdql.supervisor import train
from plans import small_config


def go(tmp_path: Path, env: str, **changes: Any) -> Any:
    config = small_config(f"hostile_envs:{env}", run_dir=str(tmp_path / "run"), **changes)
    return train(config, quiet=True)


def log(tmp_path: Path) -> str:
    return (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (
            "Aborts",
            ("by SIGABRT in stage step, a fault in native code", "engine.c:99", "in fault"),
        ),
        ("Leaves", ("exited with code 11 without being told to in stage step",)),
        ("EatsMemory", ("MemoryError",)),
        ("WritesAMarker", ("lost its line to the supervisor in stage",)),
    ],
)
def test_a_worker_that_dies_is_replaced(own_environments, tmp_path, monkeypatch, env, says):
    """Each environment does it at its 300th step: 4 of them make about 1200 steps a life."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setenv("HOSTILE_PLACE", str(place))
    result = go(
        tmp_path, env, total_timesteps=1500, envs_per_worker=4, engine=EngineConfig(restarts=10)
    )
    s = result.summary
    assert (result.exit_reason, result.exit_code) == ("total_timesteps", 0), s["problem"]
    assert 1 <= s["worker_restarts"] <= 10
    for part in says:
        assert part in log(tmp_path)
    assert all(file.read_bytes() == b"" for file in place.iterdir())  # nothing of ours in them


@pytest.mark.parametrize("env", ["Babbles", "TakesSignals", "Splits"])
def test_a_worker_that_only_misbehaves_goes_on(own_environments, tmp_path, env):
    result = go(tmp_path, env, total_timesteps=1500, envs_per_worker=4)
    s = result.summary
    assert (result.exit_reason, result.exit_code) == ("total_timesteps", 0), s["problem"]
    assert s["worker_restarts"] == 0
    assert s["steps_committed"] == s["env_steps"] + s["steps_in_flight"]
    assert s["eval_return_mean"] == 28.0
    assert (tmp_path / "run" / "log.txt").stat().st_size < 6 << 20  # of the 40 MB of each of 4


def test_a_frozen_worker_is_killed_and_replaced(own_environments, tmp_path):
    engine = EngineConfig(heartbeat_timeout=1.0, restarts=3)
    result = go(tmp_path, "Freezes", total_timesteps=1500, envs_per_worker=4, engine=engine)
    assert result.exit_reason == "total_timesteps", result.problem
    assert 1 <= result.summary["worker_restarts"] <= 3
    assert "no sign of life for" in log(tmp_path)
    assert "in step (engine.heartbeat_timeout = 1), killed" in log(tmp_path)


def test_what_a_worker_started_goes_with_it(own_environments, tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTILE_PLACE", str(tmp_path / "pids"))
    result = go(tmp_path, "Breeds", total_timesteps=10**6, engine=EngineConfig(restarts=1))
    assert (result.exit_reason, result.exit_code) == ("crash", 1)
    for part in ("worker 0 ended 2 times", "exited with code 9", "engine.restarts = 1"):
        assert part in result.problem
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != "zombie" for p in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("ShapeChanges", ("worker 0: environment", "seed", "step 300", "shape (1,)", "(2,)")),
        ("InEvaluation", ("evaluator: environment", "seed", "step 1", "inf", "must be finite")),
        ("InfRewardInEvaluation", ("evaluator: environment", "the reward -inf")),
    ],
)
def test_what_cannot_be_learned_from_ends_the_run(own_environments, tmp_path, env, says):
    result = go(tmp_path, env, total_timesteps=10**6)
    assert (result.exit_reason, result.exit_code) == ("bad_value", 1)
    for part in (f"hostile_envs:{env}", *says):
        assert part in result.problem


def test_an_evaluation_that_always_aborts_ends_the_run(own_environments, tmp_path):
    engine = EngineConfig(restarts=1)
    result = go(tmp_path, "AbortsInEvaluation", total_timesteps=10**6, engine=engine)
    assert (result.exit_reason, result.exit_code) == ("crash", 1)
    for part in ("evaluator ended 2 times", "SIGABRT", "engine.restarts = 1"):
        assert part in result.problem


def test_a_long_construction_is_not_silence(own_environments, tmp_path):
    engine = EngineConfig(heartbeat_timeout=1.0, restarts=0)
    result = go(tmp_path, "SlowToMake", total_timesteps=300, envs_per_worker=2, engine=engine)
    assert result.exit_reason == "total_timesteps", result.problem
    assert result.summary["worker_restarts"] == 0
