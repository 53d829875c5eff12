"""The cost of an environment's step, of well and badly behaved ones."""

from __future__ import annotations

import math
import os
import subprocess
import time

import gymnasium as gym
import numpy as np
import psutil
import pytest
from fdql.step_cost import step_cost_us


class Behaves(gym.Env):
    """Does at reset or at its third step what its name says."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, how: str = "well") -> None:
        self.how, self.steps = how, 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 3:
            if self.how == "hangs":
                time.sleep(3600)
            if self.how == "exits":
                os._exit(7)
            if self.how == "raises":
                raise RuntimeError("no third step")
        time.sleep(0.002)
        return np.zeros(2, np.float32), 0.0, False, False, {}


def test_the_cost_of_a_step_is_measured():
    env = Behaves()
    assert 2000 <= step_cost_us(env, 0) < math.inf
    assert env.steps == 0  # in a process of its own: ours is untouched


def test_nothing_is_left_of_what_a_reset_started(tmp_path):
    class Starts(Behaves):
        def reset(self, *, seed=None, options=None):
            helper = subprocess.Popen(["sleep", "3600"])
            (tmp_path / "pid").write_text(str(helper.pid))
            return super().reset(seed=seed)

    assert step_cost_us(Starts(), 0) > 0
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("how", "cost"), [("hangs", math.inf), ("exits", 0.0), ("raises", 0.0)])
def test_an_environment_that_fails_has_no_cost(how, cost, capfd):
    assert step_cost_us(Behaves(how), 0) == cost
    assert capfd.readouterr() == ("", "")
