"""What limits a run, in one sentence, from the shares of its processes' time. Pure arithmetic.

The processes form a loop: steps -> batches -> updates -> the ratio lets more steps begin. The one
that is busy nearly all the time is the limit; when none is, they wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Share = Callable[..., float]  # of a role: busy, or one of its stages and waits

ROLES = ("trainer", "loader", "inference", "worker")  # those that the others wait for
NAMES = {
    "trainer": "the trainer is",
    "loader": "the loader is",
    "inference": "inference is",
    "worker": "the workers are",
}

TAKEN = 0.75  # a process that waits for less than the rest of its time limits the others
QUEUED = 0.15  # share of the time without a core from which cores are the limit
EVALUATION = 0.15  # share of a core from which evaluation is worth naming
HELD = 0.25  # share of the time from which being held by the ratio is worth naming
SPARE = 0.25  # of a core that must be idle for another process to help


@dataclass(frozen=True, slots=True)
class Setting:
    """What the shares have to be read against. samples_per_insert: None is `free`."""

    cores: int
    workers: int
    envs_per_worker: int
    samples_per_insert: float | None
    serial: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What limits a run.

    limit      start, lockstep, evaluation, cores, updates, replay, inference, environments, steps,
               ratio or hand-over
    sentence   at most 160 characters, with what would move it
    """

    limit: str
    sentence: str


def bottleneck(shares: Mapping[str, Mapping[str, float]], setting: Setting) -> Verdict:
    """The limit of a run.

    shares   role -> `busy`, `waiting`, `core`, `queued`, stages, waits -> share of the wall time,
             the workers' mean; what is missing counts as 0
    """

    def share(role: str, name: str = "busy") -> float:
        return shares.get(role, {}).get(name, 0.0)

    if share("trainer") == 0.0:
        return Verdict("start", "no update yet: the run is still collecting its warm-up")
    if setting.serial:
        return _lockstep(share)
    # A process that never waits is the limit even if it is off its core half of the time.
    taken = {name: 1.0 - share(name, "waiting") for name in ROLES if share(name) > 0.0}
    limit = max(taken, key=lambda name: taken[name])
    if taken[limit] < TAKEN:
        return _none_is_busy(share, setting)
    if share(limit, "queued") >= QUEUED:
        return _cores(limit, share, setting)
    if limit == "trainer":
        return _updates(share, setting)
    if limit == "loader":
        return Verdict(
            "replay",
            f"the loader is busy {taken[limit]:.0%}, the trainer waits for it "
            f"{share('trainer', 'wait.batch'):.0%}: the replay is the limit; a smaller "
            "--sac.batch-size would help",
        )
    if limit == "inference":
        return Verdict(
            "inference",
            f"inference is busy {taken[limit]:.0%}, workers wait for actions "
            f"{share('worker', 'wait.actions'):.0%}: inference is the limit; larger rounds "
            f"(--envs-per-worker {2 * setting.envs_per_worker}) would help",
        )
    return _steps(share, setting)


def _lockstep(share: Share) -> Verdict:
    """One process does everything in turn: the largest part is the limit."""
    parts = {
        "updates": share("trainer"),
        "environment steps": share("worker"),
        "inference": share("inference"),
        "evaluation": share("evaluator"),
    }
    most = max(parts, key=lambda name: parts[name])
    return Verdict(
        "lockstep",
        f"{most} take {parts[most]:.0%} of one core's time; without --serial the stages run side "
        "by side",
    )


def _cores(limit: str, share: Share, setting: Setting) -> Verdict:
    """The process that limits the others is itself kept from running."""
    name, queued = NAMES[limit], share(limit, "queued")
    without = f"{name} ready but without a core {queued:.0%} of the time"
    evaluation = share("evaluator", "core")
    if evaluation >= EVALUATION:
        return Verdict(
            "evaluation",
            f"{without} and evaluation takes {evaluation:.0%} of one: a smaller --eval.share or "
            "fewer --eval.episodes would help",
        )
    fewer = f" or --workers {setting.workers - 1}" if setting.workers > 1 else ""
    cores = f"{setting.cores} core" + ("s" if setting.cores > 1 else "")
    return Verdict("cores", f"{without}: {cores} are the limit; more of them{fewer} would help")


def _updates(share: Share, setting: Setting) -> Verdict:
    """The trainer is busy."""
    taken = 1.0 - share("trainer", "waiting")
    sentence = f"the trainer is busy {taken:.0%}: updates are the limit"
    rho, held = setting.samples_per_insert, share("inference", "wait.ratio")
    if rho is None or held < HELD:
        return Verdict("updates", f"{sentence}; a faster core or narrower networks would help")
    return Verdict(
        "updates",
        f"{sentence}, steps are held for it {held:.0%} of the time; a smaller --ratio than "
        f"{rho:g} gives more steps",
    )


def _none_is_busy(share: Share, setting: Setting) -> Verdict:
    """Everybody waits for somebody: the time goes into the hand-over."""
    idle, held = share("trainer", "wait.batch"), share("inference", "wait.ratio")
    if held >= HELD:
        return Verdict(
            "ratio",
            f"held by samples per insert ({setting.samples_per_insert or 0:g}) {held:.0%} of the "
            f"time while the trainer waits {idle:.0%}: a larger --engine.ahead-updates would help",
        )
    return Verdict(
        "hand-over",
        f"no process is busy {TAKEN:.0%} of the time, the trainer waits {idle:.0%}: the hand-over "
        f"is the limit; --envs-per-worker {2 * setting.envs_per_worker} would help",
    )


def _steps(share: Share, setting: Setting) -> Verdict:
    """The workers are busy: inside the environment, or around it."""
    env = share("worker", "step.env") + share("worker", "step.reset")
    if env < share("worker") / 2:
        return Verdict(
            "steps",
            f"workers are busy {share('worker'):.0%}, inside the environment only {env:.0%}: the "
            f"loop is the limit; --envs-per-worker {2 * setting.envs_per_worker} would help",
        )
    used = sum(share(role, "core") for role in (*ROLES, "evaluator"))
    used += (setting.workers - 1) * share("worker", "core")
    more = f"--workers {setting.workers + 1} would help"
    return Verdict(
        "environments",
        f"inference waits for workers {share('inference', 'wait.requests'):.0%} of the time, the "
        f"trainer for data {share('trainer', 'wait.batch'):.0%}: environment steps are the limit; "
        f"{more if setting.cores - used >= SPARE else 'all cores are in use'}",
    )
