"""What a transition costs the engine with 1 to 32 workers, and what saturates first on more cores.

    python bench/scale.py                      # about a minute; the last line is JSON

The environment sleeps 5 ms a step, so that 32 workers fit on few cores. Cost is CPU time as the
kernel counts it, without the environment's own and without updates. The second table is arithmetic
on measured parts, not a measurement: what each part of a run with an environment that costs nothing
could carry if its processes had cores of their own. Exit code 1 when more workers make a transition
more than 20 % dearer than fewer do. (It gets cheaper: with few workers a wake-up serves few rows.)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)] if str(HERE) not in sys.path else []

from fdql.config import Config, EngineConfig  # noqa: E402
from fdql.envs import describe, make_env  # noqa: E402
from fdql.machine import resolve  # noqa: E402
from fdql.proc.memory import RunPlan  # noqa: E402
from fdql.sac.nets import policy_shapes, size_of  # noqa: E402
from fdql.sac.policy import Explorer, Policy, explorer_mask  # noqa: E402
from fdql.stop_request import StopRequest  # noqa: E402
from fdql.trial import Measurement, timed_run  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

ENV, NULL = "rates.null_env:Sleeping", "rates.null_env:Null"
WORKERS = (1, 2, 4, 8, 16, 32)
RATIO, STEPS_PER_UPDATE = 4.0, 8  # few updates beside the workers; the product's default of 32
TWO_THREADS = 0.6  # of one thread's update time (docs/adr/0011)
GPU = 10.0  # times the updates of one thread: assumed, no GPU was measured
ENV_STEP_US = {"CartPole 0.006 ms": 6.0, "HalfCheetahBullet 0.4 ms": 400.0, "5 ms": 5000.0}
FLAT = 0.20


def sleeping_cpu_us() -> float:
    """CPU time of one step of the environment alone, microseconds."""
    made = make_env(ENV)
    made.reset()
    start = time.process_time()
    for _ in range(200):
        made.step(0)
    return 1e6 * (time.process_time() - start) / 200


def forward_us_per_row(config: Config, rows: int = 256) -> float:
    """Acting for a full batch of rows: what inference tends to when it is short of time."""
    plan = RunPlan(config=config, env=describe(ENV, make_env(ENV)), run_dir="")
    policy = Policy(plan.net, np.ones(size_of(policy_shapes(plan.net)), dtype=np.float32))
    explorer = Explorer(plan.net, config.explore, rows, explorer_mask(0.25, rows), 0)
    obs, out = np.zeros((rows, plan.env.obs_dim), np.float32), np.zeros(rows, np.int32)
    lanes, times = np.arange(rows), []
    for _ in range(50):
        start = time.perf_counter()
        explorer.act(policy, obs, lanes, False, out)
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times) / rows


def costs(m: Measurement, workers: int, env_us: float) -> dict[str, float]:
    """CPU microseconds per transition of every kind of process; updates (trainer) apart."""
    per_step = 1e6 * m.seconds / m.env_steps
    cpu = {role: m.accounts[role].core * per_step for role in ("inference", "loader", "trainer")}
    cpu["worker"] = m.accounts["worker"].core * workers * per_step - env_us
    cpu["supervisor"] = 1e6 * m.supervisor_s / m.env_steps
    return cpu


def saturation(m: Measurement, forward: float) -> None:
    """Print what every part could carry, transitions per second, and the first at its end.

    m   one worker, null environment, 32 samples per insert, one learner thread
    """

    def us_per_step(role: str, *stages: str) -> float:
        share = sum(m.accounts[role].stages[stage].share for stage in stages)
        return 1e6 * share * m.seconds / m.env_steps

    loader_us = us_per_step("loader", "ingest", "sample", "priorities")
    inference_us = forward + us_per_step("inference", "act")
    worker_us = 1e6 * m.accounts["worker"].core * m.seconds / m.env_steps
    update_us = m.accounts["trainer"].stages["update"].p50
    trainer = STEPS_PER_UPDATE * 1e6 / update_us
    print(
        f"inference {inference_us:.2f} us a row, loader {loader_us:.2f} us a step with its samples,"
        f" worker {worker_us:.2f} us a step, update {update_us:.0f} us on one thread; steps/s:"
    )
    for cores, gpu in ((8, False), (16, False), (64, False), (64, True)):
        left = cores - (3 if gpu else 4)  # inference, loader, the learner's thread(s)
        for name, step_us in ENV_STEP_US.items():
            carried = {
                "inference": 1e6 / inference_us,
                "loader": 1e6 / loader_us,
                "trainer": trainer * (GPU if gpu else 1 / TWO_THREADS),
                "environments": left * 1e6 / (step_us + worker_us),
            }
            each = "  ".join(f"{k} {v:9,.0f}" for k, v in carried.items())
            first = min(carried, key=lambda part: carried[part])
            print(f"  {cores} cores{' + GPU' if gpu else '':6} {name:24} {each}  first: {first}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement, at least")
    seconds = parser.parse_args().seconds
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    env, env_us, rows = describe(ENV, make_env(ENV)), sleeping_cpu_us(), []
    base = Config(env=ENV, ratio=RATIO, engine=EngineConfig(learner_threads=1))
    with threadpool_limits(1):
        forward = forward_us_per_row(resolve(base, cores=2))
    print(f"a step of the sleeping environment takes {env_us:.1f} us of CPU (taken off)")
    with StopRequest() as stop:
        for workers in WORKERS:
            config = Config(env=ENV, ratio=RATIO, workers=workers, engine=base.engine)
            m = timed_run(config, env, stop, window_s=seconds, limit_s=60.0)
            cost = costs(m, workers, env_us)
            engine = sum(v for k, v in cost.items() if k != "trainer")
            rows.append({"workers": workers, "steps_per_s": m.steps_per_s, "engine_us": engine,
                         "supervisor_share": m.supervisor_s / m.seconds} | cost)  # fmt: skip
            print("  ".join(f"{k} {v:,.4g}" for k, v in rows[-1].items()), flush=True)
        alone = Config(env=NULL, workers=1, engine=base.engine)
        spec = describe(NULL, make_env(NULL))
        saturation(timed_run(alone, spec, stop, window_s=seconds, limit_s=60.0), forward)
    each = np.polyfit([r["workers"] for r in rows], [r["supervisor_share"] for r in rows], 1)
    share = " ".join(f"{n}: {each[1] + n * each[0]:.1%}" for n in (8, 16, 64))
    print(f"supervisor, share of a core by a line through the rows, workers {share}")
    engine_us = [r["engine_us"] for r in rows]
    growth = max(cost / min(engine_us[: i + 1]) for i, cost in enumerate(engine_us)) - 1
    spread = max(engine_us) / min(engine_us) - 1
    print(
        f"more workers: at most {growth:+.0%} dearer than fewer; dearest to cheapest {spread:+.0%}"
    )
    print(json.dumps({"rows": rows, "growth": growth, "spread": spread}))
    return int(growth > FLAT)


if __name__ == "__main__":
    sys.exit(main())
