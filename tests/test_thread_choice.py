"""Which number of threads the trainer's updates take."""

from __future__ import annotations

import pytest
from fdql.proc.thread_choice import PERIOD, TRIAL, ThreadChoice


def spent(choice: ThreadChoice, updates: int, times: dict[int, int]) -> dict[int, int]:
    """Updates made with each number of threads while an update takes `times[threads]` ns."""
    made = dict.fromkeys(times, 0)
    for _ in range(updates):
        made[choice.threads] += 1
        choice.took(times[choice.threads])
    return made


def test_one_number_is_kept():
    choice = ThreadChoice((1,))
    assert spent(choice, 10 * TRIAL, {1: 5}) == {1: 10 * TRIAL}


def test_begins_with_fewer_and_tries_the_other_next():
    choice = ThreadChoice((1, 2))
    assert choice.threads == 1
    spent(choice, TRIAL, {1: 100, 2: 60})
    assert choice.threads == 2


@pytest.mark.parametrize(("two", "better"), [(60, 2), (84, 2), (86, 1), (100, 1), (300, 1)])
def test_the_second_thread_must_be_worth_its_core(two, better):
    choice = ThreadChoice((1, 2))
    spent(choice, 2 * TRIAL, {1: 100, 2: two})
    made = spent(choice, 4 * PERIOD * TRIAL, {1: 100, 2: two})
    assert made[better] == 4 * (PERIOD - 1) * TRIAL  # the rest looks at the other


def test_follows_a_machine_that_changes():
    choice = ThreadChoice((1, 2))
    for two, better in ((60, 2), (250, 1), (60, 2)):
        spent(choice, 2 * PERIOD * TRIAL, {1: 100, 2: two})
        made = spent(choice, PERIOD * TRIAL, {1: 100, 2: two})
        assert made[better] == (PERIOD - 1) * TRIAL


def test_one_stalled_trial_is_forgotten():
    choice = ThreadChoice((1, 2))
    spent(choice, 2 * TRIAL, {1: 100, 2: 60})
    spent(choice, TRIAL, {1: 100, 2: 1000})
    assert choice.threads == 1
    made = spent(choice, PERIOD * TRIAL, {1: 100, 2: 60})
    assert choice.threads == 2
    assert made[2] >= TRIAL
