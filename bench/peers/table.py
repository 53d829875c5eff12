"""The table that bench/learning.py prints: times to the line, or curves where there is none."""

from __future__ import annotations

import math
import statistics
from typing import Any

from peers.runs import TASKS, machine, own_name

Run = dict[str, Any]


def show(runs: list[Run], names: list[str], env: str) -> None:
    """Print the table, and the errors under it."""
    task = TASKS[env]
    by: dict[str, list[Run]] = {}
    failed: list[Run] = []
    for name in names:
        mine = [r for r in runs if (r["who"], r["env"]) == (name, env)]
        failed += [r for r in mine if "error" in r]
        if good := [r for r in mine if "error" not in r]:
            by[name] = good
    print(f"\n{env}, {machine()}")
    if task.line is None:
        show_curves(by)
    else:
        print(f"seconds to a mean of {task.line:g} over {task.episodes} episodes; inf: not reached")
        show_times(by)
    for r in (r for rs in by.values() for r in rs if r["stalled_seconds"]):
        print(f"\n{r['who']} seed {r['seed']}: the machine stalled for {r['stalled_seconds']} s")
    for r in failed:
        print(f"\n{r['who']} seed {r['seed']}: exit code {r['exit_code']}\n{r['error'][-500:]}")


def middle(runs: list[Run], key: str) -> str:
    """Median of a count over the runs, for the table."""
    return f"{statistics.median(r[key] for r in runs):,.0f}" if runs else "-"


def ratio(theirs: float, ours: float) -> str:
    """Their time over ours, for the table; "-" when ours is unknown."""
    return f"{theirs / ours:.2f}" if math.isfinite(ours) else "-"


def show_times(by: dict[str, list[Run]]) -> None:
    """Median, least and most seconds; "/ fdql" above 1 is slower than fdql."""
    wide = max(10, *map(len, by))
    times = {n: [r["seconds"] if r["passed"] else math.inf for r in rs] for n, rs in by.items()}
    median = {n: statistics.median(t) for n, t in times.items()}
    ours = median.get("fdql", math.nan)
    print(f"\n{'who':<{wide}} passed   median      min      max  / fdql      steps    updates")
    for n, t in times.items():
        passed = [r for r in by[n] if r["passed"]]
        print(
            f"{n:<{wide}} {len(passed):>2} / {len(t)} {median[n]:>8.1f} {min(t):>8.1f} "
            f"{max(t):>8.1f} {ratio(median[n], ours):>7} {middle(passed, 'env_steps'):>10} "
            f"{middle(passed, 'updates'):>10}"
        )
    best = min((n for n in by if not own_name(n)), key=lambda n: median[n], default=None)
    if best and math.isfinite(ours) and math.isfinite(median[best]):
        print(f"\nfdql takes {ours / median[best]:.2f} of the time of the best peer, {best}")


def show_curves(by: dict[str, list[Run]]) -> None:
    """Median over the seeds of the latest score, by quarters of the shortest run's time."""
    if not by:
        return
    end = min(r["command_seconds"] for rs in by.values() for r in rs)
    at = [end / 4, end / 2, end * 3 / 4, end]
    print("latest score by seconds, median over the seeds; -inf: no evaluation yet")
    print(
        "\nwho        runs "
        + " ".join(f"{t:>8.0f}" for t in at)
        + "       best      steps    updates"
    )
    for n, rs in by.items():
        scores = [[[p[3] for p in r["curve"] if p[0] <= t] or [-math.inf] for r in rs] for t in at]
        cells = [statistics.median(s[-1] for s in by_seed) for by_seed in scores]
        best = statistics.median(max(s) for s in scores[-1])
        print(
            f"{n:<10} {len(rs):>4} " + " ".join(f"{c:>8.1f}" for c in cells) + f" {best:>10.1f} "
            f"{middle(rs, 'env_steps'):>10} {middle(rs, 'updates'):>10}"
        )
