"""Tables made of constructed histograms: shares, rates, percentiles, differences of snapshots."""

from __future__ import annotations

import os
import time

import pytest
from fdql.budget import Ledger, Snapshot, budget, metrics
from fdql.core_time import core_time
from fdql.profile import RECORD_NBYTES, ROLES, Stage, name_of, open_record, role_of
from fdql.shm.records import Record, bucket_of, bucket_upper
from fdql.shm.segment import Segment

S = Stage


def record() -> Record:
    return open_record(Segment.create([(6, 0, RECORD_NBYTES)], 0, shared=False).section(6, 0))


def at(seconds: float, snapshot: Snapshot) -> Snapshot:
    """The snapshot as if taken at that moment."""
    return Snapshot(seconds, snapshot.sums, snapshot.histograms, snapshot.cores)


def us(ns: int) -> float:
    """What a table shows for a duration: the upper bound of its bucket, microseconds."""
    return round(bucket_upper(bucket_of(ns)) / 1e3, 3)


def test_names():
    assert name_of(S.STEP_ENV) == "step.env"
    assert name_of(S.POLICY_AGE) == "policy.age"
    assert role_of("worker 12") is ROLES["worker"]
    assert ROLES["worker"].name(S.WAIT) == "wait.actions"
    assert ROLES["trainer"].name(S.WAIT) == "wait.batch"


def test_every_histogram_has_its_role_and_no_name_is_used_twice():
    recorded = [s for role in ROLES.values() for s in role.recorded]
    assert set(recorded) == set(Stage)
    assert [s for s in recorded if recorded.count(s) > 1] == [S.WAIT] * 4  # the loader has its own
    names = [role.name(s) for role in ROLES.values() for s in role.recorded]
    assert len(set(names)) == len(names)
    # trainer and loader share a record: nothing of one may be the other's
    assert not set(ROLES["trainer"].recorded) & set(ROLES["loader"].recorded)


def test_shares_by_hand():
    # 2 s of wall time: steps 300 + 500 ms = 0.4, handing over 100 ms = 0.05, waits 800 + 100 ms
    # = 0.45, so 0.1 is left; 600 of the 800 ms of steps are inside the environment
    r = record()
    for stage, ms in ((S.STEP, 300), (S.STEP, 500), (S.RING, 100), (S.WAIT, 800),
                      (S.WAIT_ROOM, 100), (S.STEP_ENV, 200), (S.STEP_ENV, 400)):  # fmt: skip
        r.observe(stage, ms * 1_000_000)
    before = at(10.0, Snapshot.take({"worker 0": record()}))
    account = budget(at(12.0, Snapshot.take({"worker 0": r})).since(before))["worker 0"]
    assert account.busy == pytest.approx(0.45)
    assert account.waiting == pytest.approx(0.45)
    assert account.other == pytest.approx(0.10)
    shares = account.shares()
    assert shares["step"] == pytest.approx(0.40)
    assert shares["step.env"] == pytest.approx(0.30)
    assert shares["wait.actions"] == pytest.approx(0.40)
    assert shares["wait.room"] == pytest.approx(0.05)
    step = account.to_dict()["stages_us"]["step"]
    assert (step["count"], step["per_second"], step["share"]) == (2, 1.0, 0.4)
    assert step["p50"] == us(300_000_000)
    assert step["p99"] == step["p99.9"] == us(500_000_000)
    assert "step.reset" not in account.stages  # none happened


def test_percentiles_by_hand():
    # 1000 values: 500 of 3, 490 of 5, 9 of 7, 1 of 6000: p50 is the 500th, p99 the 990th, p99.9 the
    # 999th; below 8 every number has a bucket of its own
    r = record()
    for value, n in ((3, 500), (5, 490), (7, 9), (6000, 1)):
        for _ in range(n):
            r.observe(S.ROWS, value)
    empty = at(0.0, Snapshot.take({"inference": record()}))
    account = budget(at(1.0, Snapshot.take({"inference": r})).since(empty))["inference"]
    rows = account.numbers["rows"]
    assert (rows.p50, rows.p99, rows.p999) == (3.0, 5.0, 7.0)
    assert account.busy == account.waiting == 0.0  # rows are no time


def test_the_difference_of_two_snapshots_is_what_lies_between_them():
    r = record()
    for _ in range(100):
        r.observe(S.UPDATE, 1_000)  # old and fast
    first = at(5.0, Snapshot.take({"trainer": r}))
    for _ in range(4):
        r.observe(S.UPDATE, 250_000_000)  # new and slow
    second = at(9.0, Snapshot.take({"trainer": r}))
    recent = budget(second.since(first))["trainer"]
    assert recent.stages["update"].count == 4
    assert recent.busy == pytest.approx(4 * 0.25 / 4.0)
    assert round(recent.stages["update"].p50, 3) == us(250_000_000)
    assert budget(second.since(second))["trainer"].stages == {}


def test_workers_are_taken_together_as_the_mean_of_their_shares():
    # one busy 0.6, the other 0.2 of 1 s: mean 0.4; 3 steps in all, so 3 a second
    a, b = record(), record()
    a.observe(S.STEP, 600_000_000)
    b.observe(S.STEP, 100_000_000)
    b.observe(S.STEP, 100_000_000)
    none = at(0.0, Snapshot.take({"worker 0": record(), "worker 1": record()}))
    interval = at(1.0, Snapshot.take({"worker 0": a, "worker 1": b})).since(none)
    worker = budget(interval.by_role(), {"worker": 2})["worker"]
    assert worker.busy == pytest.approx(0.4)
    assert worker.stages["step"].per_second == pytest.approx(3.0)
    assert budget(interval)["worker 0"].busy == pytest.approx(0.6)


def test_cores_are_differences_and_a_restarted_process_counts_from_zero():
    r = {"worker 0": record(), "trainer": record()}
    first, second = Snapshot.take(r), Snapshot.take(r)
    first.cores.update({"worker 0": (50.0, 5.0), "trainer": (10.0, 1.0)})
    second.cores.update({"worker 0": (3.0, 0.5), "trainer": (13.0, 2.0)})
    accounts = budget(at(4.0, second).since(at(0.0, first)))
    assert (accounts["trainer"].core, accounts["trainer"].queued) == (0.75, 0.25)
    assert (accounts["worker 0"].core, accounts["worker 0"].queued) == (0.75, 0.125)


def test_core_time_of_this_process():
    before, _ = core_time(os.getpid())
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    after, _ = core_time(os.getpid())
    assert after[0] - before[0] >= 0.04
    assert after[1] >= before[1]
    assert core_time(2**22 + 1) == ((0.0, 0.0), (0.0, 0.0))  # no such process


def test_the_ledger_begins_at_the_first_update():
    r = record()
    ledger = Ledger({"trainer": r})
    r.observe(S.WAIT, 10**9)  # the warm-up's
    ledger.look(training=True)
    r.observe(S.UPDATE, 5)
    ledger.look(training=True)  # the first one counts
    assert "wait.batch" not in ledger.recent()["trainer"].waits  # start-up is not recent either
    ledger.close()
    r.observe(S.UPDATE, 7)  # after the end
    account = budget(ledger.interval())["trainer"]
    assert account.stages["update"].count == 1
    assert "wait.batch" not in account.waits
    table = ledger.stage_table()
    assert table["update"]["count"] == 2  # since the start of the run
    assert table["wait.batch"]["count"] == 1


def test_the_recent_budget_forgets(monkeypatch):
    monkeypatch.setattr("fdql.budget.WINDOW_SECONDS", 0.2)
    monkeypatch.setattr("fdql.budget.LOOK_SECONDS", 0.05)
    r = record()
    ledger = Ledger({"trainer": r})
    r.observe(S.PUBLISH, 1_000)
    assert ledger.recent()["trainer"].stages["publish"].count == 1
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        ledger.look(training=True)
        time.sleep(0.02)
    r.observe(S.UPDATE, 1_000)
    recent = ledger.recent()["trainer"]
    assert set(recent.stages) == {"update"}
    row = metrics(ledger.recent())
    assert row["budget/trainer/update_us_p50"] == 1.0
    assert 0.0 <= row["budget/trainer/busy"] < 1.0
