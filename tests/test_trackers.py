"""Metrics for TensorBoard and W&B: what is written, under which names, and what a failure costs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from fdql.config import Config, ConfigError
from fdql.config_file import to_dict
from fdql.run_folder import RunFolder
from fdql.trackers import points
from metrics_page import undocumented
from plans import small_config

ROW = {
    "time/total_timesteps": 3000,
    "time/fps": 800.5,
    "rollout/ep_rew_mean": 101.25,
    "train/actor_loss": float("nan"),
    "budget/limited_by": "updates",
    "eval/mean_reward": 475.0,
}
EVALUATED = ROW | {"eval/updates": 300, "eval/env_steps": 2900}

# What Stable Baselines writes for SAC with an EvalCallback: names that dashboards are made of.
STABLE_BASELINES = {
    "rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/actor_loss",
    "train/critic_loss", "train/ent_coef", "eval/mean_reward", "eval/mean_ep_length",
}  # fmt: skip

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="the extra tensorboard is not installed"
)


def test_an_evaluation_stands_once_at_its_own_step():
    (plain,) = points(ROW)
    plain_values = {
        "time/total_timesteps": 3000.0,
        "time/fps": 800.5,
        "rollout/ep_rew_mean": 101.25,
    }
    assert plain == (3000, plain_values)
    first, second = points(EVALUATED)
    assert first == plain
    assert second == (
        2900,
        {"eval/mean_reward": 475.0, "eval/updates": 300.0, "eval/env_steps": 2900.0},
    )


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of every scalar, read by the tensorboard package."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = defaultdict(list)
    (file,) = folder.iterdir()
    for event in EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            number = value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
            found[value.tag].append((event.step, number))
    return dict(found)


def kept_until(step: int, folder: Path, **settings: bool) -> RunFolder:
    """The folder of a run that goes on after `step`."""
    config = Config(run_dir=str(folder), **settings)
    made = RunFolder(config, lambda _, row: row["time/total_timesteps"] <= step)
    made.begin()
    return made


@needs_tensorboard
def test_tensorboard_shows_what_a_resumed_run_made_again_once(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "r"
    folder = RunFolder(Config(run_dir=str(run), tensorboard=True))
    for step in (1000, 2000, 3000):
        folder.metrics(ROW | {"time/total_timesteps": step})
    folder.close()
    folder = kept_until(1000, run, tensorboard=True)
    for step in (1500, 2500):
        folder.metrics(ROW | {"time/total_timesteps": step, "time/fps": 9.0})
    folder.close()
    shown = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("time/fps")
    assert [(e.step, e.value) for e in shown] == [
        (1000, 800.5), (1500, 9.0), (2500, 9.0),
    ]  # fmt: skip


@needs_tensorboard
def test_tensorboard_reads_what_is_written(tmp_path: Path):
    folder = RunFolder(Config(run_dir=str(tmp_path / "r"), tensorboard=True))
    folder.metrics(ROW)
    folder.metrics(EVALUATED | {"time/total_timesteps": 4000})
    found = events(tmp_path / "r" / "tensorboard")  # before the end: rows are there at once
    folder.close()
    assert found["time/fps"] == [(3000, 800.5), (4000, 800.5)]
    assert found["eval/mean_reward"] == [(2900, 475.0)]
    assert "train/actor_loss" not in found
    assert "budget/limited_by" not in found


@needs_tensorboard
def test_a_run_has_the_names_of_stable_baselines(tmp_path: Path):
    from fdql.supervisor import train

    # 250 steps in each of 8 environments: episodes of 200 end
    config = small_config("Pendulum-v1", total_timesteps=2000, serial=True, tensorboard=True,
                          run_dir=str(tmp_path / "r"))  # fmt: skip
    assert train(config, quiet=True).exit_code == 0
    assert set(events(tmp_path / "r" / "tensorboard")) >= STABLE_BASELINES
    assert undocumented(tmp_path / "r") == set()


@needs_tensorboard
def test_torch_stays_away(tmp_path: Path):
    code = (
        "import sys; from fdql.config import Config; from fdql.run_folder import RunFolder; "
        f"RunFolder(Config(run_dir={str(tmp_path / 'r')!r}, tensorboard=True)).close(); "
        "print([m for m in ('torch', 'tensorflow', 'numba') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("extra", "module"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_missing_extra_is_named_before_anything_is_written(tmp_path, monkeypatch, extra, module):
    for name in [m for m in sys.modules if m.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf'{extra} = True.*pip install .*"\.\[{extra}\]"'):
        RunFolder(Config(run_dir=str(tmp_path / "r"), **{extra: True}))
    assert list(tmp_path.iterdir()) == []


class FakeRun:
    """Stands in for a run of W&B."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.exit_code: int | None = None
        self.broken = False

    def define_metric(self, name: str, step_metric: str) -> None:
        pass

    def log(self, values: dict[str, float]) -> None:
        if self.broken:
            raise ConnectionError("the network is gone")
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def fake_wandb(monkeypatch) -> FakeRun:
    run, module = FakeRun(), types.ModuleType("wandb")
    module.Settings = dict  # type: ignore[attr-defined]

    def init(**words: Any) -> FakeRun:
        run.begun.append(words)
        return run

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return run


def test_wandb_gets_the_numbers_and_the_end(tmp_path: Path, fake_wandb: FakeRun):
    folder = RunFolder(Config(run_dir=str(tmp_path / "r"), wandb=True))
    folder.metrics(EVALUATED)
    folder.close(1)
    assert fake_wandb.logged == [values for _, values in points(EVALUATED)]
    assert fake_wandb.exit_code == 1


def test_wandb_is_sent_metrics_and_settings_alone(tmp_path: Path, fake_wandb: FakeRun):
    config = Config(run_dir=str(tmp_path / "r"), wandb=True)
    RunFolder(config).close()
    (words,) = fake_wandb.begun
    off = ("disable_git", "disable_code", "x_disable_meta", "x_disable_machine_info",
           "x_disable_stats")  # fmt: skip
    settings = words.pop("settings")
    assert all(settings[name] is True for name in off)
    assert (settings["x_save_requirements"], settings["console"]) == (False, "off")
    assert (settings["host"], settings["program"]) == ("", "")
    assert set(words) == {"project", "group", "name", "dir", "config", "id", "resume"}
    assert words["config"] | {"run_dir": config.run_dir} == to_dict(config)
    assert "run_dir" not in words["config"]


def test_a_run_that_goes_on_is_one_run_at_wandb(tmp_path: Path, fake_wandb: FakeRun):
    run = tmp_path / "r"
    RunFolder(Config(run_dir=str(run), wandb=True)).close()
    kept_until(0, run, wandb=True).close()
    RunFolder(Config(run_dir=str(tmp_path / "other"), wandb=True)).close()
    (run / "wandb" / "id.txt").write_text("../../somebody/else\n")
    kept_until(0, run, wandb=True).close()
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (run / "wandb" / "id.txt").unlink()
    (run / "wandb" / "id.txt").symlink_to(mine)
    kept_until(0, run, wandb=True).close()
    assert mine.read_text() == "precious"
    first, again, other, strange, linked = fake_wandb.begun
    assert first["id"] == again["id"]
    assert (first["resume"], again["resume"]) == ("allow", "allow")
    assert len({first["id"], other["id"], strange["id"], linked["id"]}) == 4
    assert "/" not in strange["id"]


def test_a_tracker_that_fails_costs_its_metrics_not_the_run(tmp_path, fake_wandb, capsys):
    folder = RunFolder(Config(run_dir=str(tmp_path / "r"), wandb=True))
    fake_wandb.broken = True
    folder.metrics(ROW)
    fake_wandb.broken = False
    folder.metrics(ROW)
    folder.close()
    assert (fake_wandb.logged, fake_wandb.exit_code) == ([], None)
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == 2
    assert capsys.readouterr().err.count("the network is gone") == 1
    assert "the network is gone" in str(folder.failed)  # the run's exit code says it too
    assert "WeightsAndBiases gets no more metrics" in (tmp_path / "r" / "log.txt").read_text()


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "progress.csv", "wandb"])
def test_a_run_that_goes_on_writes_behind_no_link(tmp_path: Path, fake_wandb: FakeRun, name: str):
    run, mine = tmp_path / "r", tmp_path / "mine"
    RunFolder(Config(run_dir=str(run), wandb=True)).close()
    mine.mkdir() if name == "wandb" else mine.write_text("precious")
    shutil.rmtree(run / name) if name == "wandb" else (run / name).unlink()
    (run / name).symlink_to(mine)
    if name in ("log.txt", "wandb"):
        with pytest.raises(ConfigError, match="link"):
            kept_until(0, run, wandb=True)
    else:  # both are written anew
        kept_until(0, run, wandb=True).close()
    assert (list(mine.iterdir()) == []) if name == "wandb" else (mine.read_text() == "precious")


def test_wandb_that_cannot_begin_leaves_no_folder(tmp_path: Path, fake_wandb, monkeypatch):
    def init(**_: Any) -> FakeRun:
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with pytest.raises(ConfigError, match=r"api_key not configured.*WANDB_MODE=offline"):
        RunFolder(Config(run_dir=str(tmp_path / "r"), wandb=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="the extra wandb is not installed"
)
def test_wandb_offline(tmp_path: Path):
    """The real package, in a process of its own: it leaves one running until its parent ends."""
    code = (
        "import sys; from fdql.config import Config; from fdql.run_folder import RunFolder\n"
        f"folder = RunFolder(Config(run_dir={str(tmp_path / 'r')!r}, wandb=True))\n"
        f"folder.metrics({EVALUATED!r}".replace("nan", "float('nan')")
        + "); folder.close()\n"
        "print('torch' in sys.modules)"
    )
    private = {"WANDB_MODE": "offline", "WANDB_CONFIG_DIR": str(tmp_path), "HOME": str(tmp_path)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | private, cwd=tmp_path, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert (out.returncode, out.stdout.strip()) == (0, "False"), out.stderr
    (kept,) = (tmp_path / "r" / "wandb").glob("offline-run-*")
    (binary,) = kept.glob("*.wandb")
    sent = binary.read_bytes()
    assert b"eval/mean_reward" in sent
    names = (socket.gethostname(), sys.executable, "requirements.txt", "wandb-metadata")
    for private in (*names, str(tmp_path)):
        assert private.encode() not in sent, private
    assert [
        p for p in kept.rglob("*") if p.name in ("requirements.txt", "wandb-metadata.json")
    ] == []
    assert "no more metrics" not in (tmp_path / "r" / "log.txt").read_text()
