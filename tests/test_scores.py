"""bench/scores.py: normalised scores, their mean and interval, refused files, the figure."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module."""
    monkeypatch.syspath_prepend(str(BENCH))
    import scores

    return scores


def row(who: str, env: str, seed: int, score: float | None, **other: Any) -> dict[str, Any]:
    """A run as bench/learning.py writes it, with two evaluations."""
    curve = [] if score is None else [[1.0, 1000, 10, score - 50.0], [2.0, 3000, 30, score]]
    return {"who": who, "env": env, "seed": seed, "seconds": 2.0, "env_steps": 3000, "updates": 30,
            "score": score, "passed": True, "exit_code": 0, "curve": curve} | other  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps({"format": 1, "runs": rows}))
    return str(path)


def answer(scores: Any, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert scores.main(list(words)) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_by_hand(scores, capsys, tmp_path):
    # CartPole: random 22.7, best 500; 261.35 is half way, 428.405 is 85 %
    cart = [row("fdql", "CartPole-v1", s, x) for s, x in enumerate((22.7, 500.0, 261.35))]
    # MountainCar: random -200, best -100.8; -150.4 is half way
    car = [row("fdql", "MountainCar-v0", s, -150.4, passed=False) for s in range(5)]
    found = answer(
        scores, capsys, write(tmp_path / "a.json", cart), write(tmp_path / "b.json", car)
    )
    first, second = found["rows"]
    assert (first["env"], first["seeds"], first["score"]) == ("CartPole-v1", 3, 261.35)
    assert (first["score_min"], first["score_max"]) == (22.7, 500.0)
    assert (first["normalised"], first["at_85"], first["passed"]) == (0.5, 1, 3)
    assert (first["line_85"], first["strict_line"]) == (428.4, 475.0)
    assert (first["seconds"], first["env_steps"], first["updates"]) == (2.0, 3000, 30)
    assert (second["normalised"], second["at_85"], second["passed"]) == (0.5, 0, 0)
    over_all = found["over_all"][0]
    # 0, 0.5 six times, 1: of eight scores the outer two on each side fall out
    assert (over_all["envs"], over_all["runs"], over_all["iqm"]) == (2, 8, 0.5)
    assert over_all["low"] <= over_all["iqm"] <= over_all["high"]


def test_interquartile_mean_by_hand(scores):
    # sorted 0 .1 .2 .3 .5 .8 1 9: the middle four have mean 1.8 / 4
    mixed = np.array([0.3, 9.0, 0.0, 0.5, 1.0, 0.2, 0.8, 0.1])
    assert scores.interquartile_mean(mixed) == pytest.approx(0.45)
    assert scores.interquartile_mean(np.array([0.0, 0.5, 1.0])) == pytest.approx(0.5)


def test_the_interval_holds_the_mean_and_shrinks(scores):
    random = np.random.default_rng(5)
    widths = []
    for seeds in (4, 64):
        by_env = {env: random.uniform(0.2, 1.0, seeds) for env in "abc"}
        low, high = scores.interval(by_env)
        mean = scores.interquartile_mean(np.concatenate(list(by_env.values())))
        assert low < mean < high
        assert scores.interval(by_env) == (low, high)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert scores.interval({"a": np.array([0.5]), "b": np.array([0.9])}) is None


def test_every_task_has_a_reference(scores):
    for env, task in scores.TASKS.items():
        reference = scores.REFERENCES[env]
        assert reference.random < reference.line < reference.best
        assert task.line is None or reference.normalised(task.line) > 0.849


def test_failed_runs_are_listed_and_left_out(scores, capsys, tmp_path):
    rows = [
        row("fdql", "CartPole-v1", 0, 500.0),
        row("fdql", "CartPole-v1", 1, 90.0, passed=False, error="gone", exit_code=1),
        row("fdql", "CartPole-v1", 2, None, passed=False),
    ]
    found = answer(scores, capsys, write(tmp_path / "a.json", rows))
    assert (found["rows"][0]["seeds"], found["over_all"][0]["low"]) == (1, None)
    assert [text.split(":")[0] for text in found["left_out"]] == [
        "fdql CartPole-v1 seed 1", "fdql CartPole-v1 seed 2",
    ]  # fmt: skip


GOOD = row("fdql", "CartPole-v1", 0, 500.0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "JSONDecodeError"),
        ('{"format": 1, "runs": [', "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"format": 1, "runs": []}', "no runs"),
        ('{"format": 2, "runs": [1]}', "format 2, not 1"),
        (json.dumps({"format": 1, "runs": [{"who": "fdql"}]}), "'env'"),
        (json.dumps({"format": 1, "runs": [GOOD | {"curve": [[1, 2]]}]}), "curve"),
        (json.dumps({"format": 1, "runs": [GOOD | {"score": float("nan")}]}), "score nan"),
        (json.dumps({"format": 1, "runs": [GOOD | {"env": "Mine-v0"}]}), "references.py"),
    ],
)
def test_a_damaged_file_is_refused(scores, capsys, tmp_path, text, why):
    path = tmp_path / "damaged.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        scores.main([str(path)])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert str(path) in said
    assert why in said
    assert "bench/learning.py" in said


def test_a_missing_file_and_a_run_twice_are_refused(scores, capsys, tmp_path):
    twice = [write(tmp_path / name, [GOOD]) for name in ("a.json", "b.json")]
    for words in ([str(tmp_path / "none.json")], twice):
        with pytest.raises(SystemExit):
            scores.main(words)
        said = capsys.readouterr().err
        assert all(word in said for word in words)


def test_the_figure_is_written(tmp_path):
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("needs the extra plot")
    rows = [row("fdql", "CartPole-v1", s, 480.0 + s) for s in range(3)]
    rows += [row("somebody", "CartPole-v1", 0, 100.0, passed=False)]
    rows += [row("sb3-sac", "HalfCheetahBulletEnv-v0", 0, 100.0, passed=False)]
    target = tmp_path / "new" / "learning.png"
    words = [write(tmp_path / "a.json", rows), "--figure", str(target)]
    # a process of its own: matplotlib keeps its font files open
    done = subprocess.run(
        [sys.executable, str(BENCH / "scores.py"), *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["over_all"][0]["who"] == "fdql"
    assert target.read_bytes().startswith(b"\x89PNG")


def test_the_mean_curve_ends_with_the_shortest_run(scores):
    from peers.figure import mean_curve

    x = [np.array([1.0, 4.0]), np.array([2.0, 8.0])]
    y = [np.array([0.0, 3.0]), np.array([10.0, 40.0])]
    grid, mean = mean_curve(x, y)
    assert (grid[0], grid[-1]) == (pytest.approx(2.0), pytest.approx(4.0))
    assert (mean[0], mean[-1]) == (pytest.approx(5.5), pytest.approx(11.5))  # (1+10)/2, (3+20)/2
    assert mean_curve([x[0], x[0] + 9.0], y) is None


def test_without_matplotlib_the_extra_is_named(scores, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit):
        scores.main([write(tmp_path / "a.json", [GOOD]), "--figure", str(tmp_path / "x.png")])
    assert '".[plot]"' in capsys.readouterr().err
