"""The whole pipeline, asynchronous, on small environments: it learns, ends in order, survives
crashes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fdql.config import EngineConfig
from fdql.stop_request import StopRequest
from fdql.supervisor import train
from metrics_page import undocumented
from plans import small_config

ROOT = Path(__file__).parent.parent


def go(tmp_path: Path, env: str, **changes: Any) -> Any:
    return train(small_config(env, run_dir=str(tmp_path / "run"), **changes), quiet=True)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_to_its_last_step(own_environments, tmp_path):
    result = go(tmp_path, "own_envs:Counting", total_timesteps=3000)
    s = result.summary
    assert (result.exit_reason, result.exit_code, s["problem"]) == ("total_timesteps", 0, None)
    assert s["env_steps"] >= 3000
    assert s["steps_in_flight"] >= 0
    assert s["steps_committed"] == s["env_steps"] + s["steps_in_flight"]
    assert s["samples_per_insert_actual"] == pytest.approx(32.0, rel=0.02)
    assert s["eval_episodes"] == 4
    assert s["eval_return_mean"] == 28.0  # 1 + 2 + ... + 7, whatever the policy does
    assert s["worker_restarts"] == 0
    assert {"step", "ring", "ingest", "sample", "update", "publish", "infer", "act"} <= set(
        s["stages_us"]
    )
    folder = tmp_path / "run"
    for name in (
        "config.toml",
        "progress.csv",
        "log.txt",
        "policy.safetensors",
        "best/leaderboard.json",
    ):
        assert (folder / name).is_file(), name
    assert json.loads((folder / "summary.json").read_text())["format"] == 2
    assert len(list((folder / "checkpoints").glob("*-updates-*"))) == 1
    assert any("eval/updates" in r for r in rows(folder))
    assert undocumented(folder) == set()
    assert rows(folder)[-1]["rollout/ep_rew_mean"] == 28.0


def test_a_run_too_short_for_one_window_ends(own_environments, tmp_path):
    s = go(tmp_path, "own_envs:Counting", total_timesteps=4).summary
    assert (s["env_steps"], s["updates"], s["exit_reason"]) == (4, 0, "total_timesteps")


def test_thousands_of_action_components(own_environments, tmp_path):
    result = go(tmp_path, "own_envs:ManyMuscles", total_timesteps=60)
    assert (result.exit_reason, result.summary["env_steps"]) == ("total_timesteps", 60)


def test_episodes_of_one_step_by_the_thousand(own_environments, tmp_path):
    result = go(tmp_path, "own_envs:Bandit", total_timesteps=6000)
    assert (result.exit_code, result.problem) == (0, None)
    assert result.summary["episodes"] >= 5990


def test_the_budget_of_a_run_adds_up(own_environments, tmp_path):
    """Every process accounts for its time; the table, the rows and the sentence are there."""
    s = go(tmp_path, "own_envs:Counting", total_timesteps=6000, workers=2).summary
    processes = s["processes"]
    assert list(processes) == [
        "worker 0", "worker 1", "inference", "loader", "trainer", "evaluator",
    ]  # fmt: skip
    for name, account in processes.items():
        assert set(account) == {
            "busy", "waiting", "other", "core", "queued",
            "stages_us", "waits_us", "latencies_us", "numbers",
        }, name  # fmt: skip
        for part in ("busy", "waiting", "core", "queued"):
            assert 0.0 <= account[part] <= 1.05, (name, part, account)
        # A wait of 0.1 s may have begun before the first update.
        assert account["busy"] + account["waiting"] <= 1.05 + 0.1 / s["interval_seconds"], account
        # Ready and on a core: the rest of the time a thread sleeps, and that is waiting.
        assert account["core"] + account["queued"] <= 1.05, account
        shares = [r["share"] for r in (account["stages_us"] | account["waits_us"]).values()]
        assert all(0.0 <= share <= 1.05 for share in shares)
    trainer, inference, loader = (processes[p] for p in ("trainer", "inference", "loader"))
    worker = processes["worker 1"]
    assert {"step", "step.env", "step.reset", "ring"} <= set(worker["stages_us"])
    assert worker["stages_us"]["step.env"]["share"] < worker["stages_us"]["step"]["share"]
    assert set(worker["waits_us"]) <= {"wait.actions", "wait.room"}
    infer = inference["stages_us"]
    parts = infer["infer.forward"]["share"] + infer["infer.copy"]["share"]
    assert parts + infer["infer.load"]["share"] <= infer["infer"]["share"] + 1e-4
    assert set(inference["latencies_us"]) == {"infer.dwell", "policy.age"}
    assert {"rows", "requests", "policy.behind"} == set(inference["numbers"])
    # 2 workers x 2 groups of 4 environments: a round has 1 to 4 requests of 4 rows each
    assert 4 <= inference["numbers"]["rows"]["p50"] <= 17
    assert 1 <= inference["numbers"]["requests"]["p99"] <= 4
    sample = loader["stages_us"]
    assert {"ingest", "sample", "sample.draw", "sample.gather", "priorities"} <= set(sample)
    halves = sample["sample.draw"]["share"] + sample["sample.gather"]["share"]
    assert halves <= sample["sample"]["share"] + 1e-4
    assert sample["sample"]["count"] == pytest.approx(
        trainer["stages_us"]["update"]["count"], abs=3
    )
    assert trainer["numbers"]["staged"]["p99"] <= 4
    assert s["limited_by"] in {
        "updates", "environments", "steps", "inference", "replay", "ratio", "hand-over", "cores",
        "evaluation",
    }  # fmt: skip
    assert len(s["bottleneck"]) <= 160
    shown = [r for r in rows(tmp_path / "run") if "budget/limited_by" in r]
    assert shown
    assert "budget/trainer/update_us_p99" in shown[-1]


def test_it_learns_and_stops_when_solved(own_environments, tmp_path):
    # a random policy's return is about -10 per episode, one that ignores the observation gets at
    # most 5
    result = go(
        tmp_path,
        "own_envs:Steering",
        stop_at_return=7.0,
        total_timesteps=20_000,
        envs_per_worker=8,
        workers=2,
    )
    assert result.exit_reason == "solved"
    first = result.summary["first_time_at_stop_return"]
    assert first["return"] >= 7.0
    assert 0 < first["env_steps"] <= 20_000
    from fdql import evaluate, load

    assert evaluate(load(tmp_path / "run"), "own_envs:Steering", episodes=30, seed=9).mean > 6.0


@pytest.mark.parametrize("env", ["Faulty", "Exits", "Dies"])
def test_a_crashing_worker_is_restarted_and_training_goes_on(own_environments, tmp_path, env):
    """Each environment breaks at its 300th step: 8 of them make about 2400 steps an incarnation."""
    engine = EngineConfig(restarts=10)
    result = go(tmp_path, f"own_envs:{env}", total_timesteps=4000, engine=engine)
    s = result.summary
    assert result.exit_reason == "total_timesteps", s["problem"]
    assert 1 <= s["worker_restarts"] <= 10
    assert s["env_steps"] >= 4000
    assert s["steps_committed"] == s["env_steps"] + s["steps_in_flight"]
    if env == "Faulty":
        assert "breaks at its 300th step" in (tmp_path / "run" / "log.txt").read_text()


def test_a_run_of_many_deaths_makes_its_last_step(own_environments, tmp_path):
    """A worker mostly dies with a request of its other group under way; not one step may be lost to
    the count of those begun, or the run never ends.
    """
    config: dict[str, Any] = {"total_timesteps": 4000, "envs_per_worker": 4}
    engine = EngineConfig(restarts=100, commit_rows=16)
    s = go(tmp_path, "own_envs:DiesYoung", engine=engine, **config).summary
    assert (s["exit_reason"], s["env_steps"]) == ("total_timesteps", 4000)
    assert s["worker_restarts"] >= 4
    assert s["steps_committed"] == s["env_steps"] + s["steps_in_flight"]


def test_a_spent_restart_budget_ends_the_run(own_environments, tmp_path):
    result = go(tmp_path, "own_envs:Faulty", total_timesteps=10**6, engine=EngineConfig(restarts=1))
    assert (result.exit_reason, result.exit_code) == ("crash", 1)
    assert "engine.restarts = 1" in result.problem
    assert "breaks at its 300th step" in result.problem
    assert (tmp_path / "run" / "policy.safetensors").is_file()


@pytest.mark.parametrize(("env", "what"), [("NanObservation", "nan"), ("InfReward", "inf")])
def test_a_bad_value_ends_the_run_and_is_named(own_environments, tmp_path, env, what):
    result = go(tmp_path, f"own_envs:{env}", total_timesteps=10**6)
    assert (result.exit_reason, result.exit_code) == ("bad_value", 1)
    for word in (f"own_envs:{env}", "seed", "step 300", what):
        assert word in result.problem


def test_a_silent_worker_is_killed_and_restarted(own_environments, tmp_path):
    engine = EngineConfig(heartbeat_timeout=2.0, restarts=0)
    result = go(tmp_path, "own_envs:Hangs", total_timesteps=10**6, engine=engine)
    assert result.exit_reason == "crash"
    assert "no sign of life" in result.problem
    assert "engine.heartbeat_timeout = 2" in result.problem


def test_a_checkpoint_that_cannot_be_written_is_told(own_environments, tmp_path, monkeypatch):
    monkeypatch.setenv("BLOCKED_PLACE", str(tmp_path / "run" / "checkpoints"))
    result = go(tmp_path, "own_envs:BlocksTheCheckpoint", total_timesteps=300)
    assert (result.exit_reason, result.exit_code) == ("total_timesteps", 1)
    assert "the trainer process failed at the end" in result.problem
    assert "checkpoints" in result.problem
    assert (tmp_path / "run" / "policy.safetensors").is_file()


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    """The command in its own session, as a user starts it; returns once steps were stored."""
    command = [sys.executable, str(ROOT / "main.py"), "--run-dir", str(tmp_path / "run"), *words]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        file = tmp_path / "run" / "metrics.jsonl"
        if file.exists() and any(r["train/n_updates"] > 0 for r in rows(tmp_path / "run")):
            return process
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[0])


LONG = ("--env", "Pendulum-v1", "--stop-at-return", "never")


def test_ctrl_c_ends_in_order(tmp_path):
    process = start(tmp_path, *LONG)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 4
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in out
    assert not any(c.is_running() for c in children)
    s = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert s["exit_reason"] == "interrupted"
    assert len(list((tmp_path / "run" / "checkpoints").glob("*-updates-*"))) == 1


def test_a_request_that_nobody_hears_raises_at_last(monkeypatch):
    """The first asks, the second urges, a third soon after is mashing, a late one raises. At once
    after another, as from `timeout`, which signals the whole group too, it is the same.
    """
    now = [10.0]
    monkeypatch.setattr("fdql.stop_request.time.monotonic", lambda: now[0])
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        for later, requests in ((0.0, 1), (0.1, 1), (60.0, 2), (0.3, 2), (0.3, 3)):
            now[0] += later
            signal.raise_signal(signal.SIGINT)
            assert (stop.count, stop.impatient) == (requests, requests > 1)
        now[0] += 60.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_step_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *LONG], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()  # the banner: the handler is there, the children are not
    while "writing" not in line:
        assert line
        line = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out = process.stdout.read()
    process.wait(timeout=30)
    process.stdout.close()
    assert process.returncode == 130, out
    assert "Traceback" not in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("serial", [False, True])
def test_ctrl_c_is_heard_as_soon_as_there_is_a_folder(
    own_environments, tmp_path, monkeypatch, serial
):
    def interrupted(*_: object) -> list[str]:
        signal.raise_signal(signal.SIGINT)  # while the banner is made: nothing is started yet
        return []

    monkeypatch.setattr("fdql.supervisor.banner", interrupted)
    result = go(tmp_path, "own_envs:Counting", serial=serial)
    assert (result.exit_reason, result.exit_code) == ("interrupted", 130)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_supervisor_takes_everything_with_it(tmp_path):
    process = start(tmp_path, *LONG)
    children = psutil.Process(process.pid).children(recursive=True)
    memory = psutil.Process(process.pid).memory_maps(grouped=False)
    assert any("memfd" in m.path for m in memory)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 2.0
    while (alive := [c for c in children if not is_dead(c)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.stdout is not None
    process.stdout.close()
    assert len(children) == 4
    assert not alive


def is_dead(process: psutil.Process) -> bool:
    """Gone, or a zombie that init has not reaped yet: it holds no memory any more."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_a_killed_worker_is_replaced(tmp_path):
    process = start(tmp_path, *LONG)
    (worker,) = [
        p for p in psutil.Process(process.pid).children() if "fdql.proc.env_worker" in p.cmdline()
    ]
    worker.kill()
    deadline = time.monotonic() + 30
    while not any(r["engine/restarts"] == 1 for r in rows(tmp_path / "run")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = rows(tmp_path / "run")[-1]["time/total_timesteps"]
    while rows(tmp_path / "run")[-1]["time/total_timesteps"] <= before + 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "worker 0 ended (killed by SIGKILL in stage " in out
    assert "the memory ran out: fewer workers or environments need less); restart 1 of 5" in out


def test_children_have_their_thread_caps(tmp_path):
    process = start(tmp_path, *LONG)
    for child in psutil.Process(process.pid).children():
        env = child.environ()
        trainer = "fdql.proc.trainer" in child.cmdline()
        kernels = min(2, len(os.sched_getaffinity(0))) if trainer else 1
        assert env["OMP_NUM_THREADS"] == env["OPENBLAS_NUM_THREADS"] == "1"
        assert env["NUMBA_NUM_THREADS"] == str(kernels)
        # the trainer: a loader and a thread for each critic; a library's pool would show here
        assert child.num_threads() <= (1 + kernels if trainer else 1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
