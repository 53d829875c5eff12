"""`fdql eval`: episodes with a trained policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fdql.outlet import told


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Play episodes with a trained policy."""

    run: str
    """Run folder, or a policy.safetensors file."""
    episodes: int = 20
    """Number of episodes, at most 10,000."""
    env: str | None = None
    """Environment, when not the one it was trained on."""
    seed: int = 0
    """Seed of the episodes' starts."""
    which: str = "best"
    """Of a run folder. best: the policy with the best evaluation; last: the last one; 1 to 10: by
    rank.
    """
    epsilon: float | None = None
    """Share of random actions, 0: greedy; None: as in the run's evaluations (eval.epsilon)."""
    video: bool = False
    """Film the first episode too, into videos/ of the run folder."""


def run(words: list[str]) -> int:
    """Play the episodes and print what they returned. Returns the exit code."""
    import tyro

    positional = (tyro.conf.PositionalRequiredArgs,)
    a = tyro.cli(EvalArguments, args=words, prog="fdql eval", config=positional)
    from fdql.play import check_numbers, evaluate, load
    from fdql.probe import own_frames
    from fdql.proc.arena import EnvFailedError

    check_numbers(a.episodes, a.seed, a.epsilon or 0.0)
    policy, film = load(a.run, a.which), ""
    if a.epsilon is not None:
        policy = replace(policy, epsilon=a.epsilon)
    try:
        if a.video:  # first: what cannot be drawn is said before anything is played
            from fdql.video import record

            film = record(policy, a.env, a.seed, Path(a.run))
        result = evaluate(policy, a.env, a.episodes, a.seed)
    except EnvFailedError as error:
        frames = own_frames(error.__cause__ or error)
        told("\n  ".join([f"fdql: {error}", *frames]))
        return 1
    low_high = result.interval
    interval = f"95 % of the mean {low_high[0]:.1f} to {low_high[1]:.1f}, " if low_high else ""
    print(
        f"{result.mean:.1f} +- {result.std:.1f} over {a.episodes} episodes "
        f"({interval}min {result.returns.min():.1f}, max {result.returns.max():.1f}, "
        f"mean length {result.lengths.mean():.0f})"
        + (f"; {result.cut} cut after {policy.longest_episode:,} steps" if result.cut else "")
        + (f"; {policy.epsilon:g} of the actions random" if policy.epsilon else "")
    )
    if film:
        print(film)
    return 0
