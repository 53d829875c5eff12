"""Priorities as an 8-ary sum tree. Stage 4 of 8, `sample`; written by `ingest` and `update` too.

One owner thread reads and writes. The tree is one float64 array, level after level: leaves first,
the root last, every level padded with zeros to whole nodes of 8 children = 64 bytes = one cache
line. A batch goes through the tree one level at a time, so that its cache misses overlap; 8
children per node make 7 levels of 20 for 2**20 leaves.

A parent is the sum of its 8 children re-added in one fixed order, never adjusted by a difference:
it equals that sum bit for bit and cannot drift. (Schaul 2016, B.2.1, with wider nodes.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fdql.kernel_cache import njit
from fdql.replay.columns import zero_column
from fdql.replay.size import FANOUT, level_sizes

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# A positive priority stays in this range, so that sums are finite and x * BELOW_ONE < x holds.
SMALLEST = 1e-100
LARGEST = 1e100
FAR_LEVELS = 3  # levels from the leaves that a first-level cache does not hold
BELOW_ONE = 1.0 - 2.0**-53  # x * BELOW_ONE is the float64 just below a normal x > 0


class PriorityError(ValueError):
    """Priorities that a tree cannot hold; it is as it was before the call."""


class NotEnoughData(RuntimeError):
    """Nothing can be drawn: no leaf has a positive priority."""


@njit()
def repair_sums(tree: F64, start: I64, touched: I64, count: int) -> None:
    """Re-add every sum above the touched leaves. O(count log leaves), no allocation.

    tree     (nodes,)    float64, levels one after another, see SumTree
    start    (levels,)   int64, offset of each level in `tree`; level 0 = leaves, last = root
    touched  (>= count,) int64, leaf indices, repeats allowed; overwritten. Neighbours under one
             parent are merged, so sorted leaves cost least.
    """
    for level in range(start.size - 1):
        kept = 0
        last = -1
        for i in range(count):  # branch-free: a repeat is overwritten by the next node
            node = touched[i] >> 3
            touched[kept] = node
            kept += node != last
            last = node
        count = kept
        children = start[level]
        parents = start[level + 1]
        for i in range(count):
            c = children + 8 * touched[i]
            total = tree[c]
            for k in range(1, 8):
                total += tree[c + k]
            tree[parents + touched[i]] = total


@njit()
def set_priorities(tree: F64, start: I64, leaf: I64, priority: F64, touched: I64) -> None:
    """Write leaf priorities in order (a repeated leaf keeps its last) and repair the sums.

    leaf      (B,)    int64 in [0, leaves)
    priority  (B,)    float64, 0 or in [SMALLEST, LARGEST]; the caller checks
    touched   (>= B,) int64 scratch
    """
    for i in range(leaf.size):
        tree[leaf[i]] = priority[i]
        touched[i] = leaf[i]
    repair_sums(tree, start, touched, leaf.size)


@njit()
def draw_leaves(node: F64, start: I64, mass: F64, leaf: I64, prefix: F64) -> float:
    """Find the leaf at each point of the cumulated priorities. O(B log leaves), no allocation.

    node    (nodes, 8) float64, the tree by nodes
    mass    (B,) float64 in [0, total); overwritten with what is left inside the leaf
    leaf    (B,) int64, written: the leaf whose range of priorities holds the point; never one of 0
    prefix  (8,) float64 scratch; prefix[0] is 0

    Invariant: 0 <= mass < value of the node, which is s8 of its prefix sums s1..s8, added in the
    order of repair_sums. Child k = number of prefix sums <= mass, so k <= 7 and s(k+1) > s(k):
    child k is positive. Subtracting s(k) may round up to the child itself, hence the clamp just
    below it.

    256 draws of 2**20 leaves: 14 us. No branch depends on the draw: the compares are counted and
    s(k) is read back from `prefix` (with selects, which LLVM turns into branches, 45 us). Before a
    level that caches do not hold, a loop that does nothing else reads one word of each node, so
    that their misses overlap (without, 23 us); the sum of these words is returned only so that the
    compiler keeps the reads.
    """
    seen = 0.0
    for b in range(leaf.size):
        leaf[b] = 0
    for level in range(start.size - 2, -1, -1):
        first = start[level] >> 3
        if level < FAR_LEVELS:
            for b in range(leaf.size):
                seen += node[first + leaf[b], 0]
        for b in range(leaf.size):
            c = first + leaf[b]
            x = mass[b]
            s1 = node[c, 0]
            s2 = s1 + node[c, 1]
            s3 = s2 + node[c, 2]
            s4 = s3 + node[c, 3]
            s5 = s4 + node[c, 4]
            s6 = s5 + node[c, 5]
            s7 = s6 + node[c, 6]
            prefix[1] = s1
            prefix[2] = s2
            prefix[3] = s3
            prefix[4] = s4
            prefix[5] = s5
            prefix[6] = s6
            prefix[7] = s7
            low = int(x >= s1) + int(x >= s2) + int(x >= s3)
            k = low + int(x >= s4) + int(x >= s5) + int(x >= s6) + int(x >= s7)
            mass[b] = min(x - prefix[k], node[c, k] * BELOW_ONE)
            leaf[b] = 8 * leaf[b] + k
    return seen


@njit()
def draw_strata(
    node: F64, start: I64, total: float, u: F64, mass: F64, leaf: I64, prefix: F64
) -> float:
    """Draw one leaf from each of B equal parts of `total`, at u (B,) float64 in [0, 1) of the part.

    mass (B,) float64 scratch; the rest as in draw_leaves. (Schaul 2016, B.2.1)
    """
    n = leaf.size
    for b in range(n):
        mass[b] = min((b + u[b]) * (total / n), total * BELOW_ONE)  # the last may round up to total
    return draw_leaves(node, start, mass, leaf, prefix)


@njit()
def first_refused(leaf: I64, priority: F64, n_leaves: int, least: float) -> int:
    """Index of the first pair that a tree of `n_leaves` cannot take, or -1.

    A leaf must be inside; a priority must be `least` or in [SMALLEST, LARGEST], which NaN is not.
    """
    for i in range(leaf.size):
        p = priority[i]
        inside = 0 <= leaf[i] < n_leaves
        if not (inside and ((SMALLEST <= p <= LARGEST) or p == least)):
            return i
    return -1


class SumTree:
    """Priorities of `n_leaves` leaves, all 0 at first. Checks what the kernels do not.

    tree    (nodes,)    float64: leaf i is tree[i]
    start   (levels,)   int64: offset of each level, leaves first
    """

    def __init__(self, n_leaves: int) -> None:
        if n_leaves < 1:
            raise ValueError(f"n_leaves = {n_leaves}: must be at least 1")
        self.n_leaves = n_leaves
        sizes = level_sizes(n_leaves)
        self.start: I64 = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
        self.tree: F64 = zero_column((sum(sizes),), np.float64)
        self.node: F64 = self.tree.reshape(-1, FANOUT)
        self._root = int(self.start[-1])
        self._prefix: F64 = np.zeros(FANOUT, dtype=np.float64)
        self._touched: I64 = np.zeros(0, dtype=np.int64)
        self._mass: F64 = np.zeros(0, dtype=np.float64)

    @property
    def total(self) -> float:
        """Sum of all priorities."""
        return float(self.tree[self._root])

    @property
    def leaves(self) -> F64:
        """(n_leaves,) float64 view of the priorities. Write through `set` only."""
        return self.tree[: self.n_leaves]

    @property
    def nbytes(self) -> int:
        """Bytes of the tree."""
        return self.tree.nbytes

    def set(self, leaf: I64, priority: F64) -> None:
        """Write `priority` (B,) float64 to `leaf` (B,) int64; a repeated leaf keeps its last value.

        Every priority is 0 or in [1e-100, 1e100]: PriorityError otherwise, NaN included; a leaf
        outside the tree: IndexError. Either way nothing has changed.
        """
        self.check(leaf, priority, zero_allowed=True)
        if self._touched.size < leaf.size:
            self._touched = np.zeros(leaf.size, dtype=np.int64)
        set_priorities(self.tree, self.start, leaf, priority, self._touched)

    def check(self, leaf: I64, priority: F64, *, zero_allowed: bool) -> None:
        """Raise what `set` raises unless it may take these. Zero priorities only if allowed."""
        if leaf.size != priority.size:
            raise ValueError(f"{leaf.size} leaves and {priority.size} priorities")
        bad = first_refused(leaf, priority, self.n_leaves, 0.0 if zero_allowed else SMALLEST)
        if bad < 0:
            return
        if not 0 <= leaf[bad] < self.n_leaves:
            raise IndexError(f"leaf[{bad}] = {leaf[bad]}: must be in 0..{self.n_leaves - 1}")
        rule = "0 or in [1e-100, 1e100]" if zero_allowed else "in [1e-100, 1e100]"
        raise PriorityError(f"priority[{bad}] = {float(priority[bad])}: must be {rule}")

    def repair(self, touched: I64, count: int) -> None:
        """Re-add the sums above the first `count` of `touched` (int64 leaves; overwritten).

        For callers that wrote `tree[leaf]` in a kernel of their own.
        """
        repair_sums(self.tree, self.start, touched, count)

    def draw(self, u: F64, leaf: I64) -> None:
        """Draw one leaf per stratum, in proportion to priority, into `leaf` (B,) int64, ascending.

        u (B,) float64 in [0, 1): place within stratum b, which is the b-th of B equal parts of the
        total (Schaul 2016, B.2.1). Not changed. NotEnoughData when the total is 0.
        """
        n = leaf.size
        if u.size != n:
            raise ValueError(f"{u.size} random numbers for {n} draws")
        total = self.total
        if not total > 0.0:
            raise NotEnoughData("no row can be sampled yet")
        if self._mass.size < n:
            self._mass = np.zeros(n, dtype=np.float64)
        draw_strata(self.node, self.start, total, u, self._mass, leaf, self._prefix)

    def load_kernels(self) -> None:
        """Compile or load what `draw` and `check` call, on nothing."""
        none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float64)
        self.check(*none, zero_allowed=True)
        draw_strata(self.node, self.start, 1.0, none[1], none[1], none[0], self._prefix)

    def check_valid(self) -> None:
        """AssertionError unless all sums, leaves and padding are as promised. O(leaves)."""
        p = self.leaves
        assert (((p >= SMALLEST) & (p <= LARGEST)) | (p == 0.0)).all(), "a leaf is out of range"
        bounds = [*self.start.tolist(), self.tree.size]
        used = self.n_leaves
        for level in range(len(bounds) - 1):
            here = self.tree[bounds[level] : bounds[level + 1]]
            assert not here[used:].any(), f"padding of level {level} is not zero"
            if level == len(bounds) - 2:
                return
            sums = here.reshape(-1, FANOUT).cumsum(axis=1)[:, -1]  # in the order of repair_sums
            used = sums.size
            above = self.tree[bounds[level + 1] :][:used]
            assert np.array_equal(above, sums), f"sums over level {level} are wrong"
