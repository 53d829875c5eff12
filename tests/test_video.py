"""An evaluation episode as MP4: each step a picture, the episode that was evaluated, no rest."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from fdql.cli import main
from fdql.config import ConfigError
from fdql.play import evaluate, load
from fdql.supervisor import train
from plans import small_config

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None, reason="the extra video is not installed"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of CartPole that learned next to nothing."""
    folder = tmp_path_factory.mktemp("runs") / "cartpole"
    config = small_config("CartPole-v1", total_timesteps=200, serial=True, run_dir=str(folder))
    assert train(config, quiet=True).exit_code == 0
    return folder


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "videos").glob("*"))


def pictures(file: Path) -> np.ndarray:
    """(n, height, width, 3) uint8."""
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(file))
    width, height = next(reader)["size"]
    frames = [np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader]
    return np.stack(frames)


def test_the_first_episode_is_filmed(run: Path, capsys):
    assert main(["eval", str(run), "--episodes", "2", "--video", "--which", "last"]) == 0
    (name,) = files(run)
    policy = load(run, "last")
    assert name == f"updates-{policy.facts['updates']}-seed-0.mp4"
    first = evaluate(policy, episodes=1)
    assert f"return {first.mean:.1f}" in capsys.readouterr().out
    film = pictures(run / "videos" / name)
    # CartPole is 600 x 400: a picture before each step, and one of how it ended
    assert film.shape == (first.lengths[0] + 1, 400, 600, 3)
    assert (film[0] != film[-1]).any()


def test_what_cannot_be_drawn_is_explained_and_leaves_nothing(
    run: Path, own_environments, monkeypatch
):
    from fdql import video

    policy, before = load(run), (run / "videos").exists() and files(run)
    with pytest.raises(ConfigError, match=r"def Counting\(render_mode=None\) works"):
        video.film(policy, policy_spec("own_envs:Counting"), 0, run / "videos" / "x.mp4")
    monkeypatch.setattr(gym.envs.classic_control.CartPoleEnv, "render", lambda self: None)
    with pytest.raises(ConfigError, match="gives no picture"):
        video.record(policy, None, 1, run)
    assert ((run / "videos").exists() and files(run)) == before
    monkeypatch.setattr("fdql.play.evaluate", lambda *_: pytest.fail("it was played"))
    assert main(["eval", str(run), "--video"]) == 2


def policy_spec(env: str):
    from fdql.envs import describe, make_env

    made = make_env(env)
    spec = describe(env, made)
    made.close()
    return spec


def test_an_episode_that_breaks_leaves_no_film(run: Path, monkeypatch):
    from fdql import video

    film = video.Film(run / "broken.mp4", 30.0)
    film.add(np.zeros((10, 11, 3), np.uint8))
    film.close(keep=False)
    assert not list(run.glob("*broken*"))
    film = video.Film(run / "short.mp4", 30.0)
    for _ in range(9):
        film.add(np.zeros((10, 10, 3), np.uint8))
    film._writer.close()
    (run / ".short.part.mp4").write_bytes((run / ".short.part.mp4").read_bytes()[:200])
    with pytest.raises(RuntimeError, match="wrote 0 of 9 pictures; is the disk full"):
        film.close(keep=True)
    assert not list(run.glob("*short*"))
    film = video.Film(run / "odd.mp4", 30.0)
    film.add(np.zeros((11, 11, 3), np.uint8))
    film.close(keep=True)
    assert pictures(run / "odd.mp4").shape == (1, 12, 12, 3)


def test_a_missing_extra_is_named(run: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert main(["eval", str(run), "--episodes", "1", "--video"]) == 2
    out, err = capsys.readouterr()
    assert (out, '".[video]"' in err) == ("", True)  # before anything was played
