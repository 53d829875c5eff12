"""Callbacks: when they are called, with what, and how they end a run; the clock of a run."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fdql import Callback, train
from fdql.callbacks import Snapshot
from fdql.config import ConfigError
from plans import small_config

pytestmark = pytest.mark.timeout(600)  # the first run of all compiles the kernels


class Recorder(Callback):
    """Keeps what it is called with."""

    on_step_every = 200

    def __init__(self) -> None:
        self.steps: list[Snapshot] = []
        self.evaluations: list[tuple[Snapshot, dict[str, Any]]] = []
        self.ends: list[tuple[Snapshot, str]] = []

    def on_step(self, snapshot: Snapshot) -> None:
        self.steps.append(snapshot)

    def on_evaluation(self, snapshot: Snapshot, evaluation: dict[str, Any]) -> None:
        self.evaluations.append((snapshot, evaluation))

    def on_end(self, snapshot: Snapshot, exit_reason: str) -> None:
        assert not (snapshot.run_dir / "summary.json").exists()
        self.ends.append((snapshot, exit_reason))


@pytest.mark.parametrize("serial", [True, False])
def test_callbacks_see_versioned_snapshots(tmp_path: Path, serial: bool):
    recorder = Recorder()
    config = small_config(
        "CartPole-v1", serial=serial, total_timesteps=1200, run_dir=str(tmp_path / "run")
    )
    result = train(config, callbacks=recorder, quiet=True)  # one alone needs no list
    assert (result.exit_reason, result.problem) == ("total_timesteps", None)

    steps = [s.env_steps for s in recorder.steps]
    assert steps == sorted(steps)
    assert len(steps) == len({s // 200 for s in steps})  # once for every 200
    if serial:  # in lockstep nothing is passed over: 8 environments, so 200 is a round
        assert steps == [200, 400, 600, 800, 1000, 1200]
    for s in recorder.steps:
        assert 0 < s.version <= s.updates
        assert s.metrics["time/total_timesteps"] >= s.env_steps
        assert s.policy.predict(np.zeros(4)).shape == ()
    versions = [s.version for s in recorder.steps]
    assert versions == sorted(versions)

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [r for r in map(json.loads, lines) if "eval/updates" in r]
    assert [e["updates"] for _, e in recorder.evaluations] == [r["eval/updates"] for r in rows]
    assert [e["mean"] for _, e in recorder.evaluations] == [r["eval/mean_reward"] for r in rows]
    assert all(s.version >= e["updates"] for s, e in recorder.evaluations)

    ((last, reason),) = recorder.ends
    assert reason == "total_timesteps"
    assert (last.env_steps, last.updates) == (result.summary["env_steps"], last.version)
    from fdql import load

    np.testing.assert_array_equal(load(tmp_path / "run", "last").network.snapshot, last.weights)


@pytest.mark.parametrize(("serial", "no"), [(True, np.mean([1, 2]) < 1), (False, False)])
def test_false_ends_the_run_in_order(tmp_path: Path, serial: bool, no: Any):
    class Enough(Callback):
        on_step_every = 300

        def on_step(self, snapshot: Snapshot) -> bool:
            return no

    recorder = Recorder()
    config = small_config(
        "CartPole-v1", serial=serial, total_timesteps=10**6, run_dir=str(tmp_path / "run")
    )
    result = train(config, callbacks=[Enough(), recorder], quiet=True)
    assert (result.exit_reason, result.problem, result.exit_code) == ("callback", None, 0)
    assert 300 <= result.summary["env_steps"] < 10**5
    assert [reason for _, reason in recorder.ends] == ["callback"]
    assert (tmp_path / "run" / "policy.safetensors").is_file()


@pytest.mark.parametrize("method", ["on_step", "on_evaluation", "on_end"])
def test_an_exception_ends_the_run_and_names_the_callback(tmp_path: Path, method: str):
    def fail(self: Any, *_: object) -> None:
        raise ZeroDivisionError("my mistake")

    mine = type("Mine", (Callback,), {method: fail, "on_step_every": 100})
    recorder = Recorder()
    config = small_config(
        "CartPole-v1", serial=True, total_timesteps=2000, run_dir=str(tmp_path / "run")
    )
    result = train(config, callbacks=[mine(), recorder], quiet=True)
    assert result.problem == f"Mine.{method} raised ZeroDivisionError: my mistake"
    assert result.exit_code == 1
    assert result.exit_reason == ("total_timesteps" if method == "on_end" else "callback")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["problem"] == result.problem
    assert "ZeroDivisionError" in (tmp_path / "run" / "log.txt").read_text()
    assert len(recorder.ends) == 1


def test_a_wrong_interval_is_refused(tmp_path: Path):
    class Never(Callback):
        on_step_every = 0

    config = small_config("CartPole-v1", serial=True, run_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"Never.on_step_every = 0"):
        train(config, callbacks=[Never()], quiet=True)
    with pytest.raises(ConfigError, match=r"is no fdql.Callback"):
        train(config, callbacks=[print], quiet=True)  # type: ignore[list-item]
    assert not (tmp_path / "run").exists()


SCRIPT = """
import fdql, my_env
result = fdql.train(
    fdql.Config(
        env="my_env:Line", total_timesteps=400, workers=1, stop_at_return="never",
        run_dir={run!r}, explore=fdql.config.ExploreConfig(warmup_steps=64),
        eval=fdql.config.EvalConfig(episodes=2),
    ),
    quiet=True,
)
print(result.exit_reason, result.summary["env_steps"], result.summary["wall_seconds"] < 100)
"""
ENVIRONMENT = """
import gymnasium as gym
import numpy as np

class Line(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.at += 1
        return np.zeros(1, np.float32), float(action), False, self.at == 10, {}
"""


def script(folder: Path, text: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    (folder / "experiment.py").write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, str(folder / "experiment.py")],
        cwd=cwd, capture_output=True, text=True, timeout=590,
    )  # fmt: skip


def test_a_script_without_a_guard_trains_once_also_from_another_folder(tmp_path: Path):
    """Children are processes of their own that never import the script; they find what is beside
    it.
    """
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    (there / "my_env.py").write_text(ENVIRONMENT)
    done = script(there, SCRIPT.format(run=str(tmp_path / "run")), here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["total_timesteps", "400", "True"]


def test_cells_of_a_notebook_train(tmp_path: Path):
    """Code without a file, in the folder of the environment's."""
    (tmp_path / "my_env.py").write_text(ENVIRONMENT)
    done = subprocess.run(
        [sys.executable, "-"], input=SCRIPT.format(run=str(tmp_path / "run")),
        cwd=tmp_path, capture_output=True, text=True, timeout=590,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["total_timesteps", "400", "True"]


def test_an_environment_in_the_script_itself_needs_a_guard_and_says_so(tmp_path: Path):
    text = ENVIRONMENT + SCRIPT.format(run=str(tmp_path / "run"))
    text = text.replace(", my_env", "").replace("my_env:", "experiment:")
    done = script(tmp_path, text, tmp_path)
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()
    before, call = text.split("result = ")
    indented = textwrap.indent("result = " + call, "    ")
    done = script(tmp_path, f'{before}\nif __name__ == "__main__":\n{indented}', tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["total_timesteps", "400", "True"]


def test_what_a_notebook_defines_is_refused_with_the_way_out(tmp_path: Path):
    config = small_config("__main__:Line", run_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"my_module.py, and env = 'my_module:factory' works"):
        train(config, quiet=True)


def test_the_clock_of_a_run_in_python_starts_with_the_call(tmp_path: Path):
    from fdql.clock import monotonic

    before = monotonic()
    config = small_config(
        "CartPole-v1", serial=True, total_timesteps=100, run_dir=str(tmp_path / "run")
    )
    result = train(config, quiet=True)
    assert result.summary["wall_seconds"] <= monotonic() - before + 0.001
