"""Serial mode: bit-equal for a seed, and it learns; the same threshold a broken learner does not
reach.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fdql import evaluate, load
from fdql.checkpoint import load_tensors
from fdql.config import Config, ConfigError, EngineConfig, EvalConfig, SacConfig
from fdql.leaderboard import read
from fdql.supervisor import train
from plans import small_config


def run(folder: Path, config: Config) -> dict[str, Any]:
    return train(replace(config, serial=True, run_dir=str(folder)), quiet=True).summary


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Every metric that is not a time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time/time_elapsed", "time/fps", "train/updates_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def weights(folder: Path) -> dict[str, bytes]:
    (checkpoint,) = (folder / "checkpoints").glob("*-updates-*")
    arrays, _ = load_tensors(checkpoint / "learner.safetensors")
    return {k: np.ascontiguousarray(v).tobytes() for k, v in arrays.items()}


@pytest.mark.parametrize("learner", ["compiled", "torch"])
@pytest.mark.parametrize("env", ["own_envs:Counting", "Pendulum-v1"])
def test_one_seed_one_result(own_environments, tmp_path, env, learner):
    config = small_config(env, total_timesteps=2000, learner=learner)
    for name in ("a", "b"):
        run(tmp_path / name, config)
    run(tmp_path / "c", small_config(env, total_timesteps=2000, learner=learner, seed=1))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


def test_slow_steps_change_nothing(tmp_path):
    """Chunks that would be old after a microsecond: the statistics are merged pass by pass."""
    for name, age in (("quick", 10_000.0), ("slow", 0.001)):
        engine = EngineConfig(commit_ms=age)
        run(tmp_path / name, small_config("Pendulum-v1", total_timesteps=1000, engine=engine))
    assert metrics(tmp_path / "quick") == metrics(tmp_path / "slow")
    assert weights(tmp_path / "quick") == weights(tmp_path / "slow")


def test_an_environment_that_cannot_be_closed_costs_nothing(own_environments, tmp_path):
    s = run(tmp_path / "r", small_config("own_envs:Bandit", total_timesteps=200))
    assert s["exit_reason"] == "total_timesteps"
    assert weights(tmp_path / "r")
    assert (tmp_path / "r" / "policy.safetensors").is_file()


def test_counts_are_exact(own_environments, tmp_path):
    s = run(tmp_path / "r", small_config("own_envs:Counting", total_timesteps=2000))
    assert (s["env_steps"], s["steps_in_flight"], s["exit_reason"]) == (2000, 0, "total_timesteps")
    # 32 samples per insert, batches of 32: one update per environment step
    assert s["updates"] == 2000
    assert s["samples_per_insert_actual"] == 32.0
    assert s["limited_by"] == "lockstep"
    # the processes' parts share one process' time
    assert 0.3 < sum(account["busy"] for account in s["processes"].values()) <= 1.0


def test_a_run_too_short_for_one_window_ends(own_environments, tmp_path):
    """One step in each environment: no row has the successors that an n-step sample needs."""
    s = run(tmp_path / "r", small_config("own_envs:Counting", total_timesteps=4))
    assert (s["env_steps"], s["updates"], s["exit_reason"]) == (4, 0, "total_timesteps")


def test_a_total_that_is_not_a_whole_round_is_kept(own_environments, tmp_path):
    """8 environments in 2 groups, 204 steps: 25 rounds and half of one."""
    s = run(tmp_path / "r", small_config("own_envs:Counting", total_timesteps=204))
    assert (s["env_steps"], s["exit_reason"]) == (204, "total_timesteps")


def test_cartpole_is_learned(tmp_path):
    """Random: 22; a learner whose gradients are zero stays below 130; this asks for 400 within
    12,000 steps.
    """
    config = Config(env="CartPole-v1", stop_at_return=400.0, total_timesteps=12_000)
    s = run(tmp_path / "r", config)
    assert s["exit_reason"] == "solved"
    assert evaluate(load(tmp_path / "r"), episodes=10, seed=123).mean > 300


def test_pendulum_is_learned(tmp_path):
    """Random: -1208, standing still at the bottom about -1000; this asks for -300 within 15,000
    steps.
    """
    config = Config(env="Pendulum-v1", stop_at_return=-300.0, total_timesteps=15_000)
    s = run(tmp_path / "r", config)
    assert s["exit_reason"] == "solved"
    assert evaluate(load(tmp_path / "r"), episodes=20, seed=123).mean > -400


@pytest.mark.parametrize(("env", "low", "high"), [("Clock", 9.0, 10.5), ("Doom", 4.5, 6.5)])
def test_a_time_limit_is_not_an_end(own_environments, tmp_path, env, low, high):
    """Reward 1 a step, discount 0.9: worth 1 / (1 - 0.9) = 10 where a time limit cuts the episode,
    1 / (1 - 0.9 * 0.9) = 5.3 where one step in ten ends it.
    """
    sac = SacConfig(discount=0.9, critic_width=16, batch_size=32, learning_rate=0.01)
    config = small_config(f"own_envs:{env}", total_timesteps=2000, sac=sac)
    run(tmp_path / "r", config)
    network = load(tmp_path / "r", "last").network
    q = network.q_values(np.zeros((1, 1), np.float32)) * network.reward_scale
    assert low < q.mean() < high


@pytest.mark.parametrize(("env", "scale"), [("OddPendulum", 1e6), ("FaintPendulum", 1e-6)])
def test_numbers_of_any_size_are_learned(own_environments, tmp_path, env, scale):
    """Observations, actions and rewards between 1e-6 and 1e6 of the usual, nothing told."""
    line = -300.0 * scale
    config = Config(env=f"own_envs:{env}", stop_at_return=line, total_timesteps=15_000)
    assert run(tmp_path / "r", config)["exit_reason"] == "solved"


def test_a_learner_that_does_not_learn_fails_the_same_tests(tmp_path):
    frozen = SacConfig(learning_rate=1e-12, weight_decay=0.0)
    for env, line in (("CartPole-v1", 400.0), ("Pendulum-v1", -300.0)):
        config = Config(env=env, stop_at_return=line, total_timesteps=4_000, sac=frozen)
        s = run(tmp_path / env, config)
        assert s["exit_reason"] == "total_timesteps"
        assert s["eval_return_mean"] < line


def test_a_run_that_no_longer_improves_ends(own_environments, tmp_path):
    """Every episode of Counting returns 28: the first evaluation is the best, two more are not."""
    evaluated = EvalConfig(episodes=4, every_steps=100)
    config = small_config("own_envs:Counting", stop_without_improvement=2, eval=evaluated)
    s = run(tmp_path / "r", config)
    assert (s["exit_reason"], s["problem"]) == ("no_improvement", None)
    assert s["eval_return_interval"] == (28.0, 28.0)
    found = [r for r in metrics(tmp_path / "r") if "eval/updates" in r]
    assert [(r["eval/mean_reward"], r["eval/mean_ep_length"]) for r in found] == [(28.0, 7.0)] * 3
    (best, second, third) = read(tmp_path / "r" / "best")
    assert best.updates < second.updates < third.updates
    again = load(tmp_path / "r", 3)
    assert (again.facts["updates"], again.discount) == (third.updates, 0.99)
    assert evaluate(again, "own_envs:Counting", episodes=2).mean == 28.0


def test_an_environment_that_raises_ends_the_run_with_its_words(own_environments, tmp_path):
    config = small_config("own_envs:Faulty", serial=True, run_dir=str(tmp_path / "r"))
    result = train(config, quiet=True)
    assert (result.exit_reason, result.exit_code) == ("crash", 1)
    assert "breaks at its 300th step" in result.problem


def test_a_file_does_not_decide_what_code_runs(own_environments, tmp_path):
    run(tmp_path / "r", small_config("own_envs:Steering", total_timesteps=200))
    with pytest.raises(ConfigError, match="--env own_envs:Steering"):
        evaluate(load(tmp_path / "r"))
    assert len(evaluate(load(tmp_path / "r"), "own_envs:Steering", episodes=3).returns) == 3


def test_a_policy_acts_like_the_one_that_was_evaluated(own_environments, tmp_path):
    run(tmp_path / "r", small_config("own_envs:Steering", total_timesteps=1500))
    policy = load(tmp_path / "r")
    one = policy.predict(np.array([0.3], np.float32))
    many = policy.predict(np.array([[0.3], [-0.5]], np.float32))
    assert one.shape == (1,)
    assert many.shape == (2, 1)
    assert one == pytest.approx(many[0], abs=1e-6)
    assert -3.0 <= one[0] <= 1.0
    assert policy.predict(np.array([0.3], np.float32), deterministic=False).shape == (1,)
    same = policy.predict(np.full((200, 1), 0.3, np.float32), deterministic=False)[:, 0]
    assert len(np.unique(same)) > 190  # each a draw of its own
    with pytest.raises(ValueError, match="shape"):
        policy.predict(np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        policy.predict(np.array([np.nan]))
