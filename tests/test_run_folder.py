"""What a run leaves and shows: files that load again, a board that fits 80 columns."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from fdql.board import ROWS, Board, Curve, clock, duration, rounded
from fdql.bottleneck import Setting, bottleneck
from fdql.budget import Account, Reading
from fdql.cli import main
from fdql.config import Config, ConfigError, SacConfig
from fdql.config_file import load_toml
from fdql.progress import Bar, Progress
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
    "engine/memory_mib": 612.3,
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
PROGRESS = Progress(
    bars=(
        Bar("warm-up updates", 99_999, 999_999),
        Bar("replay", 999_999_999, 1_000_000_000),
        Bar("evaluation", 12, 20),
        Bar("checkpoint", 1, 2),
    ),
    returns=tuple(float(i) for i in range(-150, 50)),
    seconds_left=3723.4,
)
LONGEST = "word " * 31 + "end"  # the longest sentence that bottleneck gives, within 2 characters


def test_the_config_of_a_run_loads_again(tmp_path: Path):
    config = Config(seed=7, run_dir=str(tmp_path / "r"), sac=SacConfig(discount=0.9))
    RunFolder(config).close()
    loaded = load_toml(tmp_path / "r" / "config.toml")
    assert (loaded.seed, loaded.sac.discount, loaded.run_dir) == (7, 0.9, None)


def test_numbers_that_are_none_are_left_out(tmp_path: Path):
    """NaN is no JSON."""
    folder = RunFolder(Config(run_dir=str(tmp_path / "r")))
    folder.metrics(ROW | {"train/actor_loss": float("nan"), "eval/q_bias": float("-inf")})
    folder.close()
    assert json.loads((tmp_path / "r" / "metrics.jsonl").read_text()) == ROW
    assert "nan" not in (tmp_path / "r" / "progress.csv").read_text()


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
    console.print(board.picture(ROW, ACCOUNTS, LONGEST, PROGRESS))
    lines = out.getvalue().splitlines()
    assert len(lines) <= 23  # of 24: the cursor has the last
    assert all(len(line) <= 80 for line in lines)
    assert "…" not in out.getvalue()  # nothing is cut
    for shown in (
        "475.0", "3,000", "32.00", "97%", "9 / 25", "12.3%", "end", "612 MiB", "1:02:03",
        "99.9k of 999k", "999M of 1G", "12 of 20", "checkpoint", "-150.0", "49.0",
    ):  # fmt: skip
        assert shown in out.getvalue()
    for names in ROWS.values():
        for name in names:
            (line,) = [line for line in lines if name in line.split()]
            assert "123ms 9.877s  12.3%" in line


def test_the_eight_stages_are_on_the_board():
    eight = {"step", "ring", "ingest", "sample", "update", "publish", "infer", "act"}
    assert eight <= {name for names in ROWS.values() for name in names}


def test_a_board_in_plain_lines_shows_at_its_interval():
    board = Board("t")
    board.console = Console(file=io.StringIO(), width=80)
    assert board.due
    board.show(ROW, ACCOUNTS, LONGEST, PROGRESS)
    assert not board.due
    board.show(ROW, ACCOUNTS, LONGEST, PROGRESS)
    assert len(board.console.file.getvalue().splitlines()) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "variables", "live"),
    [
        (Terminal, {"TERM": "xterm"}, True),
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {"TERM": "xterm", "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}, False),
    ],
)
def test_pictures_are_for_terminals_that_show_them(monkeypatch, out, variables, live):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shown = out()
    monkeypatch.setattr("sys.stdout", shown)
    board = Board("t")
    board.show(ROW, ACCOUNTS, LONGEST, PROGRESS)
    board.close()
    assert ("temperature" in shown.getvalue(), "\x1b" in shown.getvalue()) == (live, live)
    assert ("3,000 steps" in shown.getvalue()) is not live


def test_text_is_shown_as_it_is(monkeypatch, capsys):
    said = "my_env.py:100: ValueError :smile: [bold] [/tmp/x]"
    Board("t").note(said)
    assert capsys.readouterr().out == said + "\n"
    board = Board(":smile: [/x]", quiet=True)
    out = io.StringIO()
    picture = board.picture(ROW, ACCOUNTS, "", PROGRESS)
    Console(file=out, width=80, color_system=None).print(picture)
    assert ":smile: [/x]" in out.getvalue()


SMALL = [
    "--serial", "--total-timesteps=200", "--stop-at-return=never", "--eval.episodes=2",
    "--explore.warmup-steps=64", "--sac.critic-width=16", "--sac.batch-size=32",
]  # fmt: skip


@pytest.mark.parametrize(
    ("full", "buffered", "code"), [(False, True, 0), (True, True, 1), (True, False, 1)]
)
def test_an_output_that_takes_nothing_costs_the_output_alone(
    tmp_path, monkeypatch, capsys, full, buffered, code
):
    """Like `fdql train | head -1`, and `fdql train > FILE` on a disk that is full, with
    PYTHONUNBUFFERED too: then nothing is left that a last flush could fail to write.
    """
    if full:
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    file = os.fdopen(descriptor, "wb", buffering=-1 if buffered else 0)
    with io.TextIOWrapper(file, write_through=not buffered) as out:  # type: ignore[type-var]
        monkeypatch.setattr("sys.stdout", out)
        assert main([*SMALL, "--run-dir", str(tmp_path / "run")]) == code
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["exit_reason"], summary["env_steps"]) == ("total_timesteps", 200)
    assert list((tmp_path / "run" / "checkpoints").glob("*-updates-*"))
    said = "standard output cannot be written (No space left on device)"
    assert (said in capsys.readouterr().err) is full


def test_an_error_output_that_is_gone_ends_nothing(monkeypatch):
    with open("/dev/full", "w", buffering=1) as err:
        monkeypatch.setattr("sys.stderr", err)
        Board("t").problem("something")
        with open(os.devnull, "w") as nothing:  # so that it can be closed
            os.dup2(nothing.fileno(), err.fileno())


def test_missing_metrics_are_dashes_not_errors():
    board = Board("t", quiet=True)
    row = {
        k: ROW[k]
        for k in ("time/time_elapsed", "time/total_timesteps", "time/fps", "train/n_updates")
    }
    nothing_yet = bottleneck({}, Setting(2, 1, 8, 32.0)).sentence
    board.show(row, {}, nothing_yet, Progress())
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(
        board.picture(row, {}, nothing_yet, Progress())
    )
    assert "-" in out.getvalue()
    assert "nan" not in out.getvalue()


@pytest.mark.parametrize(
    ("us", "shown"),
    [(0.0, "0.0us"), (9.44, "9.4us"), (99.6, "100us"), (999.6, "1.0ms"), (2345.0, "2.3ms"),
     (99_960.0, "100ms"), (999_600.0, "0.9996s"), (9_876_543.2, "9.877s")],
)  # fmt: skip
def test_times_are_short(us, shown):
    assert duration(us) == shown
    assert len(shown) <= 7


def test_counts_are_short_and_never_too_large():
    shown = [rounded(n) for n in (0, 999, 1000, 1999, 99_999, 100_000, 999_999, 10**6, 10**9)]
    assert shown == ["0", "999", "1k", "1.9k", "99.9k", "100k", "999k", "1M", "1G"]


def test_times_of_day_length():
    values = (None, float("inf"), 4.25, 59.96, 65.0, 7384.0)
    assert [clock(v) for v in values] == ["-", "-", "4.2 s", "1:00", "1:05", "2:03:04"]


def curve(values: list[float], width: int, encoding: str = "utf-8") -> list[str]:
    class Screen(io.StringIO):
        pass

    Screen.encoding = encoding
    screen = Screen()
    Console(file=screen, width=width, color_system=None).print(Curve(values))
    return screen.getvalue().splitlines()


def test_the_curve_goes_from_lowest_to_highest():
    # 16 heights in two lines of 8: the lowest of 3 values has 1, the middle one 1 + 7.5 -> 9
    assert curve([0.0, 5.0, 10.0], 13) == ["     10.0  ▁█", "      0.0 ▁██"]
    assert curve([0.0, 5.0, 10.0], 40) == ["     10.0    ▁▁▁███", "      0.0 ▁▁▁██████"]
    # two of each become one
    assert curve([0.0, 0.0, 5.0, 5.0, 10.0, 10.0], 13) == ["     10.0  ▁█", "      0.0 ▁██"]
    assert curve([3.0], 11) == ["      3.0  ", "      3.0 ▁"]
    assert curve([], 20) == [" " * 10, " " * 10]
    assert curve([0.0, float("nan"), 10.0], 12, "ascii") == ["     10.0  @", "      0.0 .@"]
