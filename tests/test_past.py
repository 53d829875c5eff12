"""The metrics of a run that goes on: what is kept of them, and what the report takes from them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from fdql.board import Board
from fdql.config import Config, ConfigError
from fdql.past import Past
from fdql.proc.memory import RunMemory
from fdql.report import Report
from fdql.run_folder import RunFolder
from fdql.trackers import Trackers
from plans import small_plan


def row(steps: int, **more: Any) -> dict[str, Any]:
    return {"time/total_timesteps": steps, "time/time_elapsed": steps / 10} | more


def evaluated(steps: int, mean: float) -> dict[str, Any]:
    values = {"mean_reward": mean, "std_reward": 1.0, "mean_ep_length": 9.0, "q_bias": 0.5}
    values |= {"updates": steps - 1, "env_steps": steps, "episodes": 4}
    return row(steps, **{f"eval/{k}": v for k, v in values.items()})


def going_on(folder: Path, lines: list[bytes], steps: int = 100) -> RunFolder:
    folder.mkdir()
    (folder / "metrics.jsonl").write_bytes(b"".join(lines))
    (folder / "config.toml").write_text("seed = 3\n")
    (folder / "summary.json").write_text("{}")
    config = Config(run_dir=str(folder), seed=4)
    return RunFolder(config, lambda _, row: int(row["time/total_timesteps"]) <= steps)


def line(values: dict[str, Any]) -> bytes:
    return (json.dumps(values) + "\n").encode()


def test_one_bad_line_costs_one_row(tmp_path, capsys):
    good = [line(row(n)) for n in (1, 2, 3, 4)]
    good[1] = line(row(2, **{"rollout/ep_rew_mean": "\ud800"}))  # no text, but JSON
    bad = [b'{"time/total_timesteps": 2, "\xff": 1}\n', b"\n", b"[1]\n", b"\0\0\n"]
    late = [line(row(101)), line(row(5))]
    folder = going_on(tmp_path / "r", [good[0], *bad, *good[1:], *late, b'{"time'])
    assert (tmp_path / "r" / "summary.json").exists()  # nothing has changed yet
    folder.begin()
    folder.metrics(row(6))
    folder.close()
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == b"".join([*good, line(row(6))])
    with (tmp_path / "r" / "progress.csv").open(newline="") as file:
        steps = [r["time/total_timesteps"] for r in csv.DictReader(file)]
    assert steps == ["1", "2", "3", "4", "6"]
    assert (folder.rows, folder.past.unreadable, folder.past.elapsed) == (5, 4, 0.4)
    assert "4 line(s) of metrics.jsonl were no rows" in capsys.readouterr().err
    assert "seed = 4" in (tmp_path / "r" / "config.toml").read_text()
    names = {"log.txt", "config.toml", "metrics.jsonl", "progress.csv"}
    assert {p.name for p in (tmp_path / "r").iterdir()} == names


def test_a_row_that_a_kill_cut_short_is_no_fault(tmp_path, capsys):
    folder = going_on(tmp_path / "r", [line(row(1)), line(row(2)).rstrip(), b""])
    folder.begin()
    folder.close()
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == line(row(1)) + line(row(2))
    cut = going_on(tmp_path / "s", [line(row(1)), line(row(2))[:9]])
    cut.begin()
    cut.close()
    assert (tmp_path / "s" / "metrics.jsonl").read_bytes() == line(row(1))
    assert capsys.readouterr().err == ""


def test_metrics_that_cannot_be_read_are_not_given_up(tmp_path):
    folder = going_on(tmp_path / "r", [])
    (tmp_path / "r" / "metrics.jsonl").unlink()
    (tmp_path / "r" / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: cannot be read"):
        folder.begin()
    folder.give_up()
    assert (tmp_path / "r" / "config.toml").read_text() == "seed = 3\n"
    names = {"log.txt", "config.toml", "metrics.jsonl", "summary.json"}
    assert {p.name for p in (tmp_path / "r").iterdir()} == names


def test_a_tracker_that_cannot_begin_leaves_a_run_as_it_was(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise ConfigError("wandb = True: no run could be begun")

    monkeypatch.setattr(Trackers, "open", refused)
    with pytest.raises(ConfigError, match="no run could be begun"):
        going_on(tmp_path / "r", [line(row(1)), line(row(200))])
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == line(row(1)) + line(row(200))
    assert (tmp_path / "r" / "config.toml").read_text() == "seed = 3\n"
    assert (tmp_path / "r" / "summary.json").exists()


def test_the_report_goes_on_where_it_was(tmp_path):
    rows = [row(1, **{"engine/restarts": 2}), evaluated(20, 5.0), evaluated(30, 7.0)]
    rows += [evaluated(40, 7.0), evaluated(50, 6.0), {"time/total_timesteps": 60}]
    folder = going_on(tmp_path / "r", [line(r) for r in rows])
    folder.begin()
    plan = small_plan("CartPole-v1", tmp_path / "r", stop_at_return=6.5, stop_without_improvement=3)
    memory = RunMemory.create(plan, shared=False)
    report = Report(plan, memory, folder, Board("t", quiet=True))
    assert (report.unimproved, report.restarts) == (2, 2)
    assert report.meter.returns == [5.0, 7.0, 7.0, 6.0]
    assert report.evaluation["mean"] == 6.0
    assert report.row()["eval/mean_reward"] == 6.0
    assert report.elapsed() >= 5.0
    first = {"seconds": 3.0, "env_steps": 30, "updates": 29, "return": 7.0}
    assert report.first_time_at_stop_return == first
    # As good as the best is no better, whatever the leaderboard holds from behind the checkpoint.
    for mean, unimproved in ((7.0, 3), (7.5, 0), (float("nan"), 1)):
        values = {"mean": mean, "std": 1.0, "interval": None, "episodes": 4, "length": 9.0}
        values |= {"q_bias": None, "updates": 70, "env_steps": 80, "seconds": 0.1}
        report.event({"event": "evaluation"} | values)
        assert report.unimproved == unimproved
    folder.close()
    memory.close()


def test_nothing_was_reached_where_no_evaluation_was():
    past = Past()
    past.take(evaluated(10, 5.0))
    assert past.first_at(None) is past.first_at(5.1) is None
    with pytest.raises(KeyError):
        past.take(row(20, **{"eval/updates": 3}))
    assert (past.rows, past.elapsed, past.returns) == (1, 1.0, [5.0])
