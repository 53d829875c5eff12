"""Wrong use: what is said, exit code 2, nothing started, nothing written. The table is in
wrong_use_cases.py.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import fdql.autotune  # its trials are runs too: made known before runs are forbidden
import fdql.supervisor
import numpy as np
import pytest
from fdql import Callback, cli, evaluate, load, train
from fdql.checkpoint import save_tensors
from fdql.config import Config, ConfigError, EngineConfig, EvalConfig, SacConfig
from plans import small_plan
from wrong_use_cases import COMMANDS, FILES, PYTHON

NAMES = {
    "Config": Config, "SacConfig": SacConfig, "EvalConfig": EvalConfig,
    "EngineConfig": EngineConfig, "np": np, "train": train, "load": load, "evaluate": evaluate,
    "Callback": Callback,
    "every": lambda steps: type("Mine", (Callback,), {"on_step_every": steps})(),
}  # fmt: skip
THERE = {"taken", "taken/thesis.txt", "file", "unfinished.py", "p.safetensors"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """The bytes of a policy of CartPole-v1."""
    plan = small_plan("CartPole-v1", tmp_path_factory.mktemp("policy"))
    file = tmp_path_factory.getbasetemp() / "p.safetensors"
    save_tensors(file, {"policy": np.zeros(plan.policy_size, np.float32)}, plan.policy_facts())
    return file.read_bytes()


@pytest.fixture(autouse=True)
def place(own_environments, policy, tmp_path, monkeypatch):
    """A folder to work in, with a folder `taken`, a `file`, a policy and a module with a syntax
    error; it is the same afterwards.
    """

    def starts(*_: object) -> None:
        raise AssertionError("a run was started")

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "unfinished.py").write_text("def make(:\n")
    (tmp_path / "p.safetensors").write_bytes(policy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fdql.supervisor, "Supervisor", starts)
    yield tmp_path
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    assert left - {"given.toml"} == THERE
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "precious"


def one_line(text: str) -> str:
    """Without the frame that tyro draws, and its line breaks."""
    return re.sub(r"\s+", " ", re.sub("[│╭╮╰╯─]", " ", text))


def check(words: list[str], says: tuple[str, ...], capsys) -> None:
    try:
        code = cli.main(words)
    except SystemExit as left:  # tyro's own way out
        code = left.code
    out, err = capsys.readouterr()
    said = one_line(out + err)
    assert code == 2, said
    assert "Traceback" not in said
    for part in says:
        assert part in said


@pytest.mark.parametrize(("typed", "says"), COMMANDS, ids=[c for c, _ in COMMANDS])
def test_a_command(typed, says, capsys):
    check(shlex.split(typed), says, capsys)


@pytest.mark.parametrize(("text", "says"), FILES, ids=[f for f, _ in FILES])
def test_a_config_file(text, says, place, capsys):
    (place / "given.toml").write_text(text)
    check(["--config", "given.toml"], says, capsys)


@pytest.mark.parametrize(("passed", "says"), PYTHON, ids=[p for p, _ in PYTHON])
def test_from_python(passed, says):
    with pytest.raises(ConfigError) as caught:
        eval(passed, NAMES)
    for part in says:
        assert part in str(caught.value)


def test_a_missing_extra_is_named_with_its_command(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pybullet_envs_gymnasium", None)  # as if not installed
    check(
        ["--env", "HopperBulletEnv-v0"],
        ("needs a package that is not installed", "bullet", "pip install"),
        capsys,
    )


def test_numbers_of_numpy_and_paths_are_taken():
    config = Config(seed=np.int64(3), ratio=np.float32(8), run_dir=Path("a") / "b")
    assert (config.seed, config.ratio, config.run_dir) == (3, 8.0, "a/b")
    assert (type(config.seed), type(config.ratio)) == (int, float)
    assert Config(ratio=8) == Config(ratio=8.0)


@pytest.mark.parametrize("typed", ["--seed -1", "--env hostile_envs:AbortsAtReset"])
def test_the_command_itself(typed, place):
    out = subprocess.run(
        [sys.executable, "-m", "fdql.cli", *shlex.split(typed)],
        cwd=place, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (out.returncode, "Traceback" in out.stderr) == (2, False), out.stderr
    assert out.stderr.startswith("fdql: ")


def test_there_are_enough_cases():
    assert len({*COMMANDS, *FILES, *PYTHON}) >= 60
