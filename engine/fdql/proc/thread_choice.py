"""Which number of threads makes updates fastest at this moment, found by trying. Stage 5 of 8.

Two threads shorten an update only while a second core is free for them. Who takes it (evaluation,
environments, other programs) changes during a run, and then the two wait for each other: an update
on two threads may take twice as long as on one. The trainer process asks here after each update;
serial mode does not, for nothing in it depends on time.
"""

from __future__ import annotations

TRIAL = 32  # updates between two decisions
PERIOD = 32  # trials from one look at the other number to the next
GAIN = 0.85  # the second thread must shorten an update to this: it takes a core from others
RATE = 0.25  # of the average over trials


class ThreadChoice:
    """Chooses between one number of threads and the next; begins with the smaller one.

    counts   numbers of threads to choose from, ascending; of more than two the first two
    threads  what the next update should take
    """

    def __init__(self, counts: tuple[int, ...]) -> None:
        self.counts = counts[:2]
        self.threads = counts[0]
        self._best = 0  # index of the better number, so far
        self._times = [0.0, 0.0]  # average nanoseconds of an update, 0: not tried yet
        self._trials = 0
        self._updates = 0
        self._ns = 0

    def took(self, ns: int) -> int:
        """An update with `threads` threads took `ns` nanoseconds. Returns those of the next."""
        self._updates += 1
        self._ns += ns
        if self._updates == TRIAL and len(self.counts) > 1:
            self._decide(self._ns / TRIAL)
            self._updates = self._ns = 0
        return self.threads

    def _decide(self, mean: float) -> None:
        tried = self.counts.index(self.threads)
        old = self._times[tried]
        fresh = old == 0.0 or tried != self._best  # long ago is no average of now
        self._times[tried] = mean if fresh else old + RATE * (mean - old)
        if all(self._times):
            self._best = int(self._times[1] < GAIN * self._times[0])
        other = 1 - self._best
        self._trials += 1
        self.threads = self.counts[self._best]
        if not self._times[other] or self._trials % PERIOD == 0:
            self.threads = self.counts[other]
