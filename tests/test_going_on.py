"""Which run goes on, from what, and what is refused before anything of it has changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fdql.going_on
import fdql.supervisor
import pytest
from fdql.checkpoint import CheckpointError
from fdql.checkpoint_folder import CannotGoOn, CheckpointFolder
from fdql.cli import main
from fdql.config import Config, ConfigError, EngineConfig, ExploreConfig, ReplayConfig, SacConfig
from fdql.config_file import to_dict
from fdql.env_spec import EnvSpec
from fdql.fit import check_fit
from fdql.going_on import Finished, resume, run_config, unfinished, with_changes
from fdql.machine import check_memory, resolve
from fdql.manifest import Manifest, read_manifest
from fdql.proc.governor import Governor
from fdql.proc.loader import Loader
from fdql.proc.memory import RECORD_TRAINER, RunMemory
from fdql.proc.restore import restore_replay
from fdql.proc.resumed import base_of, begin_counters
from fdql.profile import Counter
from plans import small_config, small_plan
from resumed_runs import metrics, run

STEPS = 200


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A serial run that made all its steps; copy it before anything is done to it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(small_config("CartPole-v1", total_timesteps=STEPS, serial=True), folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the log."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "log.txt")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


class Stub:
    """Takes the place of `train`: what it was asked for."""

    exit_code = 0

    def __init__(self) -> None:
        self.asked: list[tuple[Config, Path | None]] = []

    def __call__(self, config: Config, *, checkpoint: Path | None = None, **_: Any) -> Stub:
        self.asked.append((config, checkpoint))
        return self


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    made = Stub()
    for module in (fdql.going_on, fdql.supervisor):
        monkeypatch.setattr(module, "train", made)
    return made


def test_every_public_name_is_there_whatever_was_imported_before(tmp_path):
    code = (
        "import fdql\nassert fdql.config.SacConfig().discount == 0.99\n"
        "for _ in range(2):\n"
        "    for name in fdql.__all__:\n"
        "        exec(f'from fdql import {name}')\n"
        "        assert callable(getattr(fdql, name)) is (name != 'config'), name\n"
        "        assert eval(name) is getattr(fdql, name), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=120)


def manifest_of(config: Config, env: EnvSpec | None, **facts: Any) -> Manifest:
    kept = {} if env is None else {"env": json.loads(json.dumps(env.to_dict()))}
    counts = {"env_steps": 1000, "updates": 900, "replay": 900, "stale": 0, "episodes": 3}
    return Manifest({"config": to_dict(config)} | kept | counts | facts, {}, {})


@pytest.mark.parametrize(
    ("env", "sac", "says"),
    [
        ("CartPole-v1", {"critic_width": 32}, "--sac.critic-width 16 works"),
        ("CartPole-v1", {"head": "tqc", "quantiles": 101}, "--sac.head hl_gauss works"),
        ("CartPole-v1", {"v_max": 9.0}, "sac.v_max = 9.0: the saved networks have 5.0"),
        ("CartPole-v1", {"bins": 51}, "--sac.bins 101 works"),
        ("CartPole-v1", {"actor_width": 32, "quantiles": 7, "batch_size": 64}, None),
        ("Pendulum-v1", {"actor_width": 32}, "--sac.actor-width 16 works"),
    ],
)
def test_networks_stay_as_they_are(tmp_path, env, sac, says):
    plan = small_plan(env, tmp_path)
    changed = replace(plan.config, sac=replace(plan.config.sac, **sac))
    manifest = manifest_of(plan.config, plan.env)
    check_fit(manifest, plan.config, plan.env)
    check_fit(manifest_of(plan.config, None), plan.config, plan.env)
    if says is None:
        check_fit(manifest, changed, plan.env)
    else:
        with pytest.raises(CannotGoOn, match=says):
            check_fit(manifest, changed, plan.env)


def test_an_environment_stays_what_it_was(tmp_path):
    plan = small_plan("Pendulum-v1", tmp_path)
    manifest = manifest_of(plan.config, plan.env)
    for change, says in (
        ({"obs_dim": 4, "obs_shape": (4,)}, r"observations have the shape \[4\], and \[3\]"),
        ({"high": (3.0,)}, r"highest action is \[3.0\], and \[2.0\]"),
        ({"image": (1, 40, 41)}, r"channels first, \[1, 40, 41\], and None"),
    ):
        with pytest.raises(CannotGoOn, match=says):
            check_fit(manifest, plan.config, replace(plan.env, **change))
    check_fit(manifest, plan.config, replace(plan.env, return_threshold=0.0, eval_episodes=3))
    for bad in ({"env": 3}, {"config": {"sac": {"bins": "many"}}}, {"config": None}):
        with pytest.raises(CheckpointError, match="cannot be read"):
            check_fit(Manifest(manifest.facts | bad, {}, {}), plan.config, plan.env)


def test_what_does_not_fit_changes_nothing_and_the_run_goes_on(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    checkpoints = CheckpointFolder(folder / "checkpoints")
    newer = checkpoints.path / "000099-updates-9"
    shutil.copytree(checkpoints.path / checkpoints.names()[-1], newer)
    (newer / "manifest.json").write_text("broken")
    before = contents(folder)
    words = ["resume", str(folder), "--total-timesteps", "300"]
    assert main([*words, "--sac.critic-width", "32"]) == 2
    assert "sac.critic_width = 32: the saved networks have 16" in capsys.readouterr().err
    assert contents(folder) == before
    text = (folder / "config.toml").read_text()  # as a refused resume once left it
    (folder / "config.toml").write_text(text.replace("critic_width = 16", "critic_width = 32"))
    assert main(words) == 2
    assert main([*words, "--sac.critic-width", "16", "--engine.groups", "4"]) == 0
    rows = metrics(folder)
    assert rows[-1]["time/total_timesteps"] == 300
    assert json.loads((folder / "summary.json").read_text())["env_steps"] == 300
    names = checkpoints.names()
    assert newer.name not in names  # it was set aside
    assert names[-1] > newer.name


@pytest.mark.parametrize("serial", [True, False])
def test_without_memory_a_run_stays_as_it_was(finished, tmp_path, monkeypatch, serial):
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError("none is left")

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = contents(folder)
    monkeypatch.setattr(RunMemory, "create", no_memory)
    config = replace(run_config(folder), total_timesteps=300, serial=serial)
    with pytest.raises(MemoryError):
        resume(folder, config, quiet=True)
    assert contents(folder) == before
    with pytest.raises(MemoryError):
        run(small_config("CartPole-v1", serial=serial), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_lanes_that_are_too_short_are_found_before_the_run(tmp_path):
    plan = small_plan("CartPole-v1", tmp_path)
    engine, steps = EngineConfig(groups=2), ReplayConfig(capacity=1024, n_step=32)
    config = replace(plan.config, envs_per_worker=256, engine=engine, replay=steps)
    with pytest.raises(ConfigError, match=r"256 environments get 8 rows each .* 16384 works"):
        check_memory(resolve(config, cores=2), plan.env)


def test_killed_after_it_went_on_it_is_unfinished(finished, tmp_path, monkeypatch, capsys):
    """Finished, resumed, SIGKILL, --resume auto: the same folder goes on."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/CartPole-v1/first")
    shutil.copytree(finished, folder)
    assert unfinished("CartPole-v1", 0) == []
    command = [sys.executable, "-m", "fdql.cli", "resume", str(folder), "--total-timesteps"]
    process = subprocess.Popen([*command, "100000000"], stdout=subprocess.DEVNULL, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 120
        while (folder / "summary.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    (folder / ".policy.safetensors.0123abcd").write_text("half of it")
    words = ["--resume", "auto", "--env", "CartPole-v1", "--total-timesteps", "300"]
    assert main(words) == 0
    assert [p.name for p in folder.parent.iterdir()] == ["first"]
    assert json.loads((folder / "summary.json").read_text())["env_steps"] == 300
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]
    assert main(["--run-dir", f"./{folder}/", "--stop-at-return", "never", *words]) == 0
    assert "the run has made its 300 steps" in capsys.readouterr().err


def test_a_run_that_was_killed_behind_its_last_step_still_ends(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with pytest.raises(Finished):
        resume(folder)
    (folder / "summary.json").unlink()
    assert resume(folder, quiet=True).exit_reason == "total_timesteps"


@pytest.mark.parametrize("damage", ["", "[" * 100_000, "[]", "7" * 5000, "{}", "null"])
def test_a_damaged_summary_is_none(finished, tmp_path, damage, stub):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "summary.json").write_text(damage)
    resume(folder)
    assert [checkpoint.parent.parent for _, checkpoint in stub.asked] == [folder]


def test_a_run_stays_as_greedy_as_its_evaluations_were(finished, tmp_path):
    """Its config.toml has the derived numbers; one that has no share of random actions is older."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert run_config(folder).eval.epsilon == 0.0
    text = (folder / "config.toml").read_text()
    assert text.count("\nepsilon = 0.0\n") == 1
    (folder / "config.toml").write_text(text.replace("\nepsilon = 0.0\n", "\nepsilon = 0.25\n"))
    assert run_config(folder).eval.epsilon == 0.25
    (folder / "config.toml").write_text(text.replace("\nepsilon = 0.0\n", "\n"))
    assert run_config(folder).eval.epsilon == 0.0


def test_evaluations_that_improved_nothing_are_not_repeated(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    kept = replace(run_config(folder), total_timesteps=300, stop_without_improvement=4)
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text("stop_without_improvement = 4\n" + text)
    (folder / "summary.json").write_text('{"exit_reason": "no_improvement"}')
    with pytest.raises(Finished, match="--stop-without-improvement 8 goes on"):
        resume(folder, kept)


def test_the_line_for_jobs(finished, tmp_path, monkeypatch, capsys, stub):
    """Begun, killed before the first checkpoint, begun anew; other spellings of its folder."""
    monkeypatch.chdir(tmp_path)
    words = ["--run-dir", "out/", "--resume", "auto", "--stop-at-return", "never"]
    assert main(words) == 0
    assert stub.asked[-1][0].run_dir == "out/"
    left = (("config.toml", "log.txt"), ("log.txt", "wandb"), ("log.txt",), ())
    for number, names in enumerate(left, 1):
        Path("out").mkdir()
        for name in names:
            Path("out", name).write_text("")
        assert main(words) == 0
        assert stub.asked[-1] == (stub.asked[0][0], None)
        assert f"out-unsaved-{number} now, a new run begins" in capsys.readouterr().err
        assert sorted(p.name for p in tmp_path.iterdir())[-1] == f"out-unsaved-{number}"
    Path("out").mkdir()
    Path("out", "thesis.tex").write_text("mine")
    assert main(words) == 2
    assert Path("out", "thesis.tex").is_file()
    shutil.rmtree("out")
    shutil.copytree(finished, "out")
    for spelling in ("./out", "out/", str(tmp_path / "out")):
        words[1] = spelling
        Path("my.toml").write_text("ratio = 8.0\n")
        assert main([*words, "--total-timesteps", "900", "--config", "my.toml"]) == 0
        config, checkpoint = stub.asked[-1]
        assert (config.samples_per_insert, config.total_timesteps) == (32.0, 900)
        assert checkpoint is not None
        assert "not those of my.toml" in capsys.readouterr().err


def test_the_newest_that_can_go_on_is_taken(finished, tmp_path, monkeypatch, capsys, stub):
    monkeypatch.chdir(tmp_path)
    now = time.time()
    for age, name in enumerate(("broken", "other", "taken", "newer", "older"), 1):
        folder = Path("runs/CartPole-v1") / name
        shutil.copytree(finished, folder)
        (folder / "summary.json").write_text('{"exit_reason": "interrupted"}')
        for manifest in folder.glob("checkpoints/0*/manifest.json"):
            if name == "broken":
                manifest.write_text("{}")
            if name == "other":
                values = json.loads(manifest.read_text()) | {"format": 99, "sha256": ""}
                manifest.write_text(json.dumps(values))
            os.utime(manifest, (now - age, now - age))
        os.utime(folder, (now + age, now + age))  # somebody looked at the oldest last
    for manifest in folder.glob("checkpoints/0*/manifest.json"):
        manifest.unlink()  # lost with the disk: resume decides about such a run, and says it
    found = [path.name for path in unfinished("CartPole-v1", 0)]
    assert found == ["broken", "other", "taken", "newer", "older"]
    asked: list[Path] = []

    def is_written(path: Path) -> bool:  # another process takes one after it was found
        asked.append(path)
        return path.name == "taken" and asked.count(path) > 1

    monkeypatch.setattr(fdql.going_on, "is_written", is_written)
    words = ["--resume", "auto", "--total-timesteps", "900"]
    assert main(words) == 0
    checkpoint = stub.asked[-1][1]
    assert checkpoint is not None
    assert checkpoint.parts[-3] == "newer"
    said = capsys.readouterr().err
    for name, why in (("broken", "all its"), ("other", "format 99"), ("taken", "still writing")):
        assert re.search(rf"passed over: runs/CartPole-v1/{name}: .*{why}", said)
    assert main([*words, "--run-dir", "runs/CartPole-v1/other"]) == 2  # named: it is not
    assert "format 99" in capsys.readouterr().err


def test_a_run_folder_never_decides_what_code_runs(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace('"CartPole-v1"', '"evil:make"'))
    (tmp_path / "evil.py").write_text("raise SystemExit('evil was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["--resume", "auto", "--run-dir", str(folder)]) == 2
    assert "say so: --env evil:make" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"fdql.resume\(.*fdql.run_config\(.*\)\) does"):
        resume(folder)
    assert "evil" not in sys.modules


def test_environments_are_shared_out_anew():
    kept = Config(workers=1, envs_per_worker=64, run_dir="r")
    assert with_changes(kept, replace(kept, workers=2)).envs_per_worker == 32
    kept = Config(workers=4, envs_per_worker=2, run_dir="r")
    assert with_changes(kept, replace(kept, serial=True)).envs_per_worker == 8
    assert with_changes(kept, replace(kept, workers=2, envs_per_worker=6)).envs_per_worker == 6
    serial = replace(kept, workers=1 << 40, serial=True)  # which has one worker whatever it says
    assert with_changes(serial, serial).envs_per_worker == kept.envs_per_worker
    assert with_changes(kept, replace(kept, run_dir="./r/")).run_dir == "r"
    with pytest.raises(ConfigError, match="a run keeps its run_dir"):
        with_changes(kept, replace(kept, run_dir="s"))


def test_another_ratio_holds_from_here_on(tmp_path):
    # 1000 steps at 32: 125 updates of 256 are due. From there 4 of 256 a step.
    config = Config(ratio=32.0, explore=ExploreConfig(warmup_steps=500))
    manifest = manifest_of(config, None, updates=120)
    assert base_of(manifest, replace(config, total_timesteps=5)) == (0, 0)
    more = replace(config, ratio=1024.0)
    assert base_of(manifest, more) == (1000, 125)
    governor = Governor(more, (1000, 125))
    assert [governor.due(n) for n in (499, 1000, 1010)] == [0, 125, 165]
    assert governor.allowed(125) == 1000 + 16 // 4
    assert governor.actual(1010, 165) == 1024.0
    larger = replace(config, sac=SacConfig(batch_size=512))
    governor = Governor(larger, base_of(manifest, larger))
    assert [governor.due(n) for n in (1000, 1016)] == [125, 126]
    free = manifest_of(replace(config, ratio="free"), None, updates=7, base=[300, 5])
    assert base_of(free, config) == (1000, 7)
    assert base_of(free, replace(config, ratio="free")) == (300, 5)
    for bad in (3, [1], [1, -1], [True, 1], [1 << 62, 0]):
        with pytest.raises(CheckpointError, match="must be two counts"):
            base_of(manifest_of(config, None, base=bad), config)


def test_counters_go_on(tmp_path):
    plan = small_plan("CartPole-v1", tmp_path)
    for facts, dropped in (({"dropped": 5}, 5), ({}, 0)):  # earlier versions did not say
        memory = RunMemory.create(plan, shared=False)
        begin_counters(memory, manifest_of(plan.config, None, **facts))
        trainer = memory.record(RECORD_TRAINER)
        assert trainer.get(Counter.DROPPED) == dropped
        assert trainer.get(Counter.INSERTED) == 1000


def test_a_checkpoint_says_its_environment_and_base(finished):
    folder = CheckpointFolder(finished / "checkpoints")
    facts = read_manifest(folder.path / folder.names()[-1]).facts
    assert EnvSpec.from_dict(facts["env"]).obs_shape == (4,)
    assert (facts["base"], facts["dropped"]) == ([0, 0], 0)


def test_every_range_that_is_read_is_a_sign_of_life(finished, tmp_path):
    plan = small_plan("CartPole-v1", tmp_path, serial=True, envs_per_worker=8)
    memory = RunMemory.create(plan, shared=False)
    loader = Loader(memory)
    saver: Any = SimpleNamespace(adopt=lambda ranges: None, say=lambda kind, **values: None)
    folder = CheckpointFolder(finished / "checkpoints")
    assert loader.record.heartbeat_ns == 0
    assert restore_replay(folder.path / folder.names()[-1], loader, saver)
    assert loader.replay.steps == STEPS
    assert loader.record.heartbeat_ns > 0
