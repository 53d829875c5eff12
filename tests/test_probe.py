"""What becomes of work in a process apart, and what a probe says of environments. How it refuses
them is in wrong_use_cases.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time

import psutil
import pytest
from fdql.apart import Lines, run_apart
from fdql.children import Child
from fdql.config import Config, ConfigError, EngineConfig
from fdql.probe import look_at, probe


def patience(said: list) -> float:
    return 0.2


@pytest.mark.parametrize(
    ("work", "ending"),
    [
        (lambda say: say(1), ""),
        (lambda say: (breakpoint(), say(1)), ""),
        (lambda say: (say(1), os.abort()), "was killed by SIGABRT"),
        (lambda say: (say(1), os._exit(3)), "ended its process with exit code 3"),
        (lambda say: (say(1), os.kill(os.getpid(), 35)), "was killed by signal 35"),
        (lambda say: (say(1), time.sleep(60)), "did not return within 0.2 s"),
        (lambda say: (say(1), os.kill(os.getpid(), signal.SIGSTOP)), "did not return within 0.2 s"),
        (
            lambda say: (say(1), os.closerange(0, 256), say(2)),
            "closed the descriptors of its process",
        ),
    ],
)  # fmt: skip
def test_how_work_apart_ends(work, ending):
    outcome = run_apart(work, patience)
    assert (outcome.said, outcome.ending) == ([1], ending)


def test_megabytes_and_unfinished_lines_are_heard_within_bounds():
    def prints(say):
        os.write(1, b"first\n")
        for _ in range(300):
            os.write(1, b"x" * 65536)
        os.write(1, b"\nlast")

    outcome = run_apart(prints, lambda said: 30.0)
    assert outcome.output[0] == "first"
    assert outcome.output[-1] == "last"
    assert sum(len(line) for line in outcome.output) < 2000


def test_long_reports_are_heard_whole_and_others_passed_over():
    def reports(say):
        say("x" * 100_000)
        say([0.1] * 65_536)

    assert run_apart(reports, lambda said: 30.0).said == ["x" * 100_000, [0.1] * 65_536]
    read, write = os.pipe()
    os.write(write, b'{"event": "note", "message": "cut sho\n[1]\n{}\n' + b"[" * 9000 + b"\n")
    os.write(write, b'{"event": "warning"}\n')
    os.close(write)
    child = Child.__new__(Child)
    child.events = Lines(read)
    assert child.read_events() == [{"event": "warning"}]
    os.close(read)


def test_nothing_is_left_of_what_it_started(tmp_path):
    def starts(say):
        say(subprocess.Popen(["sleep", "3600"]).pid)

    (pid,) = run_apart(starts, lambda said: 30.0).said
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_work_that_takes_long_is_told_of_once():
    told = []
    run_apart(lambda say: (say(7), time.sleep(0.3)), lambda said: 9.0, told.append, 0.1)
    assert told == [[7]]


def test_a_parent_that_ignores_its_children_still_hears_of_them():
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert run_apart(lambda say: os._exit(4), patience).ending.endswith("exit code 4")
    finally:
        signal.signal(signal.SIGCHLD, old)


def test_the_cost_of_a_step_and_the_spaces(own_environments, capfd):
    spec, step_us = probe(Config(env="own_envs:Slow"))
    assert 2000 <= step_us < 1e6
    assert (spec.obs_dim, spec.action_dim, spec.discrete) == (2, 3, True)
    assert capfd.readouterr() == ("", "")


def test_without_a_setting_for_its_patience_none_is_recommended(own_environments):
    with pytest.raises(ConfigError, match=r"not return within 0.2 s while it was made; it must"):
        look_at("hostile_envs:HangsWhenMade", 0, 0.2)


def test_closing_for_ever_is_no_reason_not_to_train(own_environments, monkeypatch):
    monkeypatch.setattr("fdql.probe.CLOSE_SECONDS", 0.1)
    engine = EngineConfig(start_timeout=60.0)
    assert probe(Config(env="hostile_envs:NeverCloses", engine=engine))[1] > 0
