"""A policy outside of training: what predict takes of an environment of images."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np
import pytest
from fdql.checkpoint import CheckpointError, save_tensors
from fdql.cli import main
from fdql.config import ConfigError, EvalConfig
from fdql.envs import describe, make_env
from fdql.play import Policy, evaluate, load, policy_from
from gymnasium.wrappers import FrameStackObservation
from plans import small_plan


class Recording:
    """Stands in for a network: keeps the rows that it was asked about and takes action 1."""

    def greedy(self, rows: np.ndarray, actions: np.ndarray) -> None:
        self.rows = rows.copy()
        actions[:] = 1


def policy_of(name: str) -> tuple[Any, Any, Recording]:
    made, network = make_env(f"own_envs:{name}"), Recording()
    spec = describe(f"own_envs:{name}", made)
    return made, Policy(spec, {}, 0.99, network, None), network  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["Picture", "Coloured"])
def test_single_images_are_given_as_gymnasium_stacks_them(own_environments, name):
    made, policy, network = policy_of(name)
    env = FrameStackObservation(made, 4)
    first = env.reset(seed=1)[0][-1]
    stacked = env.step(1)[0]
    assert policy.predict(stacked).shape == ()
    frames = network.rows.reshape(4, -1)
    assert frames.dtype == np.uint8
    for k, frame in enumerate((first, first, first, stacked[-1])):
        assert frames[k].tolist() == policy.env.to_row(frame).tolist()
    assert policy.predict(np.stack([stacked] * 3)).tolist() == [1, 1, 1]
    assert network.rows.shape == (3, 4 * policy.env.obs_dim)
    with pytest.raises(ValueError, match=r"FrameStackObservation\(env, 4\)"):
        policy.predict(stacked[-1])
    with pytest.raises(ValueError, match="image of float64; uint8 works"):
        policy.predict(stacked / 255)
    env.close()


def test_images_that_come_stacked_are_taken_as_they_are(own_environments):
    made, policy, network = policy_of("Stacked")
    obs, _ = made.reset(seed=1)
    assert policy.predict(obs).shape == ()
    assert network.rows.tolist() == [obs.ravel().tolist()]
    assert policy.predict(np.stack([obs, obs])).shape == (2,)
    with pytest.raises(ValueError, match=r"\(5, 36, 40\) or \(n, \*\(5, 36, 40\)\) works$"):
        policy.predict(obs[0])
    made.close()


def test_a_policy_never_decides_what_code_runs(own_environments, monkeypatch):
    _, policy, _ = policy_of("Picture")
    imported: list[str] = []
    monkeypatch.setattr("importlib.import_module", lambda name, *_: imported.append(name))
    for name in ("own_envs:Picture", "antigravity:Hover-v0"):  # Gymnasium imports the second
        strange = dataclasses.replace(policy, env=dataclasses.replace(policy.env, env=name))
        with pytest.raises(ConfigError, match=f"--env {name}"):
            evaluate(strange, episodes=1)
    assert imported == []


def test_a_file_takes_no_more_memory_than_its_policy(tmp_path):
    """Sizes are compared before anything is read: one declares 64 GB, and has them as a hole."""
    plan = small_plan("CartPole-v1", tmp_path)
    weights = np.zeros(plan.policy_size, dtype=np.float32)
    file = tmp_path / "p.safetensors"
    save_tensors(file, {"policy": weights}, plan.policy_facts())
    load(file)
    size = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + size])
    header["policy"] |= {"shape": [1 << 34], "data_offsets": [0, 1 << 36]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + (1 << 36))
    with pytest.raises(CheckpointError, match=r"p.safetensors: policy is F32 \(17179869184,\)"):
        load(file)
    facts = plan.policy_facts()
    facts["net"]["v_max"] = 10**400
    save_tensors(file, {"policy": weights}, facts)
    with pytest.raises(CheckpointError, match="v_max"):
        load(file)


@pytest.mark.parametrize(
    ("env", "raised"),
    [
        ("own_envs:Faulty", "RuntimeError: this environment breaks at its 300th step"),
        ("own_envs:Exits", "SystemExit: 0"),
    ],
)
def test_an_environment_that_raises_in_an_evaluation_is_named(
    own_environments, tmp_path, capsys, env, raised
):
    plan, file = small_plan("own_envs:Counting", tmp_path), tmp_path / "p.safetensors"
    save_tensors(file, {"policy": np.zeros(plan.policy_size, np.float32)}, plan.policy_facts())
    # 32 environments of 7 steps: the 43rd episode of one has its 300th step
    assert main(["eval", str(file), "--env", env, "--episodes", str(32 * 43)]) == 1
    out, err = capsys.readouterr()
    assert (out, "Traceback" in err) == ("", False)
    assert f"fdql: environment {env!r} raised {raised} (episode of an evaluation, seed " in err
    assert "step 6)" in err  # 42 episodes of 7 steps and 6
    assert "own_envs.py" in err


@pytest.mark.parametrize(
    ("env", "obs", "action", "dtype"),
    [
        ("CartPole-v1", (4,), (), np.int64),
        ("Pendulum-v1", (3,), (1,), np.float32),
    ],
)
def test_predict_takes_one_observation_or_any_number(tmp_path, env, obs, action, dtype):
    plan = small_plan(env, tmp_path)
    weights = np.random.default_rng(0).standard_normal(plan.policy_size).astype(np.float32)
    policy = policy_from(plan.policy_facts(), weights)
    one = np.linspace(-0.1, 0.1, obs[0])
    for deterministic in (True, False):
        single = policy.predict(one, deterministic)
        assert (single.shape, single.dtype) == (action, dtype)
        for n in (0, 1, 5):
            many = policy.predict(np.tile(one, (n, 1)), deterministic)
            assert (many.shape, many.dtype) == ((n, *action), dtype)
            if deterministic:
                assert (many == single).all()
    assert policy.predict(one.tolist()) == policy.predict(one)
    for wrong in (one[:-1], one[None, None], np.float32(0)):
        with pytest.raises(ValueError, match=r"works"):
            policy.predict(wrong)
    made = make_env(env)
    made.reset(seed=0)
    made.step(policy.predict(one))  # what it gives the environment takes
    made.close()


def test_episodes_are_cut_where_the_run_cut_them(tmp_path, capsys):
    """Pendulum's have 200 steps; scores over 50 are not comparable with those."""
    plan = small_plan("Pendulum-v1", tmp_path, eval=EvalConfig(episodes=2, longest_episode=50))
    weights, facts = np.zeros(plan.policy_size, dtype=np.float32), plan.policy_facts()
    file = tmp_path / "policy.safetensors"
    save_tensors(file, {"policy": weights}, facts)
    assert main(["eval", str(file), "--episodes", "2"]) == 0
    assert "mean length 50); 2 cut after 50 steps" in capsys.readouterr().out
    del facts["longest_episode"]  # a policy from before it was said
    whole = evaluate(policy_from(facts, weights), episodes=2)
    assert (whole.lengths.tolist(), whole.cut) == ([200, 200], 0)
    for wrong in (0, True, "50", 1e3):
        with pytest.raises(ValueError, match="its longest episode is"):
            policy_from(facts | {"longest_episode": wrong}, weights)


def test_episodes_have_the_random_actions_of_the_runs_evaluations(tmp_path, capsys):
    plan = small_plan("CartPole-v1", tmp_path, eval=EvalConfig(epsilon=0.5))
    weights, facts = np.zeros(plan.policy_size, dtype=np.float32), plan.policy_facts()
    before = evaluate(policy_from({k: v for k, v in facts.items() if k != "epsilon"}, weights))
    none = evaluate(policy_from(facts | {"epsilon": 0.0}, weights))
    half = evaluate(policy_from(facts, weights))
    assert before.returns.tolist() == none.returns.tolist()
    assert max(none.returns) < 12  # always the same push
    assert max(half.returns) > 15
    assert evaluate(policy_from(facts, weights)).returns.tolist() == half.returns.tolist()
    file = tmp_path / "policy.safetensors"
    save_tensors(file, {"policy": weights}, facts)
    assert main(["eval", str(file)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{half.mean:.1f} +- ")
    assert said.endswith("; 0.5 of the actions random\n")
    assert main(["eval", str(file), "--epsilon", "0"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{none.mean:.1f} +- ")
    assert "random" not in said
    assert main(["eval", str(file), "--epsilon", "2"]) == 2
    assert "epsilon = 2.0: must be in [0, 1]; 0.01 works" in capsys.readouterr().err
    for wrong in (2.0, float("nan"), "x"):
        with pytest.raises(ConfigError, match="epsilon = "):
            evaluate(dataclasses.replace(policy_from(facts, weights), epsilon=wrong))
    for wrong in (1, "0.1", -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="its epsilon is"):
            policy_from(facts | {"epsilon": wrong}, weights)


def test_actions_that_no_int32_holds_are_refused(tmp_path):
    plan = small_plan("CartPole-v1", tmp_path)
    weights, facts = np.zeros(plan.policy_size, dtype=np.float32), plan.policy_facts()
    for start in (10**400, 2**31 - 2, -(2**31)):
        with pytest.raises(ValueError, match="actions of shape"):
            policy_from(facts | {"env": facts["env"] | {"action_start": start}}, weights)
