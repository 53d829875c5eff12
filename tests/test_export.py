"""The exported model against `Policy.predict`, over random observations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fdql import load, train
from fdql.commands import export as command
from fdql.config import ConfigError, ExploreConfig
from fdql.envs import describe, make_env
from fdql.export import IR_VERSION, OPSET, export
from fdql.play import Policy
from fdql.sac import policy as acting
from fdql.sac.nets import NetSpec, policy_shapes, size_of, views
from plans import small_config

onnxruntime: Any = pytest.importorskip("onnxruntime")
onnx: Any = pytest.importorskip("onnx")
pytestmark = pytest.mark.timeout(600)  # the first run of all compiles the kernels


class Slanted(gym.Env[Any, Any]):
    """A matrix is seen; the action is one, with bounds of its own for every component."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-9, 9, (3, 2), np.float32)
        low = np.array([[-1, 0, -3], [5, -1e-3, -7]], dtype=np.float32)
        high = np.array([[1, 8, -1], [6, 1e-3, 70]], dtype=np.float32)
        self.action_space = gym.spaces.Box(low, high)


def random_policy(env: str, seed: int, **net: Any) -> Policy:
    """A policy of random weights and statistics: every weight matters, unlike in a fresh one."""
    made = Slanted() if env == "Slanted" else make_env(env)
    spec = describe(env, made)
    made.close()
    rng = np.random.default_rng(seed)
    shape = NetSpec(**spec.net_inputs, **net)
    flat = rng.standard_normal(size_of(policy_shapes(shape))).astype(np.float32)
    for name, view in views(flat, policy_shapes(shape)).items():
        kind = name.partition(".")[2]
        if kind.startswith("w"):
            fan_in = view[0].size if view.ndim == 4 else view.shape[-2]
            view *= 1.4 / np.sqrt(fan_in)
        elif kind.startswith("b"):
            view *= 0.1
        elif name == "obs_scale":
            view[:] = rng.uniform(0.2, 3.0, view.shape)
        elif name == "obs_mean" and spec.image:
            view[:] = rng.integers(100, 156, view.shape)
    explorer = acting.Explorer(shape, ExploreConfig(), 1, np.zeros(1, dtype=np.bool_), 0)
    return Policy(
        env=spec, facts={"updates": 3}, discount=0.99, longest_episode=27_000,
        network=acting.Policy(shape, flat), explorer=explorer,
    )  # fmt: skip


def observations(policy: Policy, rows: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    env = policy.env
    shape = (rows, *((env.stack,) if env.stack > 1 else ()), *env.obs_shape)
    if env.image:
        # Blocks, black or white: of noise a random encoder sees next to nothing.
        blocks = 255 * rng.integers(
            0, 2, [rows, *(d // 12 + 1 if d >= 36 else d for d in shape[1:])]
        )
        for axis, d in enumerate(shape[1:], 1):
            if d >= 36:
                blocks = np.repeat(blocks, 12, axis).take(range(d), axis)
        return blocks.astype(np.uint8)
    return rng.standard_normal(shape, dtype=np.float32) * 4  # many beyond the clip at 5


@pytest.mark.parametrize(
    ("env", "rows"),
    [
        ("CartPole-v1", 2000),  # discrete
        ("CartPole-v1 tqc", 2000),  # quantiles
        ("Acrobot-v1", 2000),  # discrete, more actions
        ("Pendulum-v1", 2000),  # continuous, one component in -2..2
        ("Slanted", 2000),  # continuous, a shape, uneven bounds, a matrix observed
        ("own_envs:Picture", 100),  # grey images, stacked here
        ("own_envs:Coloured", 100),  # channels last
        ("own_envs:Stacked", 100),  # images that come stacked
    ],
)
def test_the_model_acts_as_predict_does(own_environments, tmp_path: Path, env, rows):
    name, _, head = env.partition(" ")
    net = {"critic_width": 32, "actor_width": 32, "bins": 21, "head": head or "hl_gauss"}
    rng = np.random.default_rng(2)
    for seed in range(50):  # until one does not do the same everywhere
        policy = random_policy(name, seed, **net)
        obs = observations(policy, rows, rng)
        if len(np.unique(expected := policy.predict(obs))) > 1:
            break
    file = tmp_path / "policy.onnx"
    export(policy, file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (got,) = session.run(["action"], {"observation": obs})
    assert got.shape == expected.shape
    if policy.env.discrete:
        assert len(np.unique(expected)) > 1
        differ = got != expected
        assert differ.mean() <= 0.002  # float32 sums in another order: ties only
        if differ.any():
            chosen = got[differ] - policy.env.action_start
            rows_ = obs[differ].reshape(int(differ.sum()), -1)
            q = policy.network.q_values(np.ascontiguousarray(rows_))
            assert (q.max(1) - q[np.arange(len(q)), chosen] < 1e-4).all()
    else:
        assert got.dtype == expected.dtype
        span = np.subtract(policy.env.high, policy.env.low).reshape(policy.env.action_shape)
        assert (np.abs(got - expected) < 1e-5 * span).all()
    (single,) = session.run(["action"], {"observation": obs[:1]})
    assert single.shape == (1, *expected.shape[1:])


def test_the_model_says_what_it_is(tmp_path: Path):
    export(random_policy("Pendulum-v1", 0), tmp_path / "p.onnx")
    model = onnx.load(tmp_path / "p.onnx")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    assert {p.key: p.value for p in model.metadata_props}["env"] == "Pendulum-v1"


def test_actions_stay_within_the_bounds(tmp_path: Path):
    """In units where half a rounding error below the lower bound is below it in float32 too."""
    policy = random_policy("Pendulum-v1", 3)
    low, high = np.float32(1e-3), np.float32(1e5)
    bounds = dataclasses.replace(policy.env, low=(float(low),), high=(float(high),))
    policy = dataclasses.replace(policy, env=bounds)
    views(policy.network.snapshot, policy_shapes(policy.network.spec))["actor.w2"][:] *= 30
    export(policy, tmp_path / "p.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "p.onnx", providers=["CPUExecutionProvider"])
    obs = np.random.default_rng(0).standard_normal((20_000, 3), dtype=np.float32) * 4
    (got,) = session.run(None, {"observation": obs})
    assert (got.min(), got.max()) == (low, high)
    assert 100 < (got == low).sum() < 15_000  # at and near both ends
    assert 100 < (got == high).sum() < 15_000
    # Outputs 30 times as large: so are the differences of their sums.
    assert np.abs(got - policy.predict(obs)).max() < 1e-4 * high


def test_a_file_is_not_overwritten_and_a_missing_folder_is_named(tmp_path: Path):
    policy = random_policy("Pendulum-v1", 0)
    (tmp_path / "p.onnx").write_text("mine")
    with pytest.raises(ConfigError, match="--force overwrites"):
        export(policy, tmp_path / "p.onnx")
    export(policy, tmp_path / "p.onnx", force=True)
    onnx.load(tmp_path / "p.onnx")
    with pytest.raises(ConfigError, match="no folder"):
        export(policy, tmp_path / "none" / "p.onnx")


def test_without_the_extra_the_command_names_it(tmp_path: Path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"\[onnx\]"):
        export(random_policy("Pendulum-v1", 0), tmp_path / "p.onnx")


def test_the_command_exports_a_run(tmp_path: Path, capsys):
    """With the statistics that it learned of its observations."""
    run, file = tmp_path / "run", tmp_path / "x.onnx"
    config = small_config("Pendulum-v1", serial=True, total_timesteps=400, run_dir=str(run))
    assert train(config, quiet=True).exit_code == 0
    assert command.run([str(run), "--out", str(file)]) == 0
    assert "Pendulum-v1" in capsys.readouterr().out
    policy = load(run)
    weights = views(policy.network.snapshot, policy_shapes(policy.network.spec))
    assert weights["obs_scale"].std() > 0.1  # cosine, sine and speed
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    obs = np.random.default_rng(0).uniform([-1, -1, -8], [1, 1, 8], (500, 3)).astype(np.float32)
    (got,) = session.run(None, {"observation": obs})
    np.testing.assert_allclose(got, policy.predict(obs), atol=1e-4)
