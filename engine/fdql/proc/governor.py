"""The samples-per-insert governor: how many updates are due, how many environment steps may start.

One number is held from both sides. The trainer makes an update only when it is due; inference
starts an environment step only while it is allowed. Reads and writes nothing: pure arithmetic on
counts. (The idea of a rate limiter on both sides: Cassirer 2021, Reverb.)
"""

from __future__ import annotations

from fdql.config import Config


def next_due(steps: int, every: int) -> int:
    """The first multiple of `every` beyond `steps`: when what happens so often is due again."""
    return steps - steps % every + every


class Governor:
    """Samples per insert rho = updates * batch / inserted steps.

    due        floor(inserted * rho / batch), nothing before the warm-up is complete; the warm-up's
               own updates are due at once when it ends
    allowed    steps that `updates` pay for, plus `ahead` updates' worth so that neither side waits
               for the other's latency; never above the run's total
    base       steps and updates from which on rho and batch hold: (0, 0), or where a run that went
               on got another ratio or batch size. All counts are those of the whole run.
    """

    def __init__(self, config: Config, base: tuple[int, int] = (0, 0)) -> None:
        ratio = config.samples_per_insert
        self.free = ratio == "free"
        self.target = None if ratio == "free" else float(ratio)
        self._steps_per_update = 0.0 if self.target is None else config.sac.batch_size / self.target
        self._batch = config.sac.batch_size
        self._warmup = min(config.explore.warmup_steps, config.total_timesteps)
        self._ahead = config.engine.ahead_updates
        self._total = config.total_timesteps
        self._steps, self._updates = base

    def due(self, inserted: int) -> int:
        """Updates that `inserted` environment steps ask for in all."""
        if inserted < self._warmup:
            return 0
        if self.free:
            return 2**62
        return self._updates + int((inserted - self._steps) / self._steps_per_update + 1e-9)

    def allowed(self, updates: int) -> int:
        """Environment steps that may have been started once `updates` are made."""
        if self.free:
            return self._total
        paid = (updates - self._updates + self._ahead) * self._steps_per_update
        return min(self._total, max(self._warmup, self._steps + int(paid)))

    def complete(self, inserted: int, updates: int, sampleable: int) -> bool:
        """True when the run's steps are all stored and their updates made.

        A run of fewer steps than one n-step window has no row that can be sampled, and no updates.
        """
        if inserted < self._total:
            return False
        return self.free or not sampleable or updates >= self.due(inserted)

    def actual(self, inserted: int, updates: int) -> float:
        """Samples per insert since the base; 0 before the first insert."""
        steps = inserted - self._steps
        return max(0, updates - self._updates) * self._batch / steps if steps > 0 else 0.0

    def base_for(self, inserted: int, updates: int) -> tuple[int, int]:
        """The base of another governor that takes over here: what is due is still owed."""
        return inserted, updates if self.free else max(updates, self.due(inserted))
