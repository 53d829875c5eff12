"""The configuration: checked values, strict files, derivation from the machine."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
from fdql.config import Config, ConfigError, EngineConfig, EvalConfig, ReplayConfig, SacConfig
from fdql.config_file import from_dict, load_toml, to_dict
from fdql.machine import allowed_cores, resolve
from fdql.settings import settings, to_toml
from hypothesis import given
from hypothesis import strategies as st
from plans import small_plan


@given(
    seed=st.integers(0, 2**63 - 1),
    ratio=st.one_of(st.just("free"), st.floats(0.01, 4096)),
    stop=st.one_of(st.sampled_from(["auto", "never"]), st.floats(-1e6, 1e6)),
    tau=st.floats(1e-6, 1.0),
    capacity=st.one_of(st.none(), st.integers(1024, 10**7)),
)
def test_toml_round_trip(seed, ratio, stop, tau, capacity):
    config = Config(
        seed=seed, ratio=ratio, stop_at_return=stop,
        sac=SacConfig(target_rate=tau), replay=ReplayConfig(capacity=capacity),
    )  # fmt: skip
    import tomllib

    assert from_dict(tomllib.loads(tomli_w.dumps(to_dict(config)))) == config


@given(
    seed=st.integers(0, 2**63 - 1),
    env=st.text(min_size=1).filter(str.strip),
    workers=st.one_of(st.none(), st.integers(1, 64)),
    ratio=st.one_of(st.just("free"), st.none(), st.floats(0.01, 4096)),
    tau=st.floats(1e-6, 1.0),
)
def test_the_printed_config_is_read_back_as_it_was(seed, env, workers, ratio, tau):
    import tomllib

    config = Config(
        seed=seed, env=env, workers=workers, ratio=ratio, sac=SacConfig(target_rate=tau)
    )
    assert from_dict(tomllib.loads(to_toml(config))) == config


def test_the_printed_config_tells_of_every_key_what_it_is():
    text = to_toml(Config(seed=7))
    for setting in settings():
        name = setting.key.rpartition(".")[2]
        assert f"\n{name} = " in text or f"\n# {name} =\n" in text
        assert setting.text
        assert setting.unit
        assert setting.source
    assert "seed = 7\n" in text
    assert "# Discount per environment step, gamma.\n# number; unit: per environment step" in text


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"sac": {"discout": 0.9}}, "did you mean sac.discount"),
        ({"sac": 3}, "must be a table"),
        ({"seed": "zero"}, "must be int"),
        ({"seed": True}, "must be int"),
        ({"ratio": "fast"}, "ratio = 'fast'"),
        ({"serial": 1}, "must be bool"),
        ({"sac": {"discount": 1.0}}, "must be in [0, 1)"),
        ({"env": ""}, "must name an environment"),
    ],
)
def test_a_wrong_file_is_refused(values, says):
    with pytest.raises(ConfigError, match=says.replace("[", r"\[").replace(")", r"\)")):
        from_dict(values)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SacConfig(discount=-0.1), "sac.discount = -0.1"),
        (lambda: SacConfig(critic_width=4), "sac.critic_width = 4"),
        (lambda: SacConfig(learning_rate=float("nan")), "sac.learning_rate = nan"),
        (lambda: ReplayConfig(capacity=10), "replay.capacity = 10"),
        (lambda: ReplayConfig(n_step=0), "replay.n_step = 0"),
        (lambda: EngineConfig(ring_chunks=3), "power of two"),
        (lambda: EngineConfig(commit_rows=500), "chunk_rows"),
        (lambda: EvalConfig(episodes=0), "eval.episodes = 0"),
        (lambda: Config(seed=-1), "seed = -1"),
        (lambda: Config(total_timesteps=0), "total_timesteps = 0"),
        (lambda: Config(ratio=0.0), "ratio = 0.0"),
        (lambda: Config(workers=0), "workers = 0"),
        (lambda: Config(envs_per_worker=3), "multiple of engine.groups"),
        (lambda: Config(device="cuda", learner="compiled"), "learner = 'torch'"),
    ],
)
def test_an_impossible_value_names_setting_value_and_rule(make, says):
    with pytest.raises(ConfigError) as caught:
        make()
    assert says in str(caught.value)


def test_resolve_fills_what_the_machine_decides():
    # 1 ms a step: 8 steps an update take 1.2 * 8 * 1015 us, an update 0.6 * 2500 us: 6.5 workers
    config = resolve(Config(), cores=16, step_us=1000)
    filled = config.workers, config.envs_per_worker, config.learner, config.device
    assert filled == (7, 2, "compiled", "cpu")  # one environment in each of two groups
    assert resolve(Config(workers=1), cores=2).envs_per_worker == 8
    assert resolve(Config(workers=2), cores=2).envs_per_worker == 4
    assert resolve(Config(device="cuda"), cores=2).learner == "torch"
    assert resolve(Config(ratio="free"), cores=8).workers == 6  # nothing holds them back
    assert resolve(Config(ratio="free"), cores=8, step_us=10).workers == 1  # but inference
    serial = resolve(Config(serial=True, workers=4), cores=8)
    assert (serial.workers, serial.engine.learner_threads) == (1, 2)
    wide = Config(sac=SacConfig(critic_width=512))  # 16 times the update: one worker keeps up
    assert resolve(wide, cores=16, step_us=1000).workers == 1


@pytest.mark.parametrize(
    ("step_us", "cores", "workers", "threads"),
    [
        (10, 1, 1, 1),
        (10, 2, 1, 2),  # 8 steps take 200 us of an update's 2500
        (320, 2, 1, 1),  # 2680 us: as long as the update
        (750, 2, 2, 1),  # 6120 us: one worker cannot keep up
        (math.inf, 2, 2, 1),
        (10, 64, 1, 2),
        (750, 64, 5, 2),  # 1.2 * 6120 / 1500
        (750, 4, 2, 2),
        (math.inf, 64, 62, 2),
    ],
)
def test_the_environments_step_divides_the_cores(step_us, cores, workers, threads):
    config = resolve(Config(), cores=cores, step_us=step_us)
    assert (config.workers, config.engine.learner_threads) == (workers, threads)


@pytest.mark.parametrize(
    ("obs_dim", "wanted", "ratio"),
    [(14, None, 32), (15, None, 64), (15, 16.0, 16), (15, "free", "free")],
)
def test_large_problems_draw_more_samples_per_step(tmp_path, obs_dim, wanted, ratio):
    env = replace(small_plan("Pendulum-v1", tmp_path).env, obs_dim=obs_dim)  # actions: one number
    assert resolve(Config(ratio=wanted), cores=2, env=env).ratio == ratio


def test_more_workers_than_the_machine_allows_are_refused():
    with pytest.raises(ConfigError, match=r"workers = 33: at most 16 per core.*32 works"):
        resolve(Config(workers=33), cores=2)


def test_allowed_cores_are_those_of_this_process():
    import os

    assert 1 <= allowed_cores() <= len(os.sched_getaffinity(0))


def test_a_file_that_is_no_toml_is_named(tmp_path: Path):
    file = tmp_path / "x.toml"
    with pytest.raises(ConfigError, match="there is no such file"):
        load_toml(file)
    file.write_bytes(b"\xff\x00 = [")
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        load_toml(file)
    file.write_text("[sac]\ndiscount = 2.0\n")
    with pytest.raises(ConfigError, match=r"x.toml: sac.discount = 2.0"):
        load_toml(file)
    for text in ("seed = 0x" + "f" * 4000, "x" + ".a" * 3000 + " = 1", "ratio = 1" + "0" * 400):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"x\.toml"):
            load_toml(file)
    file.write_text('env = "Übung-v1"', encoding="utf-8")
    assert load_toml(file).env == "Übung-v1"
