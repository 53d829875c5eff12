"""Publishing a snapshot and acquiring it: the trainer's and the inference process's moment.

    pytest bench/bench_weights.py --benchmark-group-by=group -s

Sizes in cache (400 KB, two layers of 256) and out of it (10 MB). Beside it: memcpy of the same
bytes into as many buffers in turn.
"""

from __future__ import annotations

import numpy as np
import pytest
from fdql.shm import probe_ring, probe_slots
from fdql.shm.segment import Segment
from fdql.shm.weights import WeightsReader, WeightsWriter, init_weights, weights_bytes

SIZES = [400_000, 10_000_000]


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.benchmark(group="publish and acquire")
def test_publish_and_acquire(benchmark, nbytes):
    segment = Segment.create([(5, 0, weights_bytes(2, nbytes))], 0)
    memory = segment.section(5, 0)
    init_weights(memory, 2, nbytes)
    writer, reader = WeightsWriter(memory), WeightsReader(memory, 0)
    weights = np.arange(nbytes // 4, dtype=np.float32)

    def publish() -> None:
        writer.publish(weights, writer.version + 1)
        assert reader.acquire()[0] == writer.version
        reader.release()

    benchmark(publish)
    assert np.array_equal(np.frombuffer(reader.acquire()[1], np.float32), weights)


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.benchmark(group="publish and acquire")
def test_memcpy(benchmark, nbytes):
    segment = Segment.create([(1, i, nbytes) for i in range(5)], 0)
    *targets, source = (segment.section(1, i) for i in range(5))
    source[:] = bytes([3]) * nbytes
    turn = iter(range(1 << 60))

    def copy() -> None:
        probe_ring.copy(targets[next(turn) % 3], source, nbytes, 1)

    benchmark(copy)
    assert targets[0][-1] == 3


@pytest.mark.benchmark(group="100,000 times acquire and release")
def test_acquire(benchmark):
    segment = Segment.create([(5, 0, weights_bytes(2, 4096))], 0)
    memory = segment.section(5, 0)
    init_weights(memory, 2, 4096)
    WeightsWriter(memory).publish(bytes(4096), 1)
    benchmark(probe_slots.weights_acquire, memory, 0, 100_000)
    assert WeightsReader(memory, 0).acquire()[0] == 1
