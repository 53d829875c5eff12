"""Who is measured: ours, the peers and the limits, in groups that take turns."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from peers.runs import ROOT, usable_cores

from rates import NULL
from rates.acting import act
from rates.command import read, read_many
from rates.reading import Contestant, Reading, Unavailable
from rates.together import run
from rates.training import SHAPES, train

ME = "python bench/throughput.py"
PIXELS = "ALE/Pong-v5"
LIMITS = str(ROOT / "bench" / "rates" / "limits.py")
PEERS = ROOT / "bench" / "peers"


def absent(reason: str) -> Callable[[], Reading]:
    """The reading of somebody who cannot be measured."""

    def say() -> Reading:
        raise Unavailable(reason)

    return say


def groups(args: Namespace) -> list[list[Contestant]]:
    """Every group that the arguments ask for, in the order of the table."""
    found = [[limit("all", "memcpy", "byte/s", "memcpy")]] if "limits" in args.only else []
    if "acting" in args.only:
        found += [pixels(args) if e == PIXELS else acting(e, args) for e in args.env]
    if "training" in args.only:
        found += [training(s, args) for s in args.shape]
    if "together" in args.only:
        found += [[together(e, args)] for e in args.env]
    return found


def limit(subject: str, who: str, unit: str, *words: str) -> Contestant:
    """A limit of one core."""
    command = [sys.executable, LIMITS, *words]
    return Contestant(
        kind="limits", subject=subject, who=f"limit: {who}", unit=unit,
        command=shown(command), read=lambda: read(command, cores=1),
    )  # fmt: skip


def shown(words: list[str]) -> str:
    """A command as a reader types it in the checkout."""
    short = [w.replace(f"{ROOT}/", "") for w in words]
    return " ".join(["python" if short[0] == sys.executable else short[0], *short[1:]])


def flags(args: Namespace) -> str:
    """Those that change what is measured, for the command of a row."""
    said = [f"--seconds {args.seconds:g}", f"--repeats {args.repeats}"]
    said += [] if args.workers is None else [f"--workers {args.workers}"]
    said += [] if args.envs_per_worker is None else [f"--envs-per-worker {args.envs_per_worker}"]
    return " ".join(said)


def peer(kind: str, subject: str, who: str, venv: str, script: str, cores: int, args: Namespace,
         *words: str) -> Contestant:  # fmt: skip
    """A library in its own virtual environment."""
    unit = "updates/s" if kind == "training" else "steps/s"
    python = str(Path(args.venvs) / venv / "bin" / "python")
    command = [python, str(PEERS / script), *words, "--seconds", f"{args.seconds:g}"]
    reading = absent("--quick leaves the peers out") if args.quick else None
    return Contestant(
        kind=kind, subject=subject, who=who, unit=unit, command=shown(command),
        read=reading or (lambda: read(command, cores=cores)),
    )  # fmt: skip


def acting(env: str, args: Namespace, *, peers: bool = True) -> list[Contestant]:
    """Ours, the raw environment on one and on all cores, and who else acts in it."""
    cores = usable_cores()
    name = "null" if env == NULL else env
    words = ["raw", "--env", env, "--seconds", f"{args.seconds:g}"]
    command = [sys.executable, LIMITS, *words]

    def ours() -> Reading:
        return act(env, args.seconds, workers=args.workers, envs_per_worker=args.envs_per_worker)

    group = [
        Contestant(
            kind="acting", subject=name, who="fdql", unit="steps/s", read=ours,
            command=f"{ME} --only acting --env {name} {flags(args)}",
        ),
        Contestant(
            kind="acting", subject=name, who="limit: env.step, 1 core", unit="steps/s",
            command=shown(command), read=lambda: read(command, cores=1),
        ),
        Contestant(
            kind="acting", subject=name, who=f"limit: env.step, {cores} cores", unit="steps/s",
            command=f"{cores} x {shown(command)}", read=lambda: read_many(command, cores),
        ),
    ]  # fmt: skip
    if env == NULL or not peers:
        return group

    def add(who: str, venv: str, script: str, *more: str) -> None:
        group.append(peer("acting", env, who, venv, script, cores, args, *more, "--env", env))

    sb3, vector = "rate_stable_baselines.py", "rate_vector_env.py"
    add("sb3 dummy, 16 envs", "sb3", sb3, "acting", "--vec", "dummy")
    add("sb3 subproc, 16 envs", "sb3", sb3, "acting", "--vec", "subproc")
    add("gymnasium async, torch", "sb3", vector, "--vec", "gymnasium")
    add("sample-factory", "sample-factory", "rate_sample_factory.py", "--workers", str(cores))
    if "Bullet" not in env:  # its environments in C++ are others than Bullet's
        add("envpool (C++ env), torch", "envpool", vector, "--vec", "envpool")
    return group


def pixels(args: Namespace) -> list[Contestant]:
    """Ours, the raw environment, and ale_py's vector environment alone and with a policy."""
    seconds = ["--seconds", f"{args.seconds:g}"]
    group = acting(PIXELS, args, peers=False)
    for threads in sorted({1, usable_cores()}):
        command = [sys.executable, LIMITS, "atari", "--threads", str(threads), *seconds]
        group.append(
            Contestant(
                kind="acting", subject=PIXELS, who=f"limit: AtariVectorEnv, {threads} threads",
                unit="steps/s", command=shown(command),
                read=lambda command=command, n=threads: read(command, cores=n),
            )
        )  # fmt: skip
    for vec, venv, who in (
        ("atari", Path(sys.prefix), "AtariVectorEnv, torch policy"),
        ("envpool", "envpool", "envpool, torch policy"),
    ):
        words = ("--vec", vec, "--env", "Pong-v5", "--threads", str(usable_cores()))
        script = "rate_vector_env.py"
        group.append(peer("acting", PIXELS, who, str(venv), script, usable_cores(), args, *words))
    return group


def training(name: str, args: Namespace) -> list[Contestant]:
    """Ours beside the matrix product and the libraries whose default shape it is; one core each."""
    shape = SHAPES[name]
    gemm = [sys.executable, LIMITS, "gemm"]
    group = [
        Contestant(
            kind="training", subject=name, who="fdql", unit="updates/s",
            command=f"{ME} --only training --shape {name} {flags(args)}",
            read=lambda: train(name, args.seconds),
        ),
        Contestant(
            kind="training", subject=name, who="limit: float32 GEMM", unit="multiply-adds/s",
            command=shown(gemm), read=lambda: read(gemm, cores=1),
        ),
    ]  # fmt: skip
    size = ("--width", str(shape.width), "--batch", str(shape.batch))
    for library in shape.peers:
        if library == "rltools":
            peers = peer("training", name, "rltools", library, "rate_rltools.py", 1, args)
        else:
            words = ("training", "--library", library, *size)
            script = "rate_stable_baselines.py"
            peers = peer("training", name, f"{library} SAC", library, script, 1, args, *words)
        group.append(peers)
    return group


def together(env: str, args: Namespace) -> Contestant:
    """A whole run."""
    name = "null" if env == NULL else env

    def ours() -> Reading:
        return run(
            env, max(3.0, args.seconds), workers=args.workers, envs_per_worker=args.envs_per_worker
        )

    return Contestant(
        kind="together", subject=name, who="fdql", unit="steps/s", read=ours,
        command=f"{ME} --only together --env {name} {flags(args)}",
    )  # fmt: skip
