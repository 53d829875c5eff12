"""Samples per insert, held from both sides."""

from __future__ import annotations

import random

import pytest
from fdql.config import Config, EngineConfig, ExploreConfig
from fdql.proc.governor import Governor


def test_values_by_hand():
    # 32 samples per insert, batch 256: one update per 8 steps; warm-up 1000 steps = 125 updates at
    # once
    governor = Governor(Config(ratio=32.0))
    assert [governor.due(n) for n in (0, 999, 1000, 1007, 1008)] == [0, 0, 125, 125, 126]
    # 16 updates ahead: 0 updates allow the warm-up, 125 updates allow (125 + 16) * 8 = 1128 steps
    assert [governor.allowed(n) for n in (0, 109, 110, 125)] == [1000, 1000, 1008, 1128]
    assert governor.actual(2000, 250) == 32.0
    assert governor.actual(0, 0) == 0.0


def test_the_end_of_a_run_is_reached_exactly():
    governor = Governor(Config(ratio=32.0, total_timesteps=1500))
    assert governor.allowed(10**9) == 1500
    assert not governor.complete(1500, 186, 1)
    assert governor.complete(1500, 187, 1)  # 1500 / 8 = 187.5
    assert not governor.complete(1499, 10**6, 1)


def test_a_run_shorter_than_its_warm_up_still_ends():
    governor = Governor(Config(total_timesteps=100))
    assert governor.allowed(0) == 100
    assert governor.complete(100, governor.due(100), 1)
    assert governor.due(100) == 12


def test_a_run_without_a_row_to_sample_ends():
    governor = Governor(Config(total_timesteps=8))
    assert governor.due(8) == 1
    assert not governor.complete(8, 0, 1)
    assert governor.complete(8, 0, 0)
    assert not governor.complete(7, 0, 0)


def test_free_running_is_never_held():
    governor = Governor(Config(ratio="free", total_timesteps=5000))
    assert governor.allowed(0) == 5000
    assert governor.due(1000) > 10**12
    assert governor.due(999) == 0
    assert governor.complete(5000, 1, 1)


@pytest.mark.parametrize("seed", range(20))
def test_the_ratio_stays_in_its_band_whatever_stalls(seed):
    """Either side stalls at random; once past the warm-up the ratio never leaves the band, nobody
    starves.
    """
    rng = random.Random(seed)
    ratio = rng.choice([1.0, 8.0, 31.7, 32.0, 256.0])
    engine = EngineConfig(ahead_updates=rng.choice([1, 16]))
    config = Config(
        ratio=ratio, engine=engine, explore=ExploreConfig(warmup_steps=rng.choice([1, 1000]))
    )
    governor = Governor(config)
    steps = updates = 0
    for _ in range(20_000):
        if rng.random() < 0.5 and steps < governor.allowed(updates):
            steps += rng.choice([1, 4, 8])
        elif updates < governor.due(steps):
            updates += 1
        assert updates <= governor.due(steps)
        assert steps < governor.allowed(updates) + 8
    assert steps > 500 or ratio == 256.0
    assert updates > 100
    per_update = 256 / ratio
    assert abs(steps - updates * per_update) <= max(
        1000, (engine.ahead_updates + 1) * per_update + 8
    )
