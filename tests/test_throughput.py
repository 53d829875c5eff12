"""bench/throughput.py: its rows add up, and a lost or doubled transition makes it fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def throughput(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module; children find the counting environment."""
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setenv("PYTHONPATH", str(BENCH))
    import throughput

    return throughput


def run(throughput: Any, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = throughput.main([*words, "--quick", "--seconds", "0.2"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_acting_and_training(throughput, capsys):
    words = ("--only", "acting", "training", "--env", "null", "--shape", "rltools-pendulum")
    code, answer = run(throughput, capsys, *words)
    assert (code, answer["ok"], answer["wrong"]) == (0, True, [])
    rows = {(r["kind"], r["who"]): r for r in answer["rows"]}
    acting, training = rows["acting", "fdql"], rows["training", "fdql"]
    assert acting["facts"]["steps_checked"] > 0
    assert {"step", "ring", "infer", "act"} <= set(acting["stages"])
    assert {"ingest", "sample", "update", "publish"} <= set(training["stages"])
    gemm = rows["training", "limit: float32 GEMM"]
    # multiply-adds of one update at width 64, batch 100: 118,400 per row
    assert gemm["facts"]["multiply_adds"]["rltools-pendulum"] == 11_840_000
    share = training["median"] * 11_840_000 / gemm["median"]
    assert training["gemm_share"] == pytest.approx(share, abs=1e-3)
    assert 0 < share < 1
    raw = rows["acting", "limit: env.step, 1 core"]
    assert raw["fdql_over_it"] == pytest.approx(acting["median"] / raw["median"], abs=1e-4)
    assert answer["not_run"] == {
        "training rltools-pendulum rltools": "--quick leaves the peers out"
    }


@pytest.mark.parametrize("times", [0, 2], ids=["lost", "doubled"])
def test_a_chunk_lost_or_doubled_makes_it_fail(throughput, capsys, monkeypatch, times):
    from rates.drain import Drain

    keep = Drain.keep

    def keep_badly(self: Drain, worker: int, head: Any, views: Any) -> None:
        for _ in range(times if head.seq == 3 else 1):
            keep(self, worker, head, views)

    monkeypatch.setattr(Drain, "keep", keep_badly)
    code, answer = run(throughput, capsys, "--only", "acting", "--env", "null")
    assert (code, answer["ok"]) == (1, False)
    wrong = "\n".join(answer["wrong"])
    for what in ("drained were", "chunk numbers are not", "was due"):
        assert what in wrong


def test_what_a_lane_must_look_like(throughput):
    from fdql.shm.chunk import BOUNDARY, RESET, TERMINATED
    from rates.drain import lane_fault, null_fault

    good = np.array([RESET, 0, TERMINATED, BOUNDARY, RESET, 0], np.uint8)
    assert lane_fault(good) is None
    for lost in (0, 2, 3, 4):  # not 1 and 5: one step fewer, which only counts and numbers show
        assert lane_fault(np.delete(good, lost))
    obs = np.array([[7, 0, 0], [7, 0, 1], [7, 0, 2]], np.float32)
    reward, flags = np.array([1, 2, 3], np.float32), np.zeros(3, np.uint8)
    assert null_fault(7, flags, reward, obs) is None
    assert null_fault(7, flags[1:], reward[[0, 2]], obs[[0, 2]]).startswith(
        "row 1 is [7.0, 0.0, 2.0]"
    )


def test_rows_of_a_run_that_are_out_of_band(throughput):
    """2,000 steps pay for 250 updates of 256 at 32 samples per insert; 250 more are too many."""
    from fdql.config import Config
    from rates.together import reading

    def row(seconds: float, steps: int, updates: int) -> dict[str, float]:
        return {
            "time/time_elapsed": seconds, "time/total_timesteps": steps,
            "train/n_updates": updates, "train/critic_loss": 1.0,
        }  # fmt: skip

    summary = dict.fromkeys(
        ("trainer_duty_cycle", "policy_lag_p50", "policy_lag_p99", "workers", "envs_per_worker"), 1
    )
    summary |= {"problem": None, "worker_restarts": 0, "stages_us": {}}
    summary |= {"steps_committed": 4000, "steps_in_flight": 0, "env_steps": 4000}
    good = reading([row(1, 2000, 250), row(3, 4000, 500)], summary, Config())
    assert (good.value, good.facts["samples_per_insert"], good.wrong) == (1000.0, 32.0, [])
    bad = reading([row(1, 2000, 250), row(3, 4000, 750)], summary, Config())
    assert bad.wrong == ["500 updates for 2000 steps: 64.00 samples per insert, target 32.0"]
    lost = reading(
        [row(1, 2000, 250), row(3, 4000, 500)], summary | {"steps_committed": 4001}, Config()
    )
    assert lost.wrong == ["4001 steps committed, 4000 stored, 0 under way"]
