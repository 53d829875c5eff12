"""The command line: help, versions, what an unbuilt checkout says. Wrong use is in
test_wrong_use.py, training in test_supervisor.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fdql.cli import main

ROOT = Path(__file__).parent.parent


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command of its own, from another folder than the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "fdql.cli", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_needs_nothing_heavy(tmp_path: Path):
    code = (
        "import sys; from fdql.cli import main; main(['--help']); "
        "print([m for m in ('torch', 'numba', 'numpy', 'gymnasium', 'tyro') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert out.stdout.startswith("usage: fdql")
    assert out.stdout.endswith("[]\n")


def test_train_help_lists_every_setting(capsys):
    from dataclasses import fields, is_dataclass
    from typing import get_type_hints

    from fdql.config import Config

    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    shown = "".join(capsys.readouterr().out.split())
    for f in fields(Config):
        hint = get_type_hints(Config)[f.name]
        names = [f"{f.name}.{g.name}" for g in fields(hint)] if is_dataclass(hint) else [f.name]
        for name in names:
            flag = {"trace_seconds": "traceSECONDS"}.get(name, name.replace("_", "-"))
            assert f"--{flag}" in shown


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ("None", "is missing: this checkout was not built"),
        ("types.ModuleType('fdql.shm.segment')", "is older than its source (cannot import name"),
    ],
)
def test_an_unbuilt_checkout_says_how_to_build(tmp_path: Path, found: str, says: str):
    code = (
        f"import sys, types; sys.modules['fdql.shm.segment'] = {found}\n"
        "from fdql.cli import main; sys.exit(main(['--env', 'CartPole-v1']))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert out.returncode == 1
    assert "pip install -c constraints.txt -e" in out.stderr
    assert f"fdql.shm.segment {says}" in out.stderr


def test_flags_beat_the_file(tmp_path: Path, monkeypatch):
    import fdql.supervisor

    (tmp_path / "c.toml").write_text("seed = 3\nratio = 8.0\n[sac]\ndiscount = 0.9\n")
    seen = []

    class Result:
        exit_code = 0

    monkeypatch.setattr(
        fdql.supervisor, "train", lambda config, **_: seen.append(config) or Result()
    )
    assert main(["train", "--config", str(tmp_path / "c.toml"), "--seed", "5"]) == 0
    assert main([f"--config={tmp_path / 'c.toml'}", "--sac.discount", "0.8"]) == 0
    assert (seen[0].seed, seen[0].ratio, seen[0].sac.discount) == (5, 8.0, 0.9)
    assert (seen[1].seed, seen[1].ratio, seen[1].sac.discount) == (3, 8.0, 0.8)


def test_print_config_prints_what_a_run_would_take_and_trains_nothing(tmp_path: Path, capsys):
    (tmp_path / "c.toml").write_text("seed = 3\n")
    words = ["--config", str(tmp_path / "c.toml"), "--print-config", "--sac.discount", "0.5"]
    assert main(words) == 0
    (tmp_path / "d.toml").write_text(capsys.readouterr().out)
    from fdql.config_file import load_toml

    config = load_toml(tmp_path / "d.toml")
    assert (config.seed, config.sac.discount) == (3, 0.5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.toml", "d.toml"]


@pytest.mark.parametrize("env", ["own_envs:Counting", "antigravity:Hover-v0"])
def test_a_file_never_decides_what_code_runs(tmp_path: Path, monkeypatch, capsys, env):
    import fdql.supervisor

    (tmp_path / "c.toml").write_text(f"env = '{env}'\n")
    words = ["train", "--config", str(tmp_path / "c.toml")]
    assert main(words) == 2
    assert f"say so: --env {env}" in capsys.readouterr().err
    seen = []

    class Result:
        exit_code = 0

    monkeypatch.setattr(
        fdql.supervisor, "train", lambda config, **_: seen.append(config) or Result()
    )
    assert main([*words, "--env", env]) == 0
    assert seen[0].env == env


def test_a_reader_that_is_gone_is_no_fault():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-u", "-m", "fdql.cli", "train", "--print-config"]
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(words, stdout=closed, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_nobody_who_reads_errors_is_no_success(tmp_path: Path):
    """Only a reader of standard output has had enough; what is told on the way is not awaited."""
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "fdql.cli", "train", "--env", "Nowhere-v0", "--resume", "auto"]
    (tmp_path / "out").mkdir()
    words += ["--run-dir", "out"]
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(words, stderr=closed, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 2
    assert [p.name for p in tmp_path.iterdir()] == ["out-unsaved-1"]
