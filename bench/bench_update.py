"""One update of the learner, compiled and in eager torch, and its share of the sgemm rate.

    pytest bench/bench_update.py --benchmark-group-by=group
    python bench/bench_update.py            # in turns, with one and with two threads

Batch 256, width 128, 101 bins: the defaults; "tqc" has 25 quantiles instead (sac.head). The shapes
are CartPole's (4 observations, 2 actions), HalfCheetah's (26, 6 components) and an Atari game's
(four 84 x 84 frames, 6 actions; torch only).
Share = multiply-adds that one update needs, times updates per second, over the best sgemm rate of
the same run: the rest is what is not a matrix product; bfloat16 products may exceed 1.
For pytest set OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 to compare one thread with one thread.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from fdql.config import ExploreConfig, SacConfig
from fdql.sac.kernels import CompiledLearner
from fdql.sac.nets import CONVOLUTIONS, FEATURES, NetSpec, policy_shapes, size_of
from fdql.sac.policy import Explorer, Policy, explorer_mask
from fdql.sac.update import TorchLearner
from peers.runs import usable_cores
from threadpoolctl import threadpool_limits

ROWS = 256
SPECS = {
    "discrete 4 -> 2": NetSpec(obs_dim=4, action_dim=2, discrete=True),
    "continuous 26 -> 6": NetSpec(obs_dim=26, action_dim=6, discrete=False),
}
PIXELS = NetSpec(obs_dim=4 * 84 * 84, action_dim=6, discrete=True, image=(4, 84, 84))
TQC = SacConfig(head="tqc")
Learner = CompiledLearner | TorchLearner


def multiply_adds(spec: NetSpec) -> float:
    """Of the matrix products of one update, averaged over the policy delay of 2; ROWS rows.

    With discrete actions the trained distribution is one action's, in the batch and its gradient.
    """
    i, w, k, a = spec.critic_in, spec.critic_width, spec.bins, spec.action_dim
    hidden = i * w + w * w
    train = 2 * (hidden + w * k + 2 * w * k + 2 * w * w + i * w)
    if spec.image is not None:  # three passes forward, one back that needs no gradient of pixels
        first, rest = encoder_multiply_adds(spec)
        train += (
            3 * (first + rest) + first + 2 * rest + 2 * i * w
        )  # into the features, both critics
    if spec.discrete:
        return ROWS * (train + 4 * (hidden + w * k * a))
    v = spec.actor_width
    actor = spec.obs_dim * v + v * v + 2 * a * v
    through = 2 * (hidden + w * k + w * k + w * w + a * w)
    actor_step = actor + 4 * a * v + 2 * v * v + spec.obs_dim * v + through
    return ROWS * (train + actor + 2 * (hidden + w * k) + actor_step / 2)


def encoder_multiply_adds(spec: NetSpec) -> tuple[float, float]:
    """Of one image: the first convolution, and everything after it."""
    assert spec.image is not None
    layers, (channels, height, width) = [], spec.image
    for out, kernel, stride in CONVOLUTIONS:
        height, width = ((n - kernel) // stride + 1 for n in (height, width))
        layers.append(out * channels * kernel * kernel * height * width)
        channels = out
    return layers[0], sum(layers[1:]) + channels * height * width * FEATURES


def batches(spec: NetSpec, count: int = 8) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        obs, next_obs = rng.standard_normal((2, ROWS, spec.obs_dim), dtype=np.float32)
        if spec.image is not None:
            obs, next_obs = rng.integers(0, 256, (2, *obs.shape), dtype=np.uint8)
        action = rng.integers(0, spec.action_dim, ROWS).astype(np.int32)
        if not spec.discrete:
            action = rng.uniform(-1, 1, (ROWS, spec.action_dim)).astype(np.float32)
        reward = rng.standard_normal(ROWS, dtype=np.float32)
        discount = np.full(ROWS, 0.97, np.float32)
        mean, scale = np.zeros(spec.obs_dim, np.float32), np.ones(spec.scales, np.float32)
        one = np.ones(1, np.float32)
        made.append((obs, action, reward, discount, next_obs, mean, scale, one, np.zeros(ROWS)))
    return made


def sgemm_rate() -> float:
    """Best multiply-adds per second of numpy's sgemm, of a large and of the update's own shape."""
    best = 0.0
    for m, k, n in ((1024, 1024, 1024), (256, 128, 128)):
        a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        out = np.empty((m, n), np.float32)
        for _ in range(5 if m > 512 else 500):
            start = time.perf_counter()
            np.dot(a, b, out)
            best = max(best, m * k * n / (time.perf_counter() - start))
    return best


def check(learner: Learner, updates: int) -> None:
    """Fast and wrong must not pass: it has learned the mean reward's value and stayed finite."""
    metrics = learner.metrics()
    assert all(np.isfinite(v) for v in metrics.values())
    assert learner.updates == updates
    if updates >= 100 and learner.spec.head == "hl_gauss":
        assert metrics["critic_loss"] < 2 * np.log(101)
    assert metrics["td_error"] < 1.5


@pytest.mark.parametrize("make", [CompiledLearner, TorchLearner])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("config", [SacConfig(), TQC], ids=lambda c: c.head)
def test_update(benchmark, make, name, config):
    spec = replace(SPECS[name], **config.net_shape)
    torch.set_num_threads(1)
    learner, data = make(spec, config, 0.4, 0), batches(spec)
    rate = sgemm_rate()
    for _ in range(4):  # compile outside the timed region
        learner.update(*data[0])
    benchmark.group = name
    benchmark(lambda: learner.update(*data[learner.updates % 8]))
    check(learner, learner.updates)
    if benchmark.stats is not None:  # None with --benchmark-disable
        per_second = 1 / benchmark.stats.stats.median
        benchmark.extra_info["updates per second"] = round(per_second, 1)
        benchmark.extra_info["sgemm share"] = round(per_second * multiply_adds(spec) / rate, 3)


@pytest.mark.parametrize("name", SPECS)
def test_inference_round_of_8(benchmark, name):
    """Noise included. Target: 60 us."""
    spec = SPECS[name]
    snapshot = np.random.default_rng(0).normal(0, 0.1, size_of(policy_shapes(spec)))
    policy = Policy(spec, np.abs(snapshot).astype(np.float32))
    explorer = Explorer(spec, ExploreConfig(), 8, explorer_mask(0.25, 8), 0)
    obs, lanes = batches(spec, 1)[0][0][:8], np.arange(8)
    out = np.zeros(8, np.int32) if spec.discrete else np.zeros((8, spec.action_dim), np.float32)
    explorer.act(policy, obs, lanes, False, out)
    benchmark.group = "inference round of 8 rows"
    benchmark(explorer.act, policy, obs, lanes, False, out)
    assert np.abs(out).max() <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_update_of_images(benchmark, dtype):
    learner = TorchLearner(PIXELS, SacConfig(image_dtype=dtype), 0.4, 0)
    data = batches(PIXELS, 2)
    for _ in range(2):
        learner.update(*data[0])
    benchmark.group = "four 84 x 84 frames -> 6"
    benchmark(lambda: learner.update(*data[learner.updates % 2]))
    check(learner, learner.updates)
    if benchmark.stats is not None:
        benchmark.extra_info["updates per second"] = round(1 / benchmark.stats.stats.median, 1)


def contestants(spec: NetSpec) -> dict[str, tuple[Learner, int]]:
    """Name -> learner and its threads; two threads only where there are two cores."""
    made: dict[str, tuple[Learner, int]] = {}
    for threads in range(1, 1 + min(2, usable_cores())):
        if spec.image is not None:
            for dtype in ("float32", "bfloat16"):
                config = SacConfig(image_dtype=dtype)
                learner = TorchLearner(spec, config, 0.4, 0, threads=threads)
                made[f"{dtype}, {threads} thread(s)"] = learner, threads
            continue
        made[f"compiled, {threads} thread(s)"] = (
            CompiledLearner(spec, SacConfig(), 0.4, 0, threads=threads), threads,
        )  # fmt: skip
        made[f"compiled tqc, {threads} thread(s)"] = (
            CompiledLearner(replace(spec, **TQC.net_shape), TQC, 0.4, 0, threads=threads), threads,
        )  # fmt: skip
        made[f"torch, {threads} thread(s)"] = TorchLearner(spec, SacConfig(), 0.4, 0), threads
    return made


def main(rounds: int = 30, each: int = 8) -> None:
    """All in turns; last line JSON. Best rounds show the code, medians the machine."""
    rows = []
    for name, spec in (SPECS | {"four 84 x 84 frames -> 6": PIXELS}).items():
        if spec.image is not None:
            rounds, each = rounds // 3, 4
        data, learners = batches(spec), contestants(spec)
        rates: dict[str, list[float]] = {who: [] for who in learners}
        sgemm: list[float] = []
        for turn in range(rounds + 1):  # the first compiles
            for who, (learner, threads) in learners.items():
                if spec.image is None:  # BLAS of the compiled learner has one
                    torch.set_num_threads(threads)
                start = time.perf_counter()
                for _ in range(each):
                    learner.update(*data[learner.updates % 8])
                if turn:
                    rates[who].append(each / (time.perf_counter() - start))
            sgemm.append(sgemm_rate())
        for learner, _ in learners.values():
            check(learner, learner.updates)
        base = next(who for who in rates if who[:8] in ("torch, 1", "float32,"))
        print(f"{name}: sgemm {2e-9 * max(sgemm):.0f} GFLOP/s, one thread")
        for who, mine in rates.items():
            row = {
                "shape": name, "who": who, "best": round(max(mine), 1),
                "median": round(float(np.median(mine)), 1),
                "ratio of medians to torch (float32), 1 thread": round(
                    float(np.median(mine) / np.median(rates[base])), 2
                ),
                "share of sgemm, one core": round(
                    max(mine) * multiply_adds(learners[who][0].spec) / max(sgemm), 3
                ),
            }  # fmt: skip
            print("  ", row)
            rows.append(row)
    print(json.dumps(rows))


if __name__ == "__main__":
    with threadpool_limits(1, "blas"):
        main()
