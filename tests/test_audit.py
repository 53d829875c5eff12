"""Checksums: known values, and what a run that checks does when a bit flips."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fdql.proc.env_worker import EnvWorker
from fdql.proc.inference import InferenceServer
from fdql.proc.loader import Loader
from fdql.proc.memory import READER_INFERENCE, RECORD_TRAINER, RunMemory
from fdql.profile import Counter
from fdql.shm.audit import CorruptError, crc32c, crc32c_portable
from fdql.shm.layout import OFFSETS
from fdql.supervisor import train
from plans import small_config, small_plan


def test_known_checksums():
    """RFC 3720, B.4, and the check value of the CRC catalogue."""
    for data, value in [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ]:
        assert crc32c(data) == crc32c_portable(data) == value


def test_both_ways_agree_and_continue():
    rng = random.Random(0)
    for n in (1, 7, 8, 9, 63, 64, 65, 1000):
        data, cut = rng.randbytes(n), rng.randrange(n)
        whole = crc32c(data)
        assert whole == crc32c_portable(data)
        assert whole == crc32c(data[cut:], crc32c(data[:cut]))
        bit = rng.randrange(8 * n)
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert crc32c(flipped) != whole


class Run:
    """A worker of 4 environments in 2 groups, inference and the loader, in this process."""

    def __init__(self, tmp_path: Path, *, check: bool) -> None:
        plan = small_plan("own_envs:Counting", tmp_path, check=check)
        self.memory = RunMemory.create(plan, shared=False)
        self.server, self.loader = InferenceServer(self.memory), Loader(self.memory)
        self.memory.record(RECORD_TRAINER).set(Counter.ALLOWED, 1000)
        self.worker = EnvWorker(self.memory, 0, 1)
        self.worker.start()

    def serve(self) -> None:
        slots = self.server.slots
        self.server.serve(slots.collect(self.server.ready, 2, 0, 0))

    def step(self) -> None:
        for group in (0, 1):
            assert self.worker.slots.wait(group, 0)
            assert self.worker.step_group(group)
        self.worker.commit()

    def publish(self) -> None:
        flat = np.random.default_rng(0).normal(size=self.memory.plan.policy_size)
        self.memory.weights_writer().publish(flat.astype(np.float32), 1)


def flip(buffer: memoryview, byte: int) -> None:
    buffer[byte] ^= 0x10


def flip_chunk(run: Run) -> None:
    flip(run.worker.ring.payload(0), 200)


def flip_step_number(run: Run) -> None:
    """The header of the first slot, which stands before its payload."""
    ring = np.frombuffer(run.worker.ring.payload(0).obj, np.uint8)
    first = np.frombuffer(run.worker.ring.payload(0), np.uint8)
    at = first.ctypes.data - ring.ctypes.data - 64 + OFFSETS["SlotHeader"]["first_step"][0]
    ring[at] ^= 1


def flip_policy(run: Run) -> None:
    _, data = run.memory.weights_reader(READER_INFERENCE).acquire()
    weights = np.frombuffer(data.obj, np.uint8)
    weights[np.frombuffer(data, np.uint8).ctypes.data - weights.ctypes.data + 5] ^= 1


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("flip_it", "then", "says"),
    [
        (flip_chunk, lambda r: r.loader.ingest(), "chunk 1 of a ring written by process"),
        (flip_step_number, lambda r: r.loader.ingest(), "from step 1 on"),
        (lambda r: flip(r.worker.slots.obs(1), 70), lambda r: r.serve(),
         "request 2 of worker 0, group 1"),
        (lambda r: flip(r.worker.slots.actions(1), 17), lambda r: r.worker.slots.wait(1, 0),
         "reply 2 of worker 0, group 1"),
        (flip_policy, lambda r: r.server.refresh(), "snapshot 1 of the trainer"),
    ],
    ids=["chunk", "step", "request", "reply", "policy"],
)  # fmt: skip
def test_a_flipped_bit_is_found_where_it_is_read(
    own_environments: str, tmp_path: Path, check: bool, flip_it: Any, then: Any, says: str
) -> None:
    """Where the run checks; where it does not, the bytes go through."""
    run = Run(tmp_path, check=check)
    run.serve()
    run.step()
    if "reply" in says:
        run.serve()
    if "snapshot" in says:
        run.publish()
    flip_it(run)
    if check:
        with pytest.raises(CorruptError, match=says):
            then(run)
    else:
        then(run)


def test_a_successors_rows_are_not_taken_for_corrupt(own_environments: str, tmp_path: Path) -> None:
    """It writes over what its dead predecessor asked about while inference looks at that."""
    run = Run(tmp_path, check=True)
    found = run.server.slots.collect(run.server.ready, 2, 0, 0)
    heir = EnvWorker(run.memory, 0, 2)
    flip(heir.slots.obs(1), 3)
    run.server.serve(found)
    assert run.server.slots.ready() == 0
    heir.start()
    run.serve()
    assert heir.slots.wait(0, 0)


def test_a_checked_run_ends_well(own_environments: str, tmp_path: Path) -> None:
    config = small_config("own_envs:Counting", total_timesteps=2000, check=True, workers=2,
                          run_dir=str(tmp_path / "run"))  # fmt: skip
    s = train(config, quiet=True).summary
    assert (s["exit_reason"], s["steps_fault"]) == ("total_timesteps", None)


def test_a_corrupt_run_ends_and_says_what(own_environments: str, tmp_path: Path) -> None:
    config = small_config("own_envs:FlipsABit", check=True, total_timesteps=10**6,
                          run_dir=str(tmp_path / "run"))  # fmt: skip
    result = train(config, quiet=True)
    assert (result.exit_reason, result.exit_code) == ("corrupt", 1)
    assert "inference found what nobody wrote" in result.problem
    assert "of worker 0, group 0" in result.problem


def test_a_corrupt_serial_run_ends_too(
    own_environments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Loader.ingest

    def flips(self: Loader) -> int:
        if self.replay.steps > 100 and self.rings[0].peek():
            flip(self.rings[0].payload(0), 3)
        return ingest(self)

    monkeypatch.setattr(Loader, "ingest", flips)
    config = small_config("own_envs:Counting", check=True, serial=True, total_timesteps=2000,
                          run_dir=str(tmp_path / "run"))  # fmt: skip
    result = train(config, quiet=True)
    assert (result.exit_reason, result.exit_code) == ("corrupt", 1)
    assert "chunk" in result.problem
    assert result.summary["steps_fault"] is None
