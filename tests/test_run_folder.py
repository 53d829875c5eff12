"""What a run leaves and shows: files that load again, a board that fits 80 columns."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from fdql.board import Board
from fdql.config import Config, ConfigError, SacConfig
from fdql.config_file import load_toml
from fdql.run_folder import RunFolder
from rich.console import Console

ROW = {
    "time/time_elapsed": 12.5,
    "time/total_timesteps": 3000,
    "time/fps": 812.3,
    "train/n_updates": 375,
    "train/updates_per_second": 101.0,
    "train/samples_per_insert": 32.0,
    "rollout/ep_rew_mean": 101.25,
    "eval/mean_reward": 475.0,
    "eval/std_reward": 3.0,
    "train/ent_coef": 0.012,
    "engine/duty_cycle": 0.97,
    "engine/policy_lag_p50": 9.0,
    "engine/policy_lag_p99": 25.0,
    "replay/size": 2990,
}
STAGES = {"step": {"count": 10.0, "p50": 12.0, "p99": 30.0, "p99.9": 31.0}}


def test_the_config_of_a_run_loads_again(tmp_path: Path):
    config = Config(seed=7, run_dir=str(tmp_path / "r"), sac=SacConfig(discount=0.9))
    RunFolder(config).close()
    loaded = load_toml(tmp_path / "r" / "config.toml")
    assert (loaded.seed, loaded.sac.discount, loaded.run_dir) == (7, 0.9, None)


def test_rows_are_there_as_soon_as_they_are_written(tmp_path: Path):
    folder = RunFolder(Config(run_dir=str(tmp_path / "r")))
    folder.metrics(ROW)
    folder.log("hello\n")
    assert json.loads((tmp_path / "r" / "metrics.jsonl").read_text()) == ROW
    (line,) = csv.DictReader((tmp_path / "r" / "progress.csv").open())
    assert line["eval/mean_reward"] == "475.0"
    assert (tmp_path / "r" / "log.txt").read_text().endswith("hello\n")
    folder.close()


def test_a_default_folder_is_new_every_time(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [RunFolder(Config(env="ALE/Pong-v5")) for _ in range(3)]
    assert len({f.path for f in folders}) == 3
    assert all(f.path.parent == Path("runs/ALE-Pong-v5") for f in folders)
    for f in folders:
        f.discard()
    assert list(tmp_path.iterdir()) == []


def test_discard_keeps_what_is_not_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    folder = RunFolder(Config(run_dir="mine/run"))
    folder.discard()
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be created"):
        RunFolder(Config(run_dir=str(tmp_path / "file" / "run")))


def test_the_live_board_fits_a_small_terminal(monkeypatch):
    board = Board("fdql  CartPole-v1  seed 0", quiet=True)
    out = io.StringIO()
    console = Console(file=out, width=80, height=24, force_terminal=True, color_system=None)
    board.console = console
    console.print(board.picture(ROW, STAGES))
    lines = out.getvalue().splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    for shown in ("475.0", "3,000", "32.00", "97%", "step", "9 / 25"):
        assert shown in out.getvalue()


def test_missing_metrics_are_dashes_not_errors():
    board = Board("t", quiet=True)
    row = {
        k: ROW[k]
        for k in ("time/time_elapsed", "time/total_timesteps", "time/fps", "train/n_updates")
    }
    board.show(row, {})
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(board.picture(row, {}))
    assert "-" in out.getvalue()
    assert "nan" not in out.getvalue()
