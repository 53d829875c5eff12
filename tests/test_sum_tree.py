"""The sum tree against values worked out by hand, a list, and the edges of float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from fdql.replay.size import level_sizes
from fdql.replay.sum_tree import NotEnoughData, PriorityError, SumTree, draw_leaves
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from oracles import NaiveTree
from scipy import stats


def i64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def f64(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def tree_of(priorities: np.ndarray) -> SumTree:
    tree = SumTree(len(priorities))
    tree.set(np.arange(len(priorities)), np.asarray(priorities, dtype=np.float64))
    return tree


def leaves_at(tree: SumTree, mass: np.ndarray) -> np.ndarray:
    """Leaves at points of the cumulated priorities, through the kernel itself."""
    leaf = np.full(mass.size, -1, dtype=np.int64)
    draw_leaves(tree.node, tree.start, mass.copy(), leaf, np.zeros(8))
    return leaf


def test_levels_of_a_small_tree():
    # 20 leaves are 3 nodes = 24 places; their 3 sums one node of 8; the root one more
    assert level_sizes(20) == [24, 8, 8]
    tree = SumTree(20)
    assert tree.start.tolist() == [0, 24, 32]
    tree.set(i64(0, 7, 8, 19), f64(1, 2, 4, 8))
    assert tree.tree[24:32].tolist() == [3, 4, 8, 0, 0, 0, 0, 0]
    assert tree.tree[32:].tolist() == [15, 0, 0, 0, 0, 0, 0, 0]
    assert tree.total == 15
    tree.check_valid()


def test_nodes_are_cache_lines():
    tree = SumTree(1000)
    assert tree.tree.ctypes.data % 64 == 0
    assert (tree.start % 8 == 0).all()


def test_repeated_leaf_keeps_last_priority():
    # leaves 1 2 3 4, total 10; leaf 2 := 9, then 5: total 12
    tree = tree_of(f64(1, 2, 3, 4))
    tree.set(i64(2, 2), f64(9, 5))
    assert tree.leaves.tolist() == [1, 2, 5, 4]
    assert tree.total == 12


def test_draw_is_stratified():
    # total 10 in 4 strata of 2.5; u = 0.5 takes their middles 1.25, 3.75, 6.25, 8.75
    # cumulated priorities 1 3 6 10: leaves 1, 2, 3, 3
    tree = tree_of(f64(1, 2, 3, 4))
    leaf, u = i64(0, 0, 0, 0), f64(0.5, 0.5, 0.5, 0.5)
    tree.draw(u, leaf)
    assert leaf.tolist() == [1, 2, 3, 3]
    assert u.tolist() == [0.5, 0.5, 0.5, 0.5]  # the caller's numbers stay


def test_zero_leaves_are_skipped_at_both_ends():
    # 0 0 3 0 1 0 0: a point at 0 is leaf 2, at 3 leaf 4, just below 4 leaf 4
    tree = tree_of(f64(0, 0, 3, 0, 1, 0, 0))
    points = f64(0, 2, np.nextafter(3, 0), 3, np.nextafter(4, 0))
    assert leaves_at(tree, points).tolist() == [2, 2, 2, 4, 4]


def test_more_draws_than_positive_leaves():
    tree = SumTree(100)
    tree.set(i64(42), f64(0.3))
    leaf = np.zeros(64, dtype=np.int64)
    tree.draw(np.full(64, 1.0 - 2.0**-53), leaf)  # the last stratum rounds up to the total
    assert (leaf == 42).all()


def test_lap_priorities_give_their_probabilities():
    # errors .5, 2, 8 bins: max(error, 1) ** .4 = 1, 1.3195, 2.2974; shares .2166, .2858, .4976
    tree = tree_of(np.maximum(f64(0.5, 2, 8), 1) ** 0.4)
    assert tree.leaves == pytest.approx([1, 1.3195, 2.2974], abs=5e-5)
    assert tree.leaves / tree.total == pytest.approx([0.2166, 0.2858, 0.4976], abs=5e-5)


def test_nothing_to_draw():
    tree = SumTree(9)
    leaf = np.zeros(2, dtype=np.int64)
    with pytest.raises(NotEnoughData):
        tree.draw(f64(0.1, 0.9), leaf)
    tree.set(i64(8), f64(1))
    tree.draw(f64(0.1, 0.9), leaf)
    assert leaf.tolist() == [8, 8]
    tree.set(i64(8), f64(0))
    with pytest.raises(NotEnoughData):
        tree.draw(f64(0.1, 0.9), leaf)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, 1e-101, 1e101, 5e-324])
def test_refused_priorities_change_nothing(bad):
    tree = tree_of(f64(1, 2, 3, 4))
    before = tree.tree.copy()
    with pytest.raises(PriorityError, match=r"priority\[1\] = .*: must be 0 or in"):
        tree.set(i64(0, 1, 2), f64(7, bad, 7))
    assert np.array_equal(tree.tree, before)


def test_refused_leaves_change_nothing():
    tree = tree_of(f64(1, 2, 3, 4))
    for outside in (-1, 4, 7):
        with pytest.raises(IndexError, match=f"{outside}: must be in 0..3"):
            tree.set(i64(0, outside), f64(7, 7))
    with pytest.raises(ValueError, match="2 leaves and 1 priorities"):
        tree.set(i64(0, 1), f64(7))
    with pytest.raises(ValueError, match="1 random numbers for 2 draws"):
        tree.draw(f64(0.5), i64(0, 0))
    with pytest.raises(ValueError, match="n_leaves = 0"):
        SumTree(0)
    assert tree.leaves.tolist() == [1, 2, 3, 4]


def test_check_valid_finds_what_is_wrong():
    for place, value in ((0, 2.0), (24, 1.0), (21, 1.0), (32, 7.0), (33, 1.0), (0, math.nan)):
        tree = SumTree(20)  # levels at 0, 24, 32; leaves 20 to 23 are padding
        tree.set(i64(3), f64(1))
        tree.tree[place] = value if place != 24 else 1.5
        with pytest.raises(AssertionError):
            tree.check_valid()


EDGES = (0.1, 1 / 3, 1e-100, 1.0, 1e100, 3.0, 1e16, 0.7)


@pytest.mark.parametrize("stride", [1, 8, 64])
def test_every_pattern_of_zeros_at_every_edge(stride):
    """One positive leaf or none below each child of one node, on each of three levels (512 leaves).

    Points at 0, at every prefix sum, just beside each, and just below the total.
    """
    for values in (EDGES, (0.1,) * 8):
        for pattern in range(1, 256):
            leaf = np.arange(8) * stride + (stride - 1) * (np.arange(8) % 2)
            priority = np.where((pattern >> np.arange(8)) & 1, values, 0.0)
            tree = SumTree(512)
            tree.set(leaf, priority)
            prefix = np.array([0.0, *np.cumsum(priority)])
            points = np.concatenate([prefix, np.nextafter(prefix, 0), np.nextafter(prefix, np.inf)])
            points = np.append(points[points < tree.total], np.nextafter(tree.total, 0))
            drawn = leaves_at(tree, points)
            assert (tree.tree[drawn] > 0).all(), (stride, pattern, points)
            below = prefix[np.searchsorted(leaf, drawn)]
            assert (points >= below).all()
            assert (points < below + priority[np.searchsorted(leaf, drawn)] * (1 + 1e-15)).all()


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-100, 1e100)), min_size=1, max_size=200).filter(
        any
    ),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=32),
)
@settings(deadline=None, derandomize=True, max_examples=200)
def test_a_draw_is_positive_whatever_the_priorities(priorities, u):
    tree = tree_of(np.array(priorities))
    tree.check_valid()
    leaf = np.full(len(u), -1, dtype=np.int64)
    tree.draw(np.array(u), leaf)
    assert (tree.leaves[leaf] > 0).all()
    assert (np.diff(leaf) >= 0).all()  # ascending: neighbours are gathered together


def test_sums_do_not_drift():
    rng = np.random.default_rng(0)
    tree = SumTree(4096)
    for _ in range(300):
        tree.set(rng.integers(0, 4096, 256), rng.random(256) * 10.0 ** rng.integers(-9, 9, 256))
    tree.check_valid()  # bit for bit
    assert tree.total == pytest.approx(math.fsum(tree.leaves), rel=1e-14)


def test_draws_follow_the_priorities():
    """Single draws, so that strata do not flatter: chi-square over 100 leaves, fixed seed."""
    rng = np.random.default_rng(7)
    priority = rng.random(100) ** 2 + 0.01
    priority[rng.random(100) < 0.3] = 0.0
    tree = tree_of(priority)
    counts = np.zeros(100)
    leaf = np.zeros(1, dtype=np.int64)
    for _ in range(20_000):
        tree.draw(rng.random(1), leaf)
        counts[leaf[0]] += 1
    there = priority > 0
    assert counts[~there].sum() == 0
    expected = 20_000 * priority[there] / priority.sum()
    assert stats.chisquare(counts[there], expected).pvalue > 0.01


def test_strata_give_each_leaf_its_share():
    # Leaf i covers priority[i] * B / total strata: its count is that number, give or take 2
    rng = np.random.default_rng(8)
    tree = tree_of(rng.random(50) + 0.1)
    leaf = np.zeros(4000, dtype=np.int64)
    tree.draw(rng.random(4000), leaf)
    counts = np.bincount(leaf, minlength=50)
    assert (abs(counts - tree.leaves * 4000 / tree.total) <= 2).all()


class TreeAgainstList(RuleBasedStateMachine):
    """Priorities are multiples of 1/8, so every sum is exact and both must agree exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 130  # three levels, the last node of each partly padding
        self.tree, self.naive = SumTree(self.n), NaiveTree(self.n)

    @rule(
        pairs=st.lists(st.tuples(st.integers(0, 129), st.integers(0, 1 << 20)), max_size=40),
        sort=st.booleans(),
    )
    def set(self, pairs, sort):
        pairs = sorted(pairs, key=lambda p: p[0]) if sort else pairs  # stable: the last stays last
        leaf, priority = [p[0] for p in pairs], [p[1] / 8 for p in pairs]
        self.tree.set(np.array(leaf, dtype=np.int64), np.array(priority, dtype=np.float64))
        self.naive.set(leaf, priority)

    @rule(first=st.integers(0, 129), count=st.integers(1, 130))
    def clear_range(self, first, count):
        leaf = np.arange(first, min(first + count, self.n))
        self.tree.set(leaf, np.zeros(leaf.size))
        self.naive.set(leaf.tolist(), [0.0] * leaf.size)

    @rule(shares=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20))
    def draw(self, shares):
        if self.naive.total == 0:
            with pytest.raises(NotEnoughData):
                self.tree.draw(np.array(shares), np.zeros(len(shares), dtype=np.int64))
            return
        points = np.floor(np.array(shares) * self.naive.total * 8) / 8
        expected = [self.naive.draw(x) for x in points.tolist()]
        assert leaves_at(self.tree, points).tolist() == expected

    @rule(
        bad=st.sampled_from([math.nan, math.inf, -1.0]),
        pairs=st.lists(st.tuples(st.integers(0, 129), st.integers(0, 9)), max_size=5),
    )
    def refuse(self, bad, pairs):
        leaf = np.array([*(p[0] for p in pairs), 0], dtype=np.int64)
        with pytest.raises(PriorityError):
            self.tree.set(leaf, np.array([*(p[1] for p in pairs), bad], dtype=np.float64))

    @invariant()
    def same(self):
        self.tree.check_valid()
        assert self.tree.leaves.tolist() == self.naive.leaves
        assert self.tree.total == self.naive.total


TestTreeAgainstList = TreeAgainstList.TestCase
TestTreeAgainstList.settings = settings(
    deadline=None, derandomize=True, max_examples=60, stateful_step_count=25
)


@pytest.mark.parametrize("n_leaves", [1, 2, 7, 8, 9, 64, 65, 512, 513, 4097])
def test_sizes_around_powers_of_eight(n_leaves):
    tree = SumTree(n_leaves)
    every = np.arange(n_leaves)
    tree.set(every, np.ones(n_leaves))
    tree.check_valid()
    assert tree.total == n_leaves
    assert tree.tree.size == sum(level_sizes(n_leaves))
    leaf = np.zeros(n_leaves, dtype=np.int64)
    tree.draw(np.full(n_leaves, 0.5), leaf)  # the middle of the i-th stratum is in leaf i
    assert leaf.tolist() == every.tolist()


def test_order_of_writes_does_not_matter_for_the_sums():
    # 6 orders of three writes give the same bits, because sums are re-added and never adjusted
    writes = [(3, 0.1), (4, 0.2), (11, 0.3)]
    results = set()
    for order in itertools.permutations(writes):
        tree = SumTree(16)
        for leaf, priority in order:
            tree.set(i64(leaf), f64(priority))
        results.add(tree.tree.tobytes())
    assert len(results) == 1
