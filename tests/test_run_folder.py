"""What a run leaves and shows: files that load again, a board that fits 80 columns."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from fdql.board import ROWS, Board
from fdql.bottleneck import Setting, bottleneck
from fdql.budget import Account, Reading
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
READING = Reading(count=9_999_999, per_second=12_345.6, share=0.123, p50=123456.7, p99=9876543.2,
                  p999=1e9)  # fmt: skip
ACCOUNTS = {
    role: Account(
        busy=0.5,
        waiting=0.4,
        core=0.4,
        queued=0.1,
        stages={n: READING for n in names if not n.startswith("wait.")},
        waits={n: READING for n in names if n.startswith("wait.")},
        latencies={},
        numbers={},
    )
    for role, names in ROWS.items()
}
LONGEST = "word " * 31 + "end"  # the longest sentence that bottleneck gives, within 2 characters


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
    console.print(board.picture(ROW, ACCOUNTS, LONGEST))
    lines = out.getvalue().splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    for shown in ("475.0", "3,000", "32.00", "97%", "9 / 25", "12.3%", "end"):
        assert shown in out.getvalue()
    for names in ROWS.values():
        for name in names:
            (line,) = [line for line in lines if name in line.split()]
            assert "123,456.7" in line  # nothing is cut
            assert "9,876,543.2" in line
            assert "12,346" in line


def test_the_eight_stages_are_on_the_board():
    eight = {"step", "ring", "ingest", "sample", "update", "publish", "infer", "act"}
    assert eight <= {name for names in ROWS.values() for name in names}


def test_a_board_in_plain_lines_shows_at_its_interval():
    board = Board("t")
    board.console = Console(file=io.StringIO(), width=80)
    assert board.due
    board.show(ROW, ACCOUNTS, LONGEST)
    assert not board.due
    board.show(ROW, ACCOUNTS, LONGEST)
    assert len(board.console.file.getvalue().splitlines()) == 1


def test_missing_metrics_are_dashes_not_errors():
    board = Board("t", quiet=True)
    row = {
        k: ROW[k]
        for k in ("time/time_elapsed", "time/total_timesteps", "time/fps", "train/n_updates")
    }
    nothing_yet = bottleneck({}, Setting(2, 1, 8, 32.0)).sentence
    board.show(row, {}, nothing_yet)
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(board.picture(row, {}, nothing_yet))
    assert "-" in out.getvalue()
    assert "nan" not in out.getvalue()
