"""fdql autotune: what counts as a win, what is tried, a whole search on a small environment."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from fdql.autotune import autotune, given
from fdql.budget import Account
from fdql.cli import main
from fdql.config import Config, ConfigError, EngineConfig, SacConfig
from fdql.config_file import load_toml
from fdql.machine import resolve
from fdql.search import Search, Setting, changed, moves, open_keys, wins
from fdql.trial import Measurement
from plans import small_config


@pytest.mark.parametrize(
    ("challenger", "holder", "won"),
    [
        ([110, 112], [100, 102], True),  # 9.9 % more, and two runs differ by 2 %
        ([104, 105], [100, 101], False),  # 4 % more is not worth a setting
        ([105, 140], [100, 101], False),  # 22 % more, but its own runs differ by 35 / 140 = 25 %
        ([105, 140], [80, 82], True),  # 51 % more is above that
        ([110, 112], [80, 111], False),  # the holder was faster once
        ([200], [100, 100], False),  # once is not enough
        ([200, 200], [100], False),
    ],
)
def test_what_counts_as_a_win(challenger, holder, won):
    assert wins(challenger, holder) is won


def measurement(rate: float, duty: float) -> Measurement:
    trainer = Account(
        busy=duty, waiting=1 - duty, core=duty, queued=0, stages={}, waits={}, latencies={},
        numbers={},
    )  # fmt: skip
    return Measurement(
        seconds=1.0, updates=int(rate), env_steps=int(8 * rate), accounts={"trainer": trainer},
        supervisor_s=0.0, sentence="", ready_s=1.0,
    )  # fmt: skip


def searched(
    rate: Callable[[Config, int], float], duty: float, base: Config | None = None
) -> tuple[Setting, list[str]]:
    """Search on a made-up machine: rate(config, number of the trial) is what a trial measures."""
    base, lines, count = base or Config(), list[str](), itertools.count()

    def trial(config: Config) -> Measurement:
        return measurement(rate(config, next(count)), duty)

    search = Search(
        resolve(base, cores=2), open_keys(base), 60.0, trial, lines.append, lambda _: 256
    )
    search.defaults()
    search.climb(cores=2)
    return search.judge(), lines


def test_a_better_setting_is_found_and_followed():
    # 2, 3 and 4 workers are each 20 % faster than one fewer, a fifth one is not
    def rate(config: Config, _: int) -> float:
        return 500 * 1.2 ** (min(config.workers or 1, 4) - 1)

    assert searched(rate, duty=0.5)[0] == (("workers", 4),)


def test_two_changes_add_up():
    def rate(config: Config, _: int) -> float:
        alone = config.engine.learner_threads == 1
        return 500 * (1.3 if alone else 1.0) * (1.1 if config.envs_per_worker == 16 else 1.0)

    won = searched(rate, duty=0.95)[0]
    assert won == (("engine.learner_threads", 1), ("envs_per_worker", 16))


def test_changes_that_win_only_together_are_found():
    def rate(config: Config, _: int) -> float:
        second = (config.workers == 2) + (config.engine.learner_threads == 1)
        return [500, 400, 600][second]

    won = searched(rate, duty=0.5)[0]
    assert won == (("engine.learner_threads", 1), ("workers", 2))


def test_noise_and_drift_change_nothing():
    # every trial is faster than the one before; every third is 8 % slower
    def rate(_: Config, n: int) -> float:
        return 500 * 1.02**n * (0.92 if n % 3 == 0 else 1.0)

    assert searched(rate, duty=0.5)[0] == ()


def test_a_win_that_does_not_last_is_taken_back():
    # two workers win at first; when judged against the defaults in the end they are as fast
    def rate(config: Config, n: int) -> float:
        return 600 if config.workers == 2 and n < 6 else 500

    won, lines = searched(rate, duty=0.5)
    assert won == ()
    assert sum(line.startswith("workers = 2:") for line in lines) >= 3


def test_a_setting_that_fails_is_told_and_passed_over():
    def rate(config: Config, _: int) -> float:
        if config.workers == 2:
            raise RuntimeError("no memory for two")
        return 700 if config.envs_per_worker == 16 else 500

    won, lines = searched(rate, duty=0.5)
    assert won == (("envs_per_worker", 16),)
    assert "workers = 2: no memory for two" in lines


def test_a_given_setting_is_kept():
    base = Config(workers=3, engine=EngineConfig(groups=4))
    assert not {"workers", "engine.groups"} & set(open_keys(base))

    def rate(config: Config, _: int) -> float:
        assert (config.workers, config.engine.groups) == (3, 4)
        return 500

    assert searched(rate, duty=0.5, base=base)[0] == ()


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_every_move_is_a_valid_configuration(cores):
    config = resolve(Config(), cores=cores)
    for key in open_keys(Config()):
        for value in moves(config, key, cores, 256):
            if key != "engine.groups" or config.envs_per_worker % value == 0:
                assert changed(config, ((key, value),)) != config


def test_a_flag_that_says_the_default_is_kept_too(monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr("fdql.autotune.autotune", lambda config, keep, **_: kept.extend(keep))
    assert main(["autotune", "--engine.groups", "2", "--engine.learner_threads=1", "--seed=3"]) == 0
    assert kept == ["engine.groups", "engine.learner_threads"]
    assert not set(kept) & set(open_keys(Config(), kept))
    assert len(open_keys(Config(), kept)) == len(open_keys(Config())) - 2


def test_chunks_of_images_hold_fewer_rows():
    config = resolve(Config(), cores=2)
    assert moves(config, "engine.commit_rows", 2, 256) == [32, 128]
    assert moves(config, "engine.commit_rows", 2, 64) == [32]
    assert moves(config, "engine.commit_rows", 2, 40) == [20]


def test_the_file_holds_what_was_given_and_what_won(tmp_path):
    config = Config(env="Pendulum-v1", sac=SacConfig(discount=0.9), run_dir="x")
    values = given(changed(config, (("engine.groups", 1), ("workers", 2))))
    assert values == {
        "env": "Pendulum-v1", "workers": 2, "sac": {"discount": 0.9}, "engine": {"groups": 1},
    }  # fmt: skip


def test_what_an_error_says_is_no_markup(own_environments, tmp_path, capsys, monkeypatch):
    config, trials = small_config("own_envs:Counting"), itertools.count()

    def only_the_defaults(*_: Any, **__: Any) -> Measurement:
        if next(trials) > 1:
            raise RuntimeError("no room in [/tmp/x], says [own_envs.py] :smile:")
        return measurement(500, 0.5)

    monkeypatch.setattr("fdql.autotune.timed_run", only_the_defaults)
    monkeypatch.setattr("fdql.autotune.parts", lambda *_: "its parts")
    assert autotune(config, seconds=10.0, out=tmp_path / "x.toml", force=False) == ()
    said = capsys.readouterr().out
    assert "envs_per_worker = 16: no room in [/tmp/x], says [own_envs.py] :smile:" in said


def test_one_whole_search(own_environments, tmp_path, capsys):
    config = small_config("own_envs:Counting")
    out = tmp_path / "tuned.toml"
    chosen = autotune(config, seconds=10.0, out=out, force=False)
    said = capsys.readouterr().out
    for word in ("environment step", "waking a process", "update", "forward of", "defaults"):
        assert word in said
    assert f"fdql train --config {out} --env own_envs:Counting  uses it" in said
    assert load_toml(out) == changed(config, chosen)
    assert out.read_text().startswith("# fdql")
    assert list(tmp_path.iterdir()) == [out]


def test_wrong_use_is_refused_before_anything_runs(tmp_path):
    kept = tmp_path / "mine.toml"
    kept.write_text("precious")
    for config, seconds, out, says in (
        (Config(), 60.0, kept, "mine-2.toml"),
        (Config(), 60.0, tmp_path / "no" / "x.toml", "not a folder to write into"),
        (Config(), 60.0, tmp_path, "is a folder"),
        (Config(), 3.0, tmp_path / "x.toml", "seconds = 3"),
        (Config(serial=True), 60.0, tmp_path / "x.toml", "serial = True"),
        (Config(ratio="free"), 60.0, tmp_path / "x.toml", "ratio = 'free'"),
        (Config(env="CartPol-v1"), 60.0, tmp_path / "x.toml", "did you mean CartPole-v1"),
    ):
        with pytest.raises(ConfigError, match=says):
            autotune(config, seconds=seconds, out=out, force=False)
    assert kept.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [kept]


def test_an_environment_that_breaks_is_named(own_environments, tmp_path):
    with pytest.raises(ConfigError, match="no reset today"):
        autotune(
            small_config("own_envs:BreaksAtReset"), seconds=10.0, out=tmp_path / "x", force=False
        )
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    trials = tmp_path / "trials"
    trials.mkdir()
    monkeypatch.setenv("TMPDIR", str(trials))
    process = subprocess.Popen(
        [sys.executable, "-m", "fdql.cli", "autotune", "--env", "CartPole-v1"], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=dict(os.environ) | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(trials.glob("fdql-trial-*/run/log.txt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (130, False), said
    assert "interrupted" in said
    assert list(tmp_path.iterdir()) == [trials]
    assert list(trials.iterdir()) == []
