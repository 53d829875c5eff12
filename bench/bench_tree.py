"""Priorities: draw 256 leaves, write 256 back. What one learner step asks of the tree.

    pytest bench/bench_tree.py --benchmark-group-by=group

2**14 leaves stay in the second-level cache, 2**20 do not. Beside the tree: numpy's cumulated sum
(added up anew by every draw, so its write is not shown) and, where installed, tianshou's tree and
cpprb's buffer (its sample also computes weights and copies rows of 4 bytes: it cannot do less).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fdql.replay.sum_tree import SumTree

DRAWS = 256
SIZES = (1 << 14, 1 << 20)

Draw = Callable[[], np.ndarray]
Write = Callable[[np.ndarray, np.ndarray], None]


def fdql_tree(priority: np.ndarray, rng: np.random.Generator) -> tuple[Draw, Write]:
    tree = SumTree(priority.size)
    tree.set(np.arange(priority.size), priority)
    u, leaf = np.empty(DRAWS), np.empty(DRAWS, dtype=np.int64)

    def draw() -> np.ndarray:
        rng.random(out=u)
        tree.draw(u, leaf)
        return leaf

    return draw, tree.set


def numpy_cumsum(priority: np.ndarray, rng: np.random.Generator) -> tuple[Draw, Write]:
    leaves = priority.copy()
    strata = np.arange(DRAWS)

    def draw() -> np.ndarray:
        below = leaves.cumsum()
        return np.searchsorted(below, (strata + rng.random(DRAWS)) * (below[-1] / DRAWS), "right")

    def write(leaf: np.ndarray, p: np.ndarray) -> None:
        leaves[leaf] = p

    return draw, write


def tianshou_tree(priority: np.ndarray, rng: np.random.Generator) -> tuple[Draw, Write]:
    segtree = pytest.importorskip("tianshou.data.utils.segtree", exc_type=ImportError)
    tree = segtree.SegmentTree(priority.size)
    tree[np.arange(priority.size)] = priority

    def draw() -> np.ndarray:
        return tree.get_prefix_sum_idx(rng.random(DRAWS) * tree.reduce())

    return draw, tree.__setitem__


def cpprb_buffer(priority: np.ndarray, rng: np.random.Generator) -> tuple[Draw, Write]:
    cpprb = pytest.importorskip("cpprb", exc_type=ImportError)
    buffer = cpprb.PrioritizedReplayBuffer(priority.size, {"row": {"dtype": np.int32}}, alpha=1.0)
    buffer.add(row=np.arange(priority.size), priorities=priority)
    return lambda: buffer.sample(DRAWS)["indexes"], buffer.update_priorities


@pytest.fixture(params=SIZES, ids=lambda n: f"2**{n.bit_length() - 1}")
def priority(request: pytest.FixtureRequest) -> np.ndarray:
    """Priorities 1 to 3 as under LAP, a tenth of the leaves empty."""
    rng = np.random.default_rng(0)
    p = 1 + 2 * rng.random(request.param)
    p[rng.random(request.param) < 0.1] = 0.0
    return p


def check_shares(draw: Draw, priority: np.ndarray, *, zeros: bool) -> None:
    """Leaves are drawn in proportion to priority: the mean drawn priority is sum p^2 / sum p."""
    drawn = priority[np.concatenate([draw().copy() for _ in range(100)])]
    assert drawn.mean() == pytest.approx((priority**2).sum() / priority.sum(), rel=0.02)
    assert zeros or (drawn > 0).all()


@pytest.mark.parametrize("maker", [fdql_tree, numpy_cumsum, tianshou_tree, cpprb_buffer])
def test_draw_256(benchmark, maker, priority):
    benchmark.group = f"draw {DRAWS} of {priority.size} leaves"
    draw, _ = maker(priority, np.random.default_rng(1))
    draw()  # compile outside the timed region
    benchmark(draw)
    check_shares(draw, priority, zeros=maker is cpprb_buffer)  # cpprb turns 0 into 1e-4


@pytest.mark.parametrize("maker", [fdql_tree, tianshou_tree, cpprb_buffer])
def test_write_back_256(benchmark, maker, priority):
    """Leaves as they come from a batch: drawn by priority; in ascending order when ours."""
    benchmark.group = f"write {DRAWS} of {priority.size} leaves"
    rng = np.random.default_rng(2)
    draw, write = maker(priority, rng)
    batches = [(np.array(draw(), dtype=np.int64), 1 + 2 * rng.random(DRAWS)) for _ in range(64)]
    after = priority.copy()
    for leaf, p in batches:  # all once, so that any number of timed rounds ends in the same state
        write(leaf, p)
        after[leaf] = p
    turn = iter(range(1 << 62))
    benchmark(lambda: write(*batches[next(turn) % 64]))
    for leaf, p in batches:
        write(leaf, p)
    check_shares(draw, after, zeros=maker is cpprb_buffer)


def test_write_back_256_anywhere(benchmark, priority):
    """The same in no order at all: the worst case for the tree."""
    benchmark.group = f"write {DRAWS} of {priority.size} leaves"
    rng = np.random.default_rng(3)
    tree = SumTree(priority.size)
    tree.set(np.arange(priority.size), priority)
    batches = [(rng.integers(0, priority.size, DRAWS), rng.random(DRAWS)) for _ in range(64)]
    turn = iter(range(1 << 62))
    tree.set(*batches[0])
    benchmark(lambda: tree.set(*batches[next(turn) % 64]))
    tree.check_valid()
