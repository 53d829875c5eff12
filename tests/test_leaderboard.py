"""The best policies of a run: order, what is kept, what a damaged index says; and intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fdql.checkpoint import CheckpointError, load_tensors
from fdql.config import ConfigError
from fdql.interval import interval_95, t_quantile
from fdql.leaderboard import INDEX, Entry, Leaderboard, read
from fdql.proc.arena import AFTERWARDS, WHILE_TRAINING, start_seeds
from fdql.proc.env_state import env_seed
from scipy.special import stdtrit


def entry(updates: int, mean: float) -> Entry:
    return Entry(updates, 8 * updates, mean, 1.5, mean - 1, mean + 1, 20)


def offer(board: Leaderboard, updates: int, mean: float) -> None:
    board.offer(entry(updates, mean), {"policy": np.array([updates], np.float32)}, {"at": updates})


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_the_ten_best_stay_in_order(tmp_path: Path):
    board = Leaderboard(tmp_path / "best", pytest.fail)
    means = [3.0, 1.0, 7.0, 7.0, 2.0, 9.0, 0.0, 4.0, 8.0, 6.0, 5.0, -1.0]
    for updates, mean in enumerate(means, 1):
        offer(board, updates, mean)
    kept = read(tmp_path / "best")
    # by mean; of the two with 7 the earlier first; 0 fell off when 5 came, -1 never came on
    assert [e.updates for e in kept] == [6, 9, 3, 4, 10, 11, 8, 1, 5, 2]
    assert files(tmp_path / "best") == {INDEX} | {e.file for e in kept}
    arrays, facts = load_tensors(tmp_path / "best" / kept[0].file)
    assert (arrays["policy"].tolist(), facts) == ([6.0], {"at": 6})
    shown = json.loads((tmp_path / "best" / INDEX).read_text())["policies"]
    assert [(p["rank"], p["mean"]) for p in shown][:2] == [(1, 9.0), (2, 8.0)]


def test_a_rank_is_known_before(tmp_path: Path):
    board = Leaderboard(tmp_path / "best", pytest.fail)
    assert board.rank(-1e9, 1) == 1
    offer(board, 1, 5.0)
    assert [board.rank(m, 2) for m in (6.0, 5.0, 4.0, float("nan"))] == [1, 2, 2, None]


def test_what_a_killed_run_had_evaluated_does_not_count_against_itself(tmp_path: Path):
    """Killed after the evaluations at 2 and 3, resumed from before: each rank is what it was."""
    means = {1: 5.0, 2: 7.0, 3: 9.0}
    for again in range(2):
        board = Leaderboard(tmp_path / "best", pytest.fail)
        for updates, mean in means.items():
            if updates > again:
                assert board.rank(mean, updates) == 1
                offer(board, updates, mean)
    assert [e.updates for e in read(tmp_path / "best")] == [3, 2, 1]


def test_a_successor_goes_on_and_clears_up(tmp_path: Path):
    folder = tmp_path / "best"
    offer(Leaderboard(folder, pytest.fail), 1, 5.0)
    # Killed before the index was written, and within a write:
    (folder / "updates-2.safetensors").write_bytes(b"")
    (folder / "..updates-2.safetensors.new.x1").write_bytes(b"")
    board = Leaderboard(folder, pytest.fail)
    assert [e.mean for e in board.entries] == [5.0]
    offer(board, 3, 4.0)
    assert files(folder) == {INDEX, "updates-1.safetensors", "updates-3.safetensors"}


def test_the_same_update_again_replaces_its_policy(tmp_path: Path):
    board = Leaderboard(tmp_path / "best", pytest.fail)
    for updates, mean in ((1, 5.0), (2, 9.0), (2, 1.0)):
        offer(board, updates, mean)
    assert [(e.updates, e.mean) for e in read(tmp_path / "best")] == [(1, 5.0), (2, 1.0)]


def test_a_full_disk_leaves_the_leaderboard_as_it_was(tmp_path: Path, monkeypatch):
    import fdql.leaderboard

    board = Leaderboard(tmp_path / "best", pytest.fail)
    offer(board, 1, 5.0)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fdql.leaderboard, "save_tensors", full)
    with pytest.raises(OSError, match="No space"):
        offer(board, 2, 6.0)
    assert [e.updates for e in board.entries] == [1]
    assert [e.updates for e in read(tmp_path / "best")] == [1]


@pytest.mark.parametrize("fails", ["save_tensors", "write_json"])
def test_a_full_disk_keeps_the_older_policy_of_the_same_update(tmp_path: Path, monkeypatch, fails):
    board = Leaderboard(tmp_path / "best", pytest.fail)
    for updates, mean in ((1, 5.0), (2, 9.0)):
        offer(board, updates, mean)
    before = {name: (tmp_path / "best" / name).read_bytes() for name in files(tmp_path / "best")}
    with monkeypatch.context() as m:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        m.setattr(f"fdql.leaderboard.{fails}", full)
        for mean in (7.0, 9.5, 1.0):
            with pytest.raises(OSError, match="No space"):
                offer(board, 2, mean)
            assert [(e.updates, e.mean) for e in board.entries] == [(2, 9.0), (1, 5.0)]
            now = {name: (tmp_path / "best" / name).read_bytes() for name in before}
            assert now == before
    offer(board, 2, 7.0)
    assert [(e.updates, e.mean) for e in read(tmp_path / "best")] == [(2, 7.0), (1, 5.0)]
    assert files(tmp_path / "best") == before.keys()


def test_a_damaged_leaderboard_is_set_aside(tmp_path: Path):
    for number in ("", "-2"):
        offer(Leaderboard(tmp_path / "best", pytest.fail), 1, 5.0)
        (tmp_path / "best" / INDEX).write_text("{")
        warned: list[str] = []
        board = Leaderboard(tmp_path / "best", warned.append)
        aside = tmp_path / f"best-damaged{number}"
        assert INDEX in warned[0]
        assert str(aside) in warned[0]
        assert files(aside) >= {INDEX, "updates-1.safetensors"}
        offer(board, 2, 3.0)
        assert [e.updates for e in read(tmp_path / "best")] == [2]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"format": 1}', '{"format": 1, "policies": 3}',
        '{"format": 1, "policies": [{}]}', '{"format": 2, "policies": []}', "[" * 100_000,
        '{"format": 1, "policies": [{"updates": "../x", "env_steps": 1, "mean": 1, "std": 1, '
        '"low": 1, "high": 1, "episodes": 1}]}',
        '{"format": 1, "policies": [{"updates": 1, "env_steps": 1, "mean": NaN, "std": 1, '
        '"low": 1, "high": 1, "episodes": 1}]}',
        '{"format": 1, "policies": [{"updates": 1, "env_steps": 1, "mean": 1%s, "std": 1, '
        '"low": 1, "high": 1, "episodes": 1}]}' % (400 * "0"),
    ],
)  # fmt: skip
def test_a_damaged_index_is_an_error(tmp_path: Path, text: str):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=INDEX):
        read(tmp_path)


def test_policies_are_named_by_rank(tmp_path: Path):
    from fdql.play import load

    offer(Leaderboard(tmp_path / "best", pytest.fail), 1, 5.0)
    with pytest.raises(ConfigError, match="has kept 1 policies; 1 works"):
        load(tmp_path, 2)
    for which in ("worst", "0", "11", "1.5", "²"):
        with pytest.raises(ConfigError, match=r"rank in 1\.\.10; .best. works"):
            load(tmp_path, which)
    for which in ("best", "1", 1):
        with pytest.raises(CheckpointError, match=r"updates-1.safetensors: not a policy"):
            load(tmp_path, which)


def test_the_interval_of_a_mean():
    # 1, 2, 3: mean 2, deviation 1, t(2) 4.3027: 2 +- 4.3027 / sqrt(3) = 2 +- 2.4842
    assert interval_95([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4842, 2 + 2.4842), abs=1e-4)
    assert interval_95([4.0, 4.0]) == (4.0, 4.0)
    assert interval_95([4.0]) is None
    for freedom in (*range(1, 40), 99, 999):
        assert t_quantile(freedom) == pytest.approx(stdtrit(freedom, 0.975), abs=2e-4)


def test_no_start_serves_twice():
    """Training's episodes, the evaluations that choose a policy, those that judge it afterwards."""
    training = {env_seed(0, lane, k) for lane in range(64) for k in range(1, 6)}
    choosing, judging = (set(start_seeds(0, s, 1000)) for s in (WHILE_TRAINING, AFTERWARDS))
    assert not training & choosing
    assert not training & judging
    assert not choosing & judging
    assert start_seeds(0, AFTERWARDS, 20) == start_seeds(0, AFTERWARDS, 1000)[:20]
