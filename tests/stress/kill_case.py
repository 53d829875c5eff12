"""One real run in which one process is killed at one point, and what its evidence says.

Each case is a fork of this process: a supervisor with trainer, inference, evaluator and one worker
on witness:Numbered. One child, in its first life, gets FDQL_KILL_AT. Afterwards every row of the
replay and of what is left in the ring is compared with what it must be (witness.py).

    python kill_case.py FOLDER '{"role": "worker", "point": "slots.await.woken", "hit": 2}' ...

prints one line of JSON for each case: "ends" (goes on, or names the cause), "lost" (steps of the
open chunk), "seconds", and "wrong", a list of faults.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import fdql.crew
import numpy as np
from fdql.children import Child
from fdql.config import (
    Config,
    EngineConfig,
    EvalConfig,
    ExploreConfig,
    ReplayConfig,
    SacConfig,
)
from fdql.proc.memory import READER_INFERENCE, RunMemory
from fdql.shm.chunk import BOUNDARY, RESET, TERMINATED, TRUNCATED
from fdql.shm.layout import KIND_RING
from fdql.shm.ring import RingReader
from fdql.supervisor import train
from numpy.typing import NDArray
from witness import EPISODE, action_of, reward_of

DEADLINE = 120.0  # seconds; a case takes 3 to 6 on a quiet machine
CHUNK_ROWS, ENVS = 32, 4
MORE_STEPS = {"evaluator": 8000}  # it starts last
Rows = dict[str, NDArray[Any]]  # obs (n, 3), flags, reward, action (n,)


def config_of(role: str, folder: Path) -> Config:
    """Small networks, a ring of four small chunks, everything that ever arrived kept."""
    return Config(
        env="witness:Numbered", run_dir=str(folder / "run"), workers=1, envs_per_worker=ENVS,
        total_timesteps=MORE_STEPS.get(role, 2500), stop_at_return="never",
        sac=SacConfig(critic_width=16, actor_width=16, batch_size=32),
        replay=ReplayConfig(capacity=1 << 15), explore=ExploreConfig(warmup_steps=800),
        engine=EngineConfig(ring_chunks=4, chunk_rows=CHUNK_ROWS, commit_rows=16,
                            publish_updates=10, learner_threads=1),
        eval=EvalConfig(episodes=2, every_steps=100, share=1.0),
    )  # fmt: skip


class Armed(Child):
    """A child that leaves evidence; the first life of the role that is to die is armed."""

    role_to_die, kill_at = "", ""
    all: list[Armed] = []  # noqa: RUF012

    def __init__(self, role: str, module: str, *rest: Any) -> None:
        kind, incarnation = role.partition(" ")[0], rest[-1]
        os.environ["WITNESS"] = kind
        if kind == self.role_to_die and incarnation == 1:
            os.environ["FDQL_KILL_AT"] = self.kill_at
        try:
            super().__init__(role, module if kind == "worker" else "witness", *rest)
        finally:
            os.environ.pop("FDQL_KILL_AT", None)
        self.all.append(self)


def rows_left(memory: RunMemory) -> tuple[Rows, list[int], int]:
    """Rows in the ring that nobody released, their lanes, and the steps ever committed."""
    plan = memory.plan
    reader = RingReader(memory.segment.section(KIND_RING, 0), plan.chunk.hash)
    parts: list[list[NDArray[Any]]] = []
    lanes: list[int] = []
    steps = reader.consumed_steps
    for k in range(reader.peek()):
        head = reader.chunk(k)  # its number is checked
        views, n = plan.chunk.views(reader.payload(k)), head.n_rows
        columns = (views.obs, views.flags, views.reward, views.action)
        parts.append([np.array(c[:n]) for c in columns])
        lanes += views.lane[:n].tolist()
        steps += head.n_steps
    if not parts:
        parts = [[np.zeros((0, 3)), *(np.zeros(0, dtype=np.int64) for _ in range(3))]]
    columns = [np.concatenate(c) for c in zip(*parts, strict=True)]
    return dict(zip(("obs", "flags", "reward", "action"), columns, strict=True)), lanes, steps


def newest_is_whole(memory: RunMemory, folder: Path) -> bool:
    """The snapshot that any reader would get now is one that the trainer wrote down, or none."""
    reader = memory.weights_reader(READER_INFERENCE)
    version, data = reader.acquire()
    line = f"{version} {zlib.crc32(data)}"
    reader.release()
    return version == 0 or line in (folder / "published").read_text().splitlines()


def rows_of_replay(file: Path, lane: int) -> Rows:
    """Rows of a lane, oldest first."""
    with np.load(file) as saved:
        head, lane_rows = int(saved["table"][lane, 0]), len(saved["obs"]) // len(saved["table"])
        assert head <= lane_rows, "rows were overwritten: the case needs a larger replay"
        span = slice(lane * lane_rows, lane * lane_rows + head)
        return {name: saved[name][span] for name in ("obs", "flags", "reward", "action")}


def judge_lane(
    rows: Rows, whole: bool, newest: dict[tuple[int, int], int], lost: dict[int, int]
) -> list[str]:
    """What is wrong with the rows of one lane.

    whole   the lane's first row is here, so its first number is 0
    newest  (pid, index) -> number of the newest observation; whose rows are here is taken out
    lost    pid -> rows that are not here, added to; an observation without a step is no row yet
    """
    wrong: list[str] = []
    obs = rows["obs"].astype(np.int64)
    flags = rows["flags"].astype(np.int64) & (TERMINATED | TRUNCATED | BOUNDARY | RESET)
    change = np.flatnonzero((np.diff(obs[:, :2], axis=0) != 0).any(axis=1)) + 1
    edges = [0, *change.tolist(), len(obs)] if len(obs) else []
    for start, end in pairwise(edges):
        pid, index, number = obs[start]
        n, f, cut = obs[start:end, 2], flags[start:end], end < len(obs)
        # The ingest that closed a dead worker's lane put a BOUNDARY behind a terminal row.
        if cut and len(n) > 1 and n[-1] == n[-2] and f[-1] == BOUNDARY and f[-2] & TERMINATED:
            n, f = n[:-1], f[:-1]
        name = f"environment {index} of {pid}"
        if (pid, index) not in newest:
            return [*wrong, f"{name} is no worker's, or comes back: a mixed or doubled chunk"]
        if number != 0 and (whole or start):
            wrong.append(f"{name} begins with row {number}")
        if (np.diff(n) != 1).any():
            at = int(np.flatnonzero(np.diff(n) != 1)[0])
            wrong.append(f"{name}: row {n[at + 1]} follows row {n[at]}")
        ends = np.where(n // EPISODE % 2 == 0, TERMINATED, TRUNCATED)
        place = n % EPISODE
        must = np.select([place == 0, place == EPISODE - 2, place == EPISODE - 1],
                         [RESET, ends, BOUNDARY], 0)  # fmt: skip
        if cut and f[-1] & BOUNDARY and not must[-1] & BOUNDARY:
            must[-1] = must[-1] & RESET | BOUNDARY  # its successor is unknown
        if (f != must).any():
            wrong.append(f"{name}: flags of row {n[np.flatnonzero(f != must)[0]]}")
        step = np.flatnonzero(place[: len(n)] != EPISODE - 1)
        action = rows["action"][start:end][step].astype(np.int64)
        if (action != action_of(index, n[step])).any():
            wrong.append(f"{name}: an action that answered something else")
        if (rows["reward"][start:end][step] != reward_of(n[step], action)).any():
            wrong.append(f"{name}: a reward of another step")
        lost[pid] += newest.pop((pid, index)) - int(n[-1]) - 1
    return wrong


def judge(folder: Path, left: Rows, lanes: list[int], steps: int, summary: Any) -> tuple[Any, int]:
    """(what is wrong, rows of the dead worker's open chunk that are lost)."""
    wrong: list[str] = []
    workers = [c.process.pid for c in Armed.all if c.role.startswith("worker")]
    newest, lost = {}, dict.fromkeys(workers, 0)
    for path in folder.glob("env-*"):
        pid, index = map(int, path.name.split("-")[1:])
        if pid in workers:
            newest[pid, index] = int.from_bytes(path.read_bytes(), "little")
    replay = folder / "replay.npz"
    for lane in range(ENVS):
        mine = np.array(lanes, dtype=np.int64) == lane
        rows = {name: column[mine] for name, column in left.items()}
        if replay.exists():
            stored = rows_of_replay(replay, lane)
            rows = {name: np.concatenate([stored[name], rows[name]]) for name in rows}
        wrong += judge_lane(rows, replay.exists(), newest, lost)
    if not replay.exists():
        return wrong, 0
    for (pid, _), number in newest.items():  # whose rows are nowhere
        lost[pid] += number
    if late := lost.pop(workers[-1]):
        wrong.append(f"{late} rows are lost of a worker that left in order")
    if any(rows > CHUNK_ROWS for rows in lost.values()):
        wrong.append(f"{lost} rows are lost, an open chunk has {CHUNK_ROWS}")
    with np.load(replay) as saved:
        stored_steps = int(saved["steps"])
    if (summary["env_steps"], summary["steps_committed"]) != (stored_steps, steps):
        told = f"{summary['env_steps']} and {summary['steps_committed']}"
        wrong.append(f"steps stored {stored_steps}, committed {steps}; summary.json says {told}")
    return wrong, sum(lost.values())


def run(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One case, in a process of its own."""
    role, began, wrong = case["role"], time.monotonic(), []
    Armed.role_to_die, Armed.kill_at = role, f"{case['point']}:{case['hit']}"
    os.environ["WITNESS_PLACE"] = str(folder)
    fdql.crew.Child = Armed  # type: ignore[misc]
    evidence: list[Any] = []
    close = RunMemory.close

    def look_and_close(memory: RunMemory) -> None:
        evidence.append(rows_left(memory))
        if not newest_is_whole(memory, folder):
            wrong.append("the newest snapshot is mixed")
        close(memory)

    RunMemory.close = look_and_close  # type: ignore[method-assign]
    result = train(config_of(role, folder), quiet=True)
    s = result.summary
    first = next(c for c in Armed.all if c.role.startswith(role))
    named = bool(result.problem) and role in result.problem and "SIGKILL" in result.problem
    if first.process.returncode != -signal.SIGKILL:
        wrong.append(f"the point was not reached: {role} ended with {first.process.returncode}")
    ends = "goes on" if result.exit_reason == "total_timesteps" else "names the cause"
    if ends == "goes on":
        if result.problem and not named:  # named: it died while leaving
            wrong.append(result.problem)
        if not named and s["worker_restarts"] != 1:
            wrong.append(f"{s['worker_restarts']} restarts")
    elif not (result.exit_reason == "crash" and named):
        wrong.append(f"{result.exit_reason}: {result.problem}")
    elif role in ("worker", "evaluator") and first.ready:
        wrong.append(f"the run should have gone on: {result.problem}")
    for child in Armed.all:
        if child is not first and (code := child.process.returncode):
            wrong.append(f"{child.role} ended with {code}: {child.account()}")
    faults, lost = judge(folder, *evidence[0], s)
    wrong += faults
    gc.collect()  # supervisor and crew know each other
    if "memfd:" in Path("/proc/self/maps").read_text():
        wrong.append("shared memory is left")
    if odd := [p.name for p in (folder / "run").rglob(".*")]:
        wrong.append(f"temporary files are left: {odd}")
    return {"ends": ends, "lost": lost, "seconds": time.monotonic() - began, "wrong": wrong}


def left_running(folder: Path) -> list[int]:
    """Processes of a run; each has the run's folder in its plan, which is its standard input."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        plan = process / "fd" / "0"
        try:
            if "memfd:fdql" in os.readlink(plan) and str(folder) in plan.read_text():
                found.append(int(process.name))
        except OSError:  # gone meanwhile, or another user's
            continue
    return found


def attempt(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a case in a fork, with a deadline; look for what it left running."""
    folder.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        try:
            outcome = run(case, folder)
        except BaseException:
            outcome = {"wrong": [traceback.format_exc()]}
        (folder / "outcome.json").write_text(json.dumps(outcome))
        os._exit(0)
    deadline = time.monotonic() + DEADLINE
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            log = folder / "run" / "log.txt"
            tail = log.read_text()[-1500:] if log.exists() else ""
            return {"wrong": [f"hangs: not over after {DEADLINE:.0f} s\n{tail}"]}
        time.sleep(0.02)
    outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    if pids := left_running(folder / "run"):
        outcome["wrong"].append(f"processes are left: {pids}")
    return outcome


if __name__ == "__main__":
    root, *words = sys.argv[1:]
    for i, word in enumerate(words):
        told = json.loads(word)
        print(json.dumps(told | attempt(told, Path(root) / f"{os.getpid()}-{i}")), flush=True)
