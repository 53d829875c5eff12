"""Every verdict on a constructed table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fdql.bottleneck import Setting, bottleneck

SETTING = Setting(cores=2, workers=1, envs_per_worker=8, samples_per_insert=32.0)
Table = dict[str, dict[str, float]]


def account(
    busy: float, core: float = 0.0, queued: float = 0.0, **waits: float
) -> dict[str, float]:
    """Shares of one role; `wait_batch=` is the wait `wait.batch`."""
    named = {k.replace("_", ".", 1): v for k, v in waits.items()}
    waiting = sum(v for k, v in named.items() if k.startswith("wait."))
    return {"busy": busy, "waiting": waiting, "core": core, "queued": queued} | named


# The worker is in the environment nearly all the time; everybody else waits.
STEPS: Table = {
    "worker": account(0.97, 0.95, wait_actions=0.02, step=0.96, step_env=0.9),
    "inference": account(0.1, 0.1, wait_requests=0.61, wait_ratio=0.2),
    "loader": account(0.1, 0.1, wait_due=0.88),
    "trainer": account(0.6, 0.55, wait_batch=0.38),
    "evaluator": account(0.0, 0.0, wait_policy=1.0),
}
# The trainer never waits; the others are held back.
UPDATES: Table = {
    "worker": account(0.1, 0.1, wait_actions=0.88),
    "inference": account(0.1, 0.1, wait_requests=0.01, wait_ratio=0.87),
    "loader": account(0.1, 0.1, wait_free_batch=0.88),
    "trainer": account(0.95, 0.94, wait_batch=0.03),
    "evaluator": account(0.2, 0.2, wait_policy=0.8),
}


def verdict(table: Table, **setting: object) -> tuple[str, str]:
    v = bottleneck(table, replace(SETTING, **setting))
    assert len(v.sentence) <= 160
    return v.limit, v.sentence


def changed(table: Table, **roles: dict[str, float]) -> Table:
    return table | {role: table[role] | values for role, values in roles.items()}


def test_environments():
    limit, sentence = verdict(STEPS)  # 1.7 of 2 cores are used: 0.3 are left for a second worker
    assert limit == "environments"
    assert sentence == (
        "inference waits for workers 61% of the time, the trainer for data 38%: environment steps "
        "are the limit; --workers 2 would help"
    )


def test_environments_without_a_core_to_spare():
    limit, sentence = verdict(changed(STEPS, trainer={"core": 0.8}))  # 1.95 of 2
    assert limit == "environments"
    assert "--workers" not in sentence
    assert sentence.endswith("all cores are in use")
    # three workers of 0.95 each and the rest: 3.6 of 4 cores leave 0.4, of 3 none
    assert verdict(STEPS, workers=3, cores=4)[1].endswith("--workers 4 would help")
    assert verdict(STEPS, workers=3, cores=3)[1].endswith("all cores are in use")


def test_steps_cost_more_around_the_environment_than_in_it():
    limit, sentence = verdict(changed(STEPS, worker={"step.env": 0.3}))
    assert limit == "steps"
    assert "only 30%" in sentence
    assert "--envs-per-worker 16" in sentence


def test_updates_hold_the_steps():
    limit, sentence = verdict(UPDATES)
    assert limit == "updates"
    assert sentence.startswith("the trainer is busy 97%: updates are the limit")
    assert "steps are held for it 87%" in sentence
    assert "--ratio than 32" in sentence


@pytest.mark.parametrize("free", [True, False])
def test_updates_hold_nobody(free):
    if free:
        limit, sentence = verdict(UPDATES, samples_per_insert=None)
    else:
        held = {"wait.ratio": 0.1, "wait.requests": 0.78}
        limit, sentence = verdict(changed(UPDATES, inference=held))
    assert limit == "updates"
    assert "--ratio" not in sentence


def test_a_trainer_that_is_off_its_core_is_still_the_limit_and_cores_are_why():
    # 67 % in updates and 0.2 % waiting for batches: the rest of its time it had no core
    trainer = account(0.67, 0.66, 0.30, wait_batch=0.002)
    limit, sentence = verdict(UPDATES | {"trainer": trainer}, workers=3)
    assert limit == "evaluation"  # of 20 % of a core
    assert "evaluation takes 20%" in sentence
    assert "--eval.share" in sentence
    idle = changed(UPDATES, evaluator={"core": 0.05}) | {"trainer": trainer}
    limit, sentence = verdict(idle, workers=3)
    assert limit == "cores"
    assert "the trainer is ready but without a core 30%" in sentence
    assert "--workers 2" in sentence
    assert "--workers" not in verdict(idle)[1]  # one worker cannot become fewer


def test_replay():
    loader = account(0.9, 0.9, wait_due=0.05)
    table = UPDATES | {"loader": loader, "trainer": account(0.5, 0.5, wait_batch=0.48)}
    limit, sentence = verdict(table)
    assert limit == "replay"
    assert "busy 95%" in sentence
    assert "48%" in sentence


def test_inference():
    table = changed(STEPS, worker={"busy": 0.3, "waiting": 0.68, "wait.actions": 0.68})
    limit, sentence = verdict(table | {"inference": account(0.9, 0.9, wait_requests=0.04)})
    assert limit == "inference"
    assert "--envs-per-worker 16" in sentence
    assert "68%" in sentence


def test_held_by_the_ratio_while_the_trainer_waits():
    table: Table = {
        "worker": account(0.3, wait_actions=0.68),
        "inference": account(0.2, wait_requests=0.3, wait_ratio=0.45),
        "loader": account(0.1, wait_due=0.88),
        "trainer": account(0.5, wait_batch=0.48),
    }
    limit, sentence = verdict(table)
    assert limit == "ratio"
    assert sentence == (
        "held by samples per insert (32) 45% of the time while the trainer waits 48%: a larger "
        "--engine.ahead-updates would help"
    )
    table["inference"] = account(0.2, wait_requests=0.75)
    limit, sentence = verdict(table)
    assert limit == "hand-over"
    assert "the trainer waits 48%" in sentence


def test_before_the_first_update():
    assert verdict({"worker": account(0.9)})[0] == "start"
    assert verdict({})[0] == "start"


def test_lockstep():
    table = {"worker": account(0.2), "trainer": account(0.6), "inference": account(0.1)}
    limit, sentence = verdict(table, serial=True)
    assert limit == "lockstep"
    assert sentence.startswith("updates take 60%")
