"""`fdql eval --video`: an evaluation episode as MP4, drawn without a screen. Extra `video`.

Reads a loaded policy (play.py); frames go from the environment's own rendering straight to ffmpeg.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from fdql.config import ConfigError
from fdql.env_spec import EnvSpec
from fdql.extras import require
from fdql.play import Policy, environment_of
from fdql.proc.arena import AFTERWARDS, Arena, start_seeds

MOST_FRAMES = 9000  # five minutes at 30 a second
ATARI_FPS = 15.0  # a game has 60 pictures a second; a step takes four, of which the last is drawn


class Film:
    """An MP4 that appears under its name when it is complete."""

    def __init__(self, path: Path, fps: float) -> None:
        self._ffmpeg = require("imageio_ffmpeg", "video", "--video")
        self.path, self.fps, self.frames = path, fps, 0
        self._part = path.with_name(f".{path.stem}.part.mp4")
        self._writer: Generator[None, Any, None] | None = None

    def add(self, frame: Any) -> None:
        """One more picture, (height, width, 3) uint8; all of one size."""
        picture = np.ascontiguousarray(frame, dtype=np.uint8)
        if self._writer is None:
            self.path.parent.mkdir(exist_ok=True)
            height, width = picture.shape[:2]
            # Players want even sizes (yuv420p); ffmpeg scales by a pixel where they are not.
            self._writer = self._ffmpeg.write_frames(
                str(self._part), (width, height), fps=self.fps, codec="libx264",
                macro_block_size=2, ffmpeg_log_level="error",
                output_params=["-movflags", "+faststart"],
            )  # fmt: skip
            assert self._writer is not None
            self._writer.send(None)
        self._writer.send(picture)
        self.frames += 1

    def close(self, *, keep: bool) -> None:
        """End it; without `keep` nothing stays. Raises RuntimeError when not all of it was written:
        ffmpeg does not tell.
        """
        if self._writer is not None:
            self._writer.close()
        if keep and self.frames:
            try:
                written, _ = self._ffmpeg.count_frames_and_secs(str(self._part))
            except RuntimeError:
                written = 0
            if written < self.frames:
                self._part.unlink(missing_ok=True)
                raise RuntimeError(
                    f"{self.path}: ffmpeg wrote {written} of {self.frames} pictures; "
                    "is the disk full?"
                )
            os.replace(self._part, self.path)
        else:
            self._part.unlink(missing_ok=True)


def record(policy: Policy, env: str | None, seed: int, run: Path) -> str:
    """Film the first episode that `evaluate` plays with this seed, at most MOST_FRAMES of it, into
    videos/ of the run folder (beside the file, when `run` is one). Returns what to say of it.

    Raises ConfigError as environment_of does, when the environment draws no pictures, and when the
    extra is missing; EnvFailedError where the environment raises.
    """
    require("imageio_ffmpeg", "video", "--video")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame then needs no screen
    spec = environment_of(policy, env, seed)
    updates = policy.facts.get("updates")
    stem = f"updates-{updates}" if isinstance(updates, int) else "policy"
    path = (run if run.is_dir() else run.parent) / "videos" / f"{stem}-seed-{seed}.mp4"
    seconds, value = film(policy, spec, seed, path)
    ended = f"return {value:.1f}" if value is not None else "cut"
    return f"{path}: {seconds:.1f} s, {ended}"


def film(policy: Policy, spec: EnvSpec, seed: int, path: Path) -> tuple[float, float | None]:
    """Write the MP4. Returns the seconds filmed, and the return; None when it was cut."""
    seeds = start_seeds(seed, AFTERWARDS, 1)
    arena = Arena(spec, seeds, policy.longest_episode, policy.discount, policy.epsilon, "rgb_array")
    (drawn,) = arena.envs
    fps = ATARI_FPS if spec.atari else float(drawn.metadata.get("render_fps") or 30)
    movie, done = Film(path, min(max(fps, 1.0), 120.0)), False

    def shoot() -> bool:
        try:
            picture = np.asarray(drawn.render())
        except (Exception, SystemExit) as error:
            raise arena.failed("while it was drawn", error) from error
        if picture.ndim != 3 or picture.shape[-1] != 3:
            raise ConfigError(
                f"env = {spec.env!r}: it gives no picture of (height, width, 3); its render() must "
                "where its render_mode is 'rgb_array'"
            )
        movie.add(picture)
        return movie.frames < MOST_FRAMES

    try:
        result = arena.play(policy.network, shoot)
        if result is not None:
            shoot()  # how it ended
        done = True
    finally:
        movie.close(keep=done)
        arena.close()
    return movie.frames / movie.fps, None if result is None else result.mean
