"""What `fdql doctor` finds, on this machine and on broken ones."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fdql import checks, doctor, registry, requirements
from fdql.checks import Finding
from fdql.doctor import examine, healthy


def test_the_command_finds_everything_in_order_here(tmp_path: Path):
    command = [sys.executable, "-m", "fdql.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    report = json.loads(done.stdout)
    wrong = [c for c in report["checks"] if c["state"] == "wrong"]
    # On a busy machine an environment may be late; nothing else may be wrong where tests run.
    assert all("no answer within" in c["found"] for c in wrong), wrong
    assert (report["format"], report["healthy"]) == (doctor.FORMAT, not wrong)
    assert done.returncode == (1 if wrong else 0)
    names = {c["name"] for c in report["checks"]}
    assert names >= {
        "python", "packages", "compiler", "extension", "simd", "blas", "cores", "memory",
        "memfd", "pidfd", "open files", "kernel cache", "gpu",
    }  # fmt: skip
    assert names >= {f"extra {extra}" for extra in requirements.extras()}
    assert all(c["found"] for c in report["checks"])
    assert all(c["mend"] for c in report["checks"] if c["state"] != "ok")


def test_an_environment_that_crashes_or_hangs_is_reported(monkeypatch):
    monkeypatch.setattr(doctor, "_TORCH", "print('|')")
    monkeypatch.setattr(doctor, "extras", lambda: {"classic": [], "box2d": [], "atari": []})
    code = """
import os, sys, time
name = sys.argv[1]
if name == "CartPole-v1": os.abort()
if name == "LunarLander-v3": raise RuntimeError("no display")
time.sleep(600)
"""
    monkeypatch.setattr(doctor, "_RESET", code)
    found = {f.name: f for f in doctor.Beside().findings(time.monotonic() + 4)}
    assert "killed by SIGABRT" in found["extra classic"].found
    assert "RuntimeError: no display" in found["extra box2d"].found
    assert "no answer" in found["extra atari"].found
    for name in ("classic", "box2d", "atari"):
        assert found[f"extra {name}"].state == "wrong"
        assert f"[{name}]" in found[f"extra {name}"].mend


def test_an_extension_that_was_not_built_is_wrong(monkeypatch):
    monkeypatch.setitem(sys.modules, "fdql.shm.ring", None)
    (finding,) = checks.extension()
    assert (finding.state, "fdql.shm.ring" in finding.found) == ("wrong", True)
    assert "pip install" in finding.mend


def test_a_check_that_fails_does_not_end_the_others(monkeypatch):
    def broken():
        raise OSError("no /proc")
        yield

    (finding,) = doctor._survived(broken)
    assert (finding.name, finding.state, finding.found) == ("broken", "wrong", "OSError: no /proc")


def test_a_kernel_without_memfd_and_pidfd_is_made_do_with(monkeypatch):
    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    found = list(checks.kernel())
    assert [(f.name, f.state) for f in found] == [("memfd", "advice"), ("pidfd", "advice")]
    assert "/dev/shm takes its place" in found[0].mend
    assert "within 100 ms" in found[1].mend


def test_a_slow_blas_and_a_missing_package_are_found(monkeypatch):
    monkeypatch.setattr(checks, "SLOW_GFLOPS", 1e9)
    assert next(checks.blas()).state == "wrong"
    monkeypatch.setattr(checks, "required", lambda: ["numpy", "no-such-package"])
    wrong = [f for f in checks.packages() if f.state == "wrong"]
    assert [f.found for f in wrong] == ["missing: no-such-package"]


def test_advice_is_no_fault():
    assert healthy([Finding("a", "ok", "x"), Finding("b", "advice", "y", "z")])
    assert not healthy([Finding("a", "wrong", "x", "y")])


def test_requirements_without_a_checkout_come_from_the_metadata(monkeypatch):
    lines = ["numpy>=2", "matplotlib>=3; extra == 'plot'", "old; python_version < '3.2'"]
    monkeypatch.setattr(requirements, "CHECKOUT", Path("/nowhere"))
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)
    assert requirements.required() == ["numpy"]
    assert requirements.extras() == {"plot": ["matplotlib"]}
    assert requirements.install("plot") == 'pip install "fdql[plot]"'
    assert requirements.pinned() == {}


@pytest.mark.skipif(not requirements.in_checkout(), reason="needs the checkout")
def test_every_extra_that_is_recommended_exists():
    """In registry and doctor, and in calls of require, missing and install."""
    place = {"require": 1, "missing": 1, "install": 0}
    named = {*registry._EXTRAS.values(), *(extra for _, extra in registry._PLUGINS.values())}
    for file in Path(doctor.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                arg = call.args[at : at + 1] if (at := place.get(call.func.id, 99)) < 99 else []
                named |= {a.value for a in arg if isinstance(a, ast.Constant)}
    assert named >= {"mujoco", "onnx", "plot", "tensorboard", "wandb", "video"}
    declared = requirements._declared().keys()
    assert named | set(doctor.ENVIRONMENTS) | {"envs"} <= declared


@pytest.mark.skipif(not requirements.in_checkout(), reason="needs the checkout")
def test_the_checkouts_pins_cover_what_is_required():
    assert {n.lower().replace("-", "_") for n in requirements.required()} <= {
        n.lower().replace("-", "_") for n in requirements.pinned()
    }


def test_the_whole_examination_survives_an_empty_path(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(doctor, "_TORCH", "print('|')")
    monkeypatch.setattr(doctor, "extras", dict)
    compiler = [f for f in examine() if f.name == "compiler"]
    assert [f.state for f in compiler] == ["advice"]
