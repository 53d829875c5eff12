"""Processes of a run: how their deaths are noticed, told, survived, and counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from fdql.children import Child
from fdql.config import EngineConfig
from fdql.crew import Crew
from fdql.manifest import broken_rows, verify_checkpoint
from fdql.proc.memory import STOP, RunMemory
from fdql.profile import Counter, Stage
from fdql.shm.layout import KIND_RING, OFFSETS
from fdql.shm.ring import RingError, RingWriter, clear_writer
from plans import small_plan
from shm_blocks import SCHEMA, ring_block
from test_supervisor import LONG, ROOT, go, rows, start

WRITER_PID = slice(OFFSETS["RingHeader"]["writer_pid"][0], OFFSETS["RingHeader"]["incarnation"][0])


def test_a_stopped_worker_is_replaced_after_it_is_reaped(tmp_path):
    """SIGSTOP: short, and nothing happens; long, and it is killed, reaped, and only then replaced.

    Death is the kernel's word: a timer alone never makes a second writer of one ring.
    """
    process = start(tmp_path, *LONG, "--engine.heartbeat-timeout", "5")

    def workers() -> list[psutil.Process]:
        found = []
        for p in psutil.Process(process.pid).children():
            try:
                found += [p] if "fdql.proc.env_worker" in p.cmdline() else []
            except psutil.Error:
                continue  # it ended meanwhile
        return found

    (first,) = workers()
    first.suspend()
    time.sleep(1.0)
    first.resume()
    deadline = time.monotonic() + 120
    steps = rows(tmp_path / "run")[-1]["time/total_timesteps"]
    while rows(tmp_path / "run")[-1]["time/total_timesteps"] <= steps:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert workers() == [first]
    first.suspend()
    while not (others := [p for p in workers() if p.pid != first.pid]):
        assert time.monotonic() < deadline
    assert not psutil.pid_exists(first.pid)
    assert len(others) == 1
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "no sign of life for" in out
    assert "engine.heartbeat_timeout = 5" in out
    assert "restart 1 of 5" in out


def test_a_spent_budget_tells_everything_and_keeps_everything(own_environments, tmp_path):
    command = [sys.executable, str(ROOT / "main.py"), "--env", "own_envs:Faulty"]
    command += ["--run-dir", str(tmp_path / "run"), "--engine.restarts", "0", "--workers", "1"]
    command += ["--explore.warmup-steps", "100", "--sac.critic-width", "16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    out, log = done.stdout + done.stderr, (tmp_path / "run" / "log.txt").read_text()
    assert done.returncode == 1
    for text in (out, log):
        assert "Traceback" in text
        assert 'own_envs.py"' in text
        assert "RuntimeError: this environment breaks at its 300th step" in text
    sentence = " ".join(out.split())
    for words in (
        "worker 0 ended 1 times within 600 s",
        "300th step",
        "engine.restarts = 0",
        "log.txt",
    ):
        assert words in sentence
    checkpoints = list((tmp_path / "run" / "checkpoints").glob("*-updates-*"))
    assert checkpoints
    for checkpoint in checkpoints:
        assert not broken_rows(checkpoint, verify_checkpoint(checkpoint))
    assert (tmp_path / "run" / "policy.safetensors").is_file()


def test_the_budget_is_one_of_a_window(own_environments, tmp_path):
    """A successor takes longer than the window to start, so no two deaths lie within one."""
    engine = EngineConfig(restarts=1, restart_window=0.05)
    s = go(tmp_path, "own_envs:Faulty", total_timesteps=6000, engine=engine).summary
    assert s["exit_reason"] == "total_timesteps", s["problem"]
    assert s["worker_restarts"] >= 2


def test_a_reused_pid_keeps_no_successor_out(own_environments, tmp_path, monkeypatch):
    block = ring_block(4, 64)
    block.memory[WRITER_PID] = os.getppid().to_bytes(4, "little")  # a stranger has the pid now
    with pytest.raises(RingError, match="is alive"):
        RingWriter(block.memory, SCHEMA)
    clear_writer(block.memory)
    RingWriter(block.memory, SCHEMA)

    spawn, former = Crew.spawn, []

    def spying(crew: Crew, role: str, incarnation: int = 1) -> None:
        if incarnation > 1:
            ring = crew.memory.segment.section(KIND_RING, 0)
            former.append((role, bytes(ring[WRITER_PID])))
        spawn(crew, role, incarnation)

    monkeypatch.setattr(Crew, "spawn", spying)
    go(tmp_path, "own_envs:Dies", total_timesteps=2600)
    assert former == [("worker 0", bytes(4))]


def test_kill_means_this_process_alone():
    """Somebody else reaped it: its pid may be a stranger's, the pidfd is nobody's."""
    r, w = os.pipe()
    child = Child("worker 0", "this", [], w, "{}", 1, 1)
    os.waitpid(child.process.pid, 0)
    child.kill()
    assert child.exited()
    for fd in (r, w, *child.descriptors()):
        os.close(fd)


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (-9, None, "killed by SIGKILL in stage step; if nobody killed it, the memory ran out"),
        (-11, None, "killed by SIGSEGV in stage step, a fault in native code"),
        (-15, None, "killed by SIGTERM in stage step"),
        (-35, None, "killed by signal 35 in stage step"),
        (0, None, "exited with code 0 without being told to in stage step"),
        (3, "ValueError: no", "ValueError: no"),
    ],
)
def test_every_end_has_an_account(code, error, words):
    child = Child.__new__(Child)
    child.process = SimpleNamespace(returncode=code)
    child.error, child.output = error, ()
    assert child.account(Stage.STEP).startswith(words)


class Told:
    """Takes the events of a process; `ready` must come after a first sign of life."""

    def __init__(self, memory: RunMemory, index: int) -> None:
        self.record, self.ready = memory.record(index), False

    def send(self, kind: str, **values: object) -> None:
        if kind == "ready":
            assert self.record.heartbeat_ns > 0
            self.ready = True


@pytest.mark.parametrize("role", ["trainer", "inference", "evaluator", "worker 0"])
def test_ready_comes_after_a_sign_of_life(own_environments, tmp_path, role):
    """Else a start that took long would be taken for silence the moment it ends."""
    plan = small_plan("own_envs:Counting", Path(tmp_path))
    memory = RunMemory.create(plan, shared=False)
    memory.stop(STOP)
    told = Told(memory, plan.roles.index(role))
    if role == "trainer":
        from fdql.proc.trainer import trainer_main as main
    elif role == "inference":
        from fdql.proc.inference import inference_main as main
    elif role == "evaluator":
        from fdql.proc.evaluator import evaluator_main as main
    else:
        from fdql.proc.env_worker import env_worker_main as main
    main(memory, told, *((0, 1) if role == "worker 0" else ()))
    assert told.ready


def leaving(run: Path, counts: SimpleNamespace) -> tuple[Crew, SimpleNamespace]:
    """A crew that waits for its trainer, which was told to leave, and that trainer."""
    trainer = SimpleNamespace(error="", killed=False)
    trainer.kill = lambda: setattr(trainer, "killed", True)
    quiet = SimpleNamespace(log=lambda line: None, show=lambda: None, path=run, trainer=counts)
    crew = Crew.__new__(Crew)
    crew.children, crew.problem, crew.folder, crew.report = {"trainer": trainer}, None, quiet, quiet
    return crew, trainer


@pytest.mark.parametrize("impatient", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_checkpoint_that_takes_too_long_is_named(tmp_path, impatient, first):
    """The user reads why the trainer was killed, not that memory ran out."""
    crew, trainer = leaving(tmp_path, SimpleNamespace(get=lambda counter: 0))
    crew.pump = lambda: None
    if not first:
        (tmp_path / "checkpoints" / "000001-updates-7").mkdir(parents=True)
    crew.wait_for(["trainer"], 0.0, SimpleNamespace(impatient=impatient))
    assert trainer.killed
    left = "there is no checkpoint" if first else "000001-updates-7 is the newest checkpoint"
    assert f"killed while it saved: {left}" in trainer.error
    assert ("wrote nothing for 0 s" in str(crew.problem)) is not impatient


@pytest.mark.parametrize("disk", ["slow", "stuck"])
def test_a_checkpoint_may_take_as_long_as_it_is_written(tmp_path, monkeypatch, disk):
    """4 MB at 5 kB/s take 800 s, and 300 without a byte are too many."""
    now, counts = SimpleNamespace(seconds=0.0), {Counter.SAVED: 0}
    monkeypatch.setattr("fdql.crew.time", SimpleNamespace(monotonic=lambda: now.seconds))
    crew, trainer = leaving(tmp_path, SimpleNamespace(get=counts.get))

    def pump() -> None:
        now.seconds += 200.0
        counts[Counter.SAVED] += 1_000_000 if disk == "slow" else 0
        if counts[Counter.SAVED] == 4_000_000:
            crew.children.clear()

    crew.pump = pump
    crew.wait_for(["trainer"], 300.0, SimpleNamespace(impatient=False))
    assert (trainer.killed, now.seconds) == ((False, 800.0) if disk == "slow" else (True, 400.0))
