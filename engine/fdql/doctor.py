"""What this machine and this installation offer a run, what is wrong, and what mends it.

What may crash, hang or take seconds (an environment's first reset, torch) runs in a process of its
own, all of them beside each other and beside the checks (checks.py). It survives a broken
installation.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from fdql import checks
from fdql.apart import signal_name
from fdql.checks import Finding, State
from fdql.requirements import extras, install

FORMAT = 1  # of the report as JSON
PATIENCE_SECONDS = 8.0  # for the processes, counted from the start

# An environment of each extra that brings some: it must be made, reset and stepped.
ENVIRONMENTS = {
    "classic": "CartPole-v1",
    "box2d": "LunarLander-v3",
    "bullet": "HopperBulletEnv-v0",
    "atari": "ALE/Pong-v5",
    "mujoco": "Hopper-v5",
}
_RESET = """
import sys
from fdql.config import ConfigError
from fdql.registry import from_registry
try:
    env = from_registry(sys.argv[1])
except ConfigError as error:
    sys.exit(f"not installed: {error}")
env.reset(seed=0)
env.step(env.action_space.sample())
env.close()
"""
_TORCH = """
import torch
name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
print(f"{torch.version.cuda or ''}|{name}")
"""


def examine() -> list[Finding]:
    """Run every check; at most about ten seconds."""
    began = time.monotonic()
    beside = Beside()
    findings: list[Finding] = []
    for check in (
        checks.python, checks.packages, checks.compiler, checks.extension, checks.simd,
        checks.cores, checks.memory, checks.kernel, checks.files, checks.cache, checks.blas,
    ):  # fmt: skip
        findings += _survived(check)
    findings += beside.findings(began + PATIENCE_SECONDS)
    return findings


def healthy(findings: list[Finding]) -> bool:
    """Nothing is wrong; advice may remain."""
    return all(f.state != "wrong" for f in findings)


def to_dict(findings: list[Finding]) -> dict[str, Any]:
    """The report for --json."""
    return {"format": FORMAT, "healthy": healthy(findings), "checks": [asdict(f) for f in findings]}


def _survived(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What a check found; that it failed, when it did."""
    try:
        return list(check())
    except Exception as error:  # an installation may be broken in any way
        return [Finding(check.__name__, "wrong", f"{type(error).__name__}: {error}", install())]


class Beside:
    """The processes that look at environments and at torch, started at once."""

    def __init__(self) -> None:
        self.missing: list[Finding] = []
        self.resets: dict[str, subprocess.Popen[str]] = {}
        for extra, packages in extras().items():
            absent = [p for p in packages if not _installed(p)]
            if absent:
                text = f"not installed ({', '.join(absent)})"
                self.missing.append(Finding(f"extra {extra}", "advice", text, install(extra)))
            elif extra in ENVIRONMENTS:
                self.resets[extra] = _python_process(_RESET, ENVIRONMENTS[extra])
            else:
                self.missing.append(Finding(f"extra {extra}", "ok", "installed"))
        self.torch = _python_process(_TORCH)

    def findings(self, deadline: float) -> list[Finding]:
        """What they say until `deadline` (time.monotonic); who is late is killed."""
        out = list(self.missing)
        for extra, process in self.resets.items():
            env = ENVIRONMENTS[extra]
            problem = _outcome(process, deadline)[0]
            absent = problem.startswith("not installed")
            state: State = "advice" if absent else "wrong" if problem else "ok"
            found = f"{env}: {problem}" if problem else f"{env} resets and steps"
            out.append(Finding(f"extra {extra}", state, found, install(extra) if problem else ""))
        return [*out, _gpu(*_outcome(self.torch, deadline))]


def _gpu(problem: str, said: str) -> Finding:
    present = Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()
    if problem:
        return Finding("gpu", "wrong", f"torch cannot be imported: {problem}", install())
    build, _, name = said.strip().partition("|")
    if name:
        return Finding("gpu", "ok", f"{name}, CUDA {build}; --device cuda uses it (untested)")
    if present:
        return Finding(
            "gpu", "advice", f"there is one, but torch ({build or 'a CPU build'}) does not see it",
            "nvidia-smi shows whether the driver works; pytorch.org names the CUDA index of torch",
        )  # fmt: skip
    return Finding("gpu", "ok", "none; the learner runs on the CPU")


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _python_process(code: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip


def _outcome(process: subprocess.Popen[str], deadline: float) -> tuple[str, str]:
    """What went wrong, in one line, empty when nothing did; and what it printed."""
    try:
        out, err = process.communicate(timeout=max(0.05, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"no answer within {PATIENCE_SECONDS:g} s, killed", ""
    code = process.returncode
    if code < 0:
        return f"killed by {signal_name(-code)}", out
    last = (err.strip().splitlines() or [f"exit code {code}"])[-1]
    return (last if code else ""), out
