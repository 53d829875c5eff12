"""Runs read back, drawn and put on a page: means by hand, groups, files that nobody can trust."""

from __future__ import annotations

import html.parser
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fdql.history
import numpy as np
import pytest
import tomli_w
from fdql.cli import main
from fdql.config import ConfigError
from fdql.history import Curve, find_runs, groups, load_history
from fdql.page import page, report
from fdql.plot import draw, mean_over, read_curves

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="the extra plot is not installed"
)

EVIL = "<script>alert(1)</script>\"'&$x^2$ _"


@pytest.fixture(scope="module", autouse=True)
def open_fonts() -> None:
    """matplotlib keeps the files of its fonts open: not what a test leaves behind."""
    from matplotlib.figure import Figure

    figure = Figure()
    figure.text(0, 0, "text")
    figure.savefig(io.BytesIO(), format="png")


def make_run(folder: Path, env: str, seed: int, **settings: Any) -> Path:
    """A run folder as a run leaves it: rows at 100 and 200 steps, one evaluation each."""
    (folder / "best").mkdir(parents=True)
    (folder / "config.toml").write_text(tomli_w.dumps({"env": env, "seed": seed, **settings}))
    rows = []
    for i in (1, 2):
        plain = {"time/time_elapsed": float(i), "time/total_timesteps": 100 * i,
                 "train/samples_per_insert": 32.0, "eval/mean_reward": 7.0}  # fmt: skip
        evaluated = {"eval/updates": 10 * i, "eval/env_steps": 100 * i - 10,
                     "eval/mean_reward": float(seed + i)}  # fmt: skip
        rows += [plain, plain | evaluated]
    cut = '{"time/time_elapsed": 3.0, "time/tot'
    (folder / "metrics.jsonl").write_text("\n".join([*map(json.dumps, rows), cut]))
    share = {"count": 3, "per_second": 1.0, "share": 0.5, "p50": 1.0, "p99": 2.0, "p99.9": 3.0}
    account = {"busy": 0.6, "waiting": 0.3, "other": 0.1, "core": 0.6, "queued": 0.0,
               "stages_us": {"update": share}, "waits_us": {}}  # fmt: skip
    summary = {"exit_reason": "solved", "worker_restarts": 2, "processes": {"trainer": account},
               "bottleneck": "the trainer is busy", "eval_return_mean": 5.0}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    entry = {"updates": 10, "env_steps": 90, "mean": 1.5, "std": 0.5, "low": 1.0, "high": 2.0,
             "episodes": 20}  # fmt: skip
    index = {"format": 1, "policies": [entry]}
    (folder / "best" / "leaderboard.json").write_text(json.dumps(index))
    return folder


def curve(*points: tuple[float, float]) -> Curve:
    x, values = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    return Curve(x / 100, x, values)


def test_an_evaluation_is_one_point_and_a_cut_row_none(tmp_path: Path):
    make_run(tmp_path / "r", "CartPole-v1", 3)
    (run,) = find_runs([str(tmp_path)])
    curves, known = run.curves(["eval/mean_reward", "train/samples_per_insert", "none"])
    found = curves["eval/mean_reward"]
    assert (found.steps.tolist(), found.values.tolist()) == ([90, 190], [4, 5])
    assert found.over("seconds").tolist() == [1, 2]
    assert len(curves["train/samples_per_insert"].values) == 4
    assert len(curves["none"].values) == 0
    assert "eval/updates" in known


def test_a_run_that_went_back_has_one_line(tmp_path: Path):
    run = make_run(tmp_path / "r", "CartPole-v1", 3)
    again = {"time/time_elapsed": 9.0, "time/total_timesteps": 150, "eval/updates": 15,
             "eval/env_steps": 140, "eval/mean_reward": 8.0}  # fmt: skip
    with (run / "metrics.jsonl").open("a") as rows:
        rows.write("\n" + json.dumps(again) + "\n")
    (found,) = find_runs([str(run)])
    curves, _ = found.curves(["eval/mean_reward", "train/samples_per_insert"])
    assert curves["eval/mean_reward"].steps.tolist() == [90, 140]
    assert curves["train/samples_per_insert"].steps.tolist() == [100, 100, 200, 200]


def test_a_mean_is_taken_where_all_have_values():
    # on 1..3: one is x, the other 3: at 1 mean 2, at 3 mean 3; deviation of {1, 3} sqrt 2,
    # t(1) = 12.7062: 2 +- 12.7062 * sqrt 2 / sqrt 2
    mean = mean_over([curve((0, 0), (4, 4)), curve((1, 3), (3, 3))], "steps")
    assert (mean.x[0], mean.x[-1]) == (1, 3)
    assert (mean.mean[0], mean.mean[-1]) == (2, 3)
    assert (mean.low[0], mean.high[0]) == pytest.approx((2 - 12.7062, 2 + 12.7062))
    assert mean.low[-1] == mean.high[-1] == 3
    assert mean_over([curve((0, 0), (4, 4))], "steps") is None
    assert mean_over([curve((0, 0), (1, 1)), curve((2, 0), (3, 1))], "steps") is None


def test_groups_differ_in_more_than_the_seed(tmp_path: Path):
    for seed in (0, 1):
        make_run(tmp_path / f"a{seed}", "CartPole-v1", seed, ratio=32.0)
    make_run(tmp_path / "b", "CartPole-v1", 0, ratio=16.0, workers=2)
    make_run(tmp_path / "p", "Pendulum-v1", 0, ratio=8.0)
    found = groups(find_runs([str(tmp_path)]))
    assert [(g.env, g.label(), len(g.runs)) for g in found] == [
        ("CartPole-v1", "ratio 32.0, workers unset, 2 seeds", 2),
        ("CartPole-v1", "ratio 16.0, workers 2, seed 0", 1),
        ("Pendulum-v1", "seed 0", 1),
    ]


def test_a_label_counts_the_runs_of_its_mean(tmp_path: Path):
    """A run that ended with its first evaluation has no line, so the mean is of the other two."""
    for seed in (0, 1, 2):
        make_run(tmp_path / f"r{seed}", "CartPole-v1", seed)
    rows = tmp_path / "r2" / "metrics.jsonl"
    rows.write_text("\n".join(rows.read_text().splitlines()[:2]))
    found = groups(find_runs([str(tmp_path)]))
    read = read_curves(found, ["eval/mean_reward"])
    assert mean_over([c["eval/mean_reward"] for c, _ in read[0]], "steps").runs == 2
    drawn = draw(found, read, "eval/mean_reward", "steps", "svg").decode()
    assert re.findall(r"\d of \d seeds|\d seeds", drawn) == ["2 of 3 seeds"]


def test_runs_are_found_once(tmp_path: Path):
    make_run(tmp_path / "CartPole-v1" / "x", "CartPole-v1", 0)
    both = [str(tmp_path), str(tmp_path / "CartPole-v1" / "x")]
    assert len(find_runs(both)) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="there is no run"):
        find_runs([str(tmp_path / "empty")])


@pytest.mark.parametrize(
    ("words", "begins"), [(["p.png"], b"\x89PNG"), (["p.svg", "--x", "seconds"], b"<?xml")]
)
def test_a_picture_is_written(tmp_path: Path, monkeypatch, capsys, words, begins):
    make_run(tmp_path / "a", "CartPole-v1", 0)
    monkeypatch.chdir(tmp_path)
    assert main(["plot", "a", "--out", *words]) == 0
    assert (tmp_path / words[0]).read_bytes().startswith(begins)
    assert words[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["plot", "a", "--key", "eval/mean_rewrd"], "eval/mean_reward"),
        (["plot", "a", "--out", "p.pdf"], "p.png works"),
        (["plot", "b"], "there is no run"),
        (["plot", "a", "--out", "none/p.png"], "cannot be written"),
        (["report", "a", "--out", "p.txt"], "report.html works"),
    ],
)
def test_wrong_use_is_explained(tmp_path: Path, monkeypatch, capsys, words, says):
    make_run(tmp_path / "a", "CartPole-v1", 0)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert says in capsys.readouterr().err


class Elements(html.parser.HTMLParser):
    """Names of the elements of a page, and what could load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.dangerous: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        for name, value in attrs:
            loads = name in ("src", "href", "xlink:href", "action", "data")
            inside = (value or "").startswith(("#", "data:video/mp4;base64,"))
            if name.startswith("on") or (loads and not inside):
                self.dangerous.append((tag, name, value))


def test_what_a_run_says_is_text_on_the_page(tmp_path: Path):
    run = make_run(tmp_path / "run", EVIL, 0, **{EVIL: EVIL})
    summary = json.loads((run / "summary.json").read_text())
    strange = {"exit_reason": EVIL, "problem": EVIL, "bottleneck": EVIL, "wall_seconds": EVIL,
               "env_steps": 10**400, "eval_return_interval": [EVIL, EVIL], "mode": [EVIL] * 10**4,
               "processes": {EVIL: {"busy": EVIL, "stages_us": {EVIL: EVIL}, "waits_us": 3}},
               "first_time_at_stop_return": EVIL}  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary | strange))
    (run / "videos").mkdir()
    (run / "videos" / "<b>.mp4").write_bytes(b"\0\0\0\x20ftyp")
    (run / "videos" / "secret.mp4").symlink_to(run / "config.toml")
    (run / "videos" / "text.mp4").write_text("no film")
    shown = page(find_runs([str(tmp_path)]))
    elements = Elements()
    elements.feed(shown)
    assert not elements.dangerous
    assert not elements.names & {"script", "b.mp4", "iframe", "img", "link", "foreignobject"}
    assert "&lt;script&gt;" in shown
    assert "<b>.mp4" not in shown
    assert "default-src 'none'" in shown
    assert re.findall('base64,([^"]*)', shown) == ["AAAAIGZ0eXA="]


@pytest.mark.parametrize("name", ["config.toml", "summary.json", "best/leaderboard.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b"[" * 100_000, b"a = 1", None])
def test_a_damaged_file_costs_its_part_of_the_page(tmp_path: Path, name, content):
    run = make_run(tmp_path / "run", "CartPole-v1", 0)
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    assert page(find_runs([str(tmp_path)])).endswith("</html>\n")


def test_rows_that_are_no_rows_are_passed_over(tmp_path: Path):
    run = make_run(tmp_path / "run", "CartPole-v1", 0)
    good = (run / "metrics.jsonl").read_bytes()
    bad = b'\n[]\n3\n\xff\n{"time/time_elapsed": 1e999}\n{"eval/updates": true}\n' + b"[" * 100_000
    huge = b'\n{"time/time_elapsed": 1' + b"0" * 4000 + b', "time/total_timesteps": 1}\n'
    (run / "metrics.jsonl").write_bytes(bad + b"\n" + good + huge)
    (found,) = find_runs([str(tmp_path)])
    assert found.curves(["eval/mean_reward"])[0]["eval/mean_reward"].values.tolist() == [1, 2]
    drawn = groups([found])
    read = read_curves(drawn, ["eval/mean_reward"])
    assert draw(drawn, read, "eval/mean_reward", "steps", "svg").startswith(b"<?xml")


def test_the_metrics_of_a_run_are_read_once_for_a_page(tmp_path: Path, monkeypatch):
    make_run(tmp_path / "r", "CartPole-v1", 0)
    read: list[Path] = []
    rows = fdql.history._rows

    def counted(file: Path) -> Iterator[dict[str, float]]:
        read.append(file)
        return rows(file)

    monkeypatch.setattr("fdql.history._rows", counted)
    assert page(find_runs([str(tmp_path)])).count("<svg") > 1
    assert read == [tmp_path / "r" / "metrics.jsonl"]


@pytest.mark.parametrize(
    "name", ["config.toml", "summary.json", "metrics.jsonl", "best", "best/leaderboard.json"]
)
def test_what_a_link_points_to_is_not_on_the_page(tmp_path: Path, name: str):
    """A page is passed on: a stranger's run must not put files of its reader there."""
    run, own = (make_run(tmp_path / n, "Pendulum-v1", 77) for n in ("run", "own"))
    for file in (own / "config.toml", own / "summary.json"):
        file.write_text(file.read_text().replace("77", '"SECRET"').replace("solved", "SECRET"))
    (own / "best" / "leaderboard.json").write_text(
        (own / "best" / "leaderboard.json").read_text().replace("1.5", "123456.5")
    )
    (own / "metrics.jsonl").write_text(
        (own / "metrics.jsonl").read_text().replace('eval/mean_reward": 7', 'time/fps": 9')
    )
    shown = page([load_history(own)])
    assert "SECRET" in shown
    assert "123,456.5" in shown
    shutil.rmtree(run / name) if name == "best" else (run / name).unlink()
    (run / name).symlink_to(own / name)
    shown = page([load_history(run)])
    assert "SECRET" not in shown
    assert "123,456.5" not in shown
    assert ("steps per second" not in shown) or name != "metrics.jsonl"


def test_a_film_that_is_still_written_is_not_on_the_page(tmp_path: Path):
    run = make_run(tmp_path / "run", "CartPole-v1", 0)
    (run / "videos").mkdir()
    for name in ("a.mp4", ".b.part.mp4"):
        (run / "videos" / name).write_bytes(b"\0\0\0\x20ftyp")
    assert [film.name for film in load_history(run).videos] == ["a.mp4"]


def test_films_behind_a_link_are_not_on_the_page(tmp_path: Path):
    run, own = make_run(tmp_path / "run", "CartPole-v1", 0), tmp_path / "own"
    own.mkdir()
    (own / "a.mp4").write_bytes(b"\0\0\0\x20ftyp")
    (run / "videos").symlink_to(own)
    assert load_history(run).videos == []


def test_a_page_of_strange_text_is_written(tmp_path: Path):
    run = make_run(tmp_path / "run", "CartPole-v1", 0)
    (run / "summary.json").write_text('{"problem": "\\ud800", "exit_reason": "half"}')
    assert report([str(run)], tmp_path / "p.html").endswith("p.html")
    assert "half" in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * 20_000 + " = 1",
        "a = " + "[" * 500 + "]" * 500,
        "a = 0x" + "f" * 20_000,
        "a." * 20 + "a = 1",
    ],
)
def test_settings_that_nobody_prints_cost_their_table(tmp_path: Path, text: str):
    run = make_run(tmp_path / "run", "CartPole-v1", 0)
    (run / "config.toml").write_text(text)
    assert load_history(run).settings == {}
    assert page([load_history(run)]).endswith("</html>\n")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_a_browser_shows_the_page(tmp_path: Path):
    """Opened in headless Chromium: text, curves and the bar of a process are on the picture."""
    from PIL import Image

    for seed in (0, 1):
        make_run(tmp_path / f"r{seed}", "CartPole-v1", seed)
    (tmp_path / "page.html").write_text(page(find_runs([str(tmp_path)])))
    assert CHROMIUM is not None
    shot = tmp_path / "page.png"
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
        "--disable-background-networking", "--disable-component-update", "--no-first-run",
        "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1600",
        f"--screenshot={shot}", (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    home = os.environ | {"HOME": str(tmp_path)}
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, env=home)
    assert shot.is_file(), out.stderr
    with Image.open(shot) as image:
        picture = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(picture, axis=0)) > 50
    # The first group's colour: its line, and the busy part of the bars.
    assert (np.abs(picture.astype(int) - (0x00, 0x72, 0xB2)).max(axis=1) < 8).sum() > 200
