"""A run that was stopped and goes on: bit for bit in serial mode, by the counters in the other."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from fdql.checkpoint_folder import CheckpointFolder
from fdql.cli import main
from fdql.going_on import resume, unfinished
from fdql.manifest import read_manifest
from plans import small_config
from resumed_runs import arrays_of, go_on, metrics, rows_of, run, stop_at_look


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_stop_changes_no_bit(tmp_path, monkeypatch, env):
    """Stopped at several random moments, one after another: weights, moments, priorities, rows,
    draws, noise, open episodes and metrics are those of a run that was never stopped.
    """
    config = small_config(env, total_timesteps=1200, serial=True)
    run(config, tmp_path / "whole")
    draws = random.Random(env)
    for number in range(3):
        folder = tmp_path / f"stopped-{number}"
        with monkeypatch.context() as m:
            stop_at_look(m, draws.randrange(200, 1300))
            assert run(config, folder).exit_reason == "interrupted"
            stop_at_look(m, draws.randrange(2, 700))
            go_on(config, folder)
        result = go_on(config, folder)
        assert result.exit_reason == "total_timesteps"
        assert result.summary["env_steps"] == 1200
        assert arrays_of(folder) == arrays_of(tmp_path / "whole")
        assert rows_of(folder) == rows_of(tmp_path / "whole")
        assert metrics(folder) == metrics(tmp_path / "whole")


def test_a_finished_run_is_not_evaluated_again(tmp_path):
    config = small_config("CartPole-v1", total_timesteps=1200, serial=True)
    run(config, tmp_path / "run")
    before = metrics(tmp_path / "run")
    result = go_on(config, tmp_path / "run")
    assert (result.exit_reason, result.summary["env_steps"]) == ("total_timesteps", 1200)
    assert [r for r in metrics(tmp_path / "run") if "eval/updates" in r] == [
        r for r in before if "eval/updates" in r
    ]


def test_an_environment_that_does_not_repeat_begins_anew(own_environments, tmp_path, monkeypatch):
    """Counting's episodes are numbered by the instance: no seed brings them back."""
    config = small_config("own_envs:Counting", total_timesteps=600, serial=True)
    with monkeypatch.context() as m:
        stop_at_look(m, 300)
        run(config, tmp_path / "run")
    result = go_on(config, tmp_path / "run")
    assert (result.exit_reason, result.summary["env_steps"]) == ("total_timesteps", 600)
    assert result.summary["updates"] == 600
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "8 of 8 environments do not repeat their episodes" in log


@pytest.mark.parametrize("workers", [1, 2])
def test_an_asynchronous_run_goes_on_with_its_counters(own_environments, tmp_path, workers):
    config = small_config("own_envs:Counting", total_timesteps=2000)
    first = run(config, tmp_path / "run")
    assert first.summary["updates"] == 2000
    more = replace(config, total_timesteps=5000, workers=workers, checkpoint_every=0.2)
    result = go_on(more, tmp_path / "run")
    s = result.summary
    assert result.exit_reason == "total_timesteps", s["problem"]
    assert s["env_steps"] == s["updates"] == 5000
    assert s["steps_committed"] == s["env_steps"] + s["steps_in_flight"]
    assert s["samples_per_insert_actual"] == 32.0
    steps = [row["time/total_timesteps"] for row in metrics(tmp_path / "run")]
    assert steps == sorted(steps)
    assert steps[0] < 2000 < steps[-1]
    episodes = 5000 / 7
    assert s["episodes"] == pytest.approx(episodes, abs=40)
    assert s["wall_seconds"] > first.summary["wall_seconds"]
    assert len((tmp_path / "run" / "progress.csv").read_text().splitlines()) == 1 + len(steps)


def test_a_killed_run_goes_on_where_it_was(own_environments, tmp_path, monkeypatch):
    """SIGKILL in the middle; the newest checkpoint is then broken by hand: the one before is taken.
    Then --resume auto finds the run, and a finished one is not taken up again.
    """
    monkeypatch.chdir(tmp_path)
    words = ["--env", "own_envs:Counting", "--stop-at-return", "never", "--workers", "1"]
    words += ["--sac.critic-width", "16", "--eval.episodes", "4", "--replay.capacity", "4096"]
    words += ["--total-timesteps", "1000000", "--checkpoint-every", "0.2"]
    command = [sys.executable, "-m", "fdql.cli", "train", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 120
        while not (done := list(tmp_path.glob("runs/*/*/checkpoints/000003-*"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    folder = done[0].parent.parent
    names = CheckpointFolder(folder / "checkpoints").names()
    (folder / "checkpoints" / names[-1] / "manifest.json").write_text("{}")
    before = read_manifest(folder / "checkpoints" / names[-2]).facts
    total = str(before["env_steps"] + 1000)
    assert not (folder / "summary.json").exists()
    out = subprocess.run(
        [*command, "--resume", "auto", "--total-timesteps", total],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert f"checkpoint {names[-1]} is broken, the one before is taken" in out.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["env_steps"] == int(total)
    assert summary["samples_per_insert_actual"] == pytest.approx(32.0, rel=0.02)
    steps = [row["time/total_timesteps"] for row in metrics(folder)]
    assert steps == sorted(steps)
    assert len(list((tmp_path / "runs").rglob("config.toml"))) == 1
    assert main(["resume", str(folder), "--env", "own_envs:Counting"]) == 2
    assert unfinished("own_envs:Counting", 0) == []


@pytest.mark.parametrize("serial", [True, False])
def test_damaged_rows_cost_those_rows_alone(
    own_environments, tmp_path, monkeypatch, capsys, serial
):
    monkeypatch.setattr("fdql.proc.saver.LEAST_RANGE", 100)
    config = small_config("own_envs:Counting", total_timesteps=700, serial=serial)
    run(replace(config, serial=True), tmp_path / "run")
    rows = sorted((tmp_path / "run" / "checkpoints" / "rows").iterdir())
    assert len(rows) > 4
    for file in (rows[1], rows[2]):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    more = replace(config, run_dir=str(tmp_path / "run"), total_timesteps=1200)
    result = resume(tmp_path / "run", more, quiet=True)
    assert result.exit_reason == "total_timesteps", result.problem
    assert result.summary["env_steps"] == result.summary["updates"] == 1200
    said = capsys.readouterr().err
    for file in (rows[1], rows[2]):
        assert f"goes on without some rows of the replay: {file}: its checksum" in said
    log = (tmp_path / "run" / "log.txt").read_text()
    says = r"from 000001-updates-700: 700 steps, 700 updates, (\d+) rows .* \((\d+) more were"
    kept, lost = map(int, re.search(says, log).groups())
    assert 200 <= lost <= 230
    assert kept >= 450
    go_on(replace(more, total_timesteps=1300), tmp_path / "run")  # that one is whole again


def test_counts_that_do_not_fit_are_refused(own_environments, tmp_path):
    """As if somebody had put a checkpoint together out of two."""
    config = small_config("own_envs:Counting", total_timesteps=300, serial=True)
    run(config, tmp_path / "run")
    (folder,) = (tmp_path / "run" / "checkpoints").glob("0*")
    manifest = folder / "manifest.json"
    values = json.loads(manifest.read_text())
    for name, says in (("env_steps", "its replay is of 300 steps"), ("updates", "made 300 upd")):
        changed = values | {"facts": values["facts"] | {name: 200}}
        content = {key: changed[key] for key in ("format", "facts", "files", "shared")}
        changed["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        manifest.write_text(json.dumps(changed))
        result = go_on(replace(config, total_timesteps=400), tmp_path / "run")
        assert result.exit_reason == "crash"
        assert says in result.problem


def test_what_cannot_go_on_is_explained(own_environments, tmp_path, capsys):
    config = small_config("own_envs:Counting", total_timesteps=300, serial=True)
    run(replace(config, checkpoint_keep=0), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    env = "--env", "own_envs:Counting"
    for words, says in (
        ([], "its folder must follow"),
        ([str(tmp_path)], "no config.toml in it"),
        ([str(tmp_path / "run")], "say so: --env own_envs:Counting"),
        ([str(tmp_path / "run"), *env], "it has no checkpoint to go on from"),
        ([str(tmp_path / "run"), *env, "--seed", "7"], "a run keeps its seed (0)"),
    ):
        assert main(["resume", *words]) == 2
        assert says in capsys.readouterr().err
