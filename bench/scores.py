"""How good: scores of the measured runs against published ones, over seeds and environments.

    python bench/scores.py
    python bench/scores.py docs/results/cartpole.json --figure docs/images/learning.png

Reads the files of bench/learning.py. A score s is normalised as (s - random) / (best - random), so
0 is a uniform random policy and 1 the best published score; the 85 % line is where that is 0.85.
Over the environments of a contestant: the interquartile mean of all its normalised scores and a
95 % interval from a bootstrap that resamples seeds within environments (Agarwal et al. 2021,
arXiv 2108.13264). --figure draws the returns by steps and by seconds. The last line is a JSON
object. Runs that failed, or ended before their first evaluation, are listed and left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from peers.figure import Curves, draw  # noqa: E402
from peers.references import REFERENCES  # noqa: E402
from peers.runs import OURS, ROOT, TASKS  # noqa: E402

FORMAT = 1  # of the files that bench/learning.py writes, and of the last line
RESAMPLES = 2000
SEED = 0  # of the bootstrap: the same files give the same interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run that was scored: at its pass, or at its end where it did not pass.

    curve  rows of seconds, environment steps, updates, mean return
    """

    who: str
    env: str
    seed: int
    seconds: float
    env_steps: int
    updates: int
    score: float
    passed: bool
    curve: NDArray[np.float64]


def parse_run(row: dict[str, Any]) -> Run | str:
    """The run, or why it has no score. Raises ValueError, KeyError or TypeError when damaged."""
    who, env, seed = str(row["who"]), str(row["env"]), int(row["seed"])
    seconds, passed = float(row["seconds"]), bool(row["passed"])
    name = f"{who} {env} seed {seed}"
    if "error" in row:
        reached = f", after it had passed at {seconds:.1f} s" if passed else ""
        return f"{name}: failed with exit code {row['exit_code']}{reached}"
    if row["score"] is None:
        return f"{name}: no evaluation in {seconds:.1f} s"
    if env not in REFERENCES:
        raise ValueError(f"{env} has no entry in bench/peers/references.py")
    run = Run(
        who=who, env=env, seed=seed, seconds=seconds, env_steps=int(row["env_steps"]),
        updates=int(row["updates"]), score=float(row["score"]), passed=passed,
        curve=np.array(row["curve"], dtype=np.float64),
    )  # fmt: skip
    if run.curve.ndim != 2 or run.curve.shape[1] != 4 or not np.isfinite(run.curve).all():
        raise ValueError(f"{name}: the curve is no list of four finite numbers each")
    if not (math.isfinite(run.score) and math.isfinite(seconds)):
        raise ValueError(f"{name}: score {run.score}, seconds {seconds}")
    return run


def read(files: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs with a score, and a sentence for each without. Raises ValueError naming the file."""
    runs: list[Run] = []
    without: list[str] = []
    origin: dict[tuple[str, str, int], Path] = {}
    for path in files:
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, not {FORMAT}")
            if not content["runs"]:
                raise ValueError("no runs")
            found = [parse_run(row) for row in content["runs"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} cannot be read as runs ({type(error).__name__}: {error}): leave it out, "
                f"or make it with python bench/learning.py --env ENV --out {path}"
            ) from None
        for run in found:
            if isinstance(run, str):
                without.append(run)
                continue
            first = origin.setdefault((run.who, run.env, run.seed), path)
            if first is not path:  # campaigns of different days do not mix
                raise ValueError(
                    f"{path} holds {run.who} {run.env} seed {run.seed}, as does {first}: "
                    "name only one of them"
                )
            runs.append(run)
    if not runs:
        raise ValueError(
            f"no run has a score ({'; '.join(without)}): make one with python bench/learning.py"
            if without
            else f"no result files in {ROOT / 'docs' / 'results'}: name some, or make one with "
            "python bench/learning.py --env ENV --out FILE"
        )
    return runs, without


def interquartile_mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the middle half along the last axis; below four scores the plain mean."""
    return np.asarray(stats.trim_mean(scores, 0.25, axis=-1), dtype=np.float64)


def interval(by_env: Mapping[str, NDArray[np.float64]]) -> tuple[float, float] | None:
    """95 % percentile interval of the interquartile mean; None when no environment has two seeds.

    Strata are environments: only seeds are drawn anew. One seed in an environment adds no width.
    """
    if all(len(scores) < 2 for scores in by_env.values()):
        return None
    random = np.random.default_rng(SEED)
    drawn = [
        scores[random.integers(len(scores), size=(RESAMPLES, len(scores)))]
        for scores in by_env.values()
    ]
    low, high = np.percentile(interquartile_mean(np.concatenate(drawn, axis=1)), (2.5, 97.5))
    return float(low), float(high)


def describe(runs: list[Run]) -> dict[str, Any]:
    """The row of one contestant in one environment."""
    env, reference = runs[0].env, REFERENCES[runs[0].env]
    task = TASKS.get(env)
    line = task.line if task else None
    scores = [r.score for r in runs]
    return {
        "env": env, "who": runs[0].who, "best": reference.best, "random": reference.random,
        "line_85": round(reference.line, 2), "strict_line": line, "seeds": len(runs),
        "score": round(statistics.median(scores), 4),
        "score_min": round(min(scores), 4), "score_max": round(max(scores), 4),
        "normalised": round(statistics.median(reference.normalised(s) for s in scores), 4),
        "seconds": statistics.median(r.seconds for r in runs),
        "env_steps": statistics.median(r.env_steps for r in runs),
        "updates": statistics.median(r.updates for r in runs),
        "at_85": sum(s >= reference.line for s in scores),
        "passed": None if line is None else sum(r.passed for r in runs),
    }  # fmt: skip


def summarise(runs: list[Run]) -> dict[str, Any]:
    """The row of one contestant over its environments."""
    by_env = {
        env: np.array([REFERENCES[env].normalised(r.score) for r in runs if r.env == env])
        for env in dict.fromkeys(r.env for r in runs)
    }
    ends = interval(by_env)
    return {
        "who": runs[0].who, "envs": len(by_env), "runs": len(runs),
        "one_seed": sum(len(scores) == 1 for scores in by_env.values()),
        "iqm": round(float(interquartile_mean(np.concatenate(list(by_env.values())))), 4),
        "low": ends and round(ends[0], 4), "high": ends and round(ends[1], 4),
    }  # fmt: skip


def ordered(names: Iterable[str], first: Iterable[str]) -> list[str]:
    """Each name once: those of `first` in its order, then the others by the alphabet."""
    found, known = set(names), list(first)
    return [n for n in known if n in found] + sorted(found - set(known))


def print_columns(heads: list[str], rows: list[list[str]], names: int) -> None:
    """Aligned columns, the first `names` of them to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        cells = [
            cell.ljust(width) if i < names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def show(rows: list[dict[str, Any]], over_all: list[dict[str, Any]], without: list[str]) -> None:
    """Print both tables, and what must be known to read them."""
    heads = ["environment", "who", "best", "random", "85 %", "strict", "seeds", "score",
             "min to max", "norm.", "seconds", "steps", "updates", "at 85 %", "passed"]  # fmt: skip
    cells = [
        [r["env"], r["who"], f"{r['best']:g}", f"{r['random']:g}", f"{r['line_85']:.1f}",
         "-" if r["strict_line"] is None else f"{r['strict_line']:g}", f"{r['seeds']}",
         f"{r['score']:.1f}", f"{r['score_min']:.1f} to {r['score_max']:.1f}",
         f"{r['normalised']:.2f}", f"{r['seconds']:.1f}", f"{r['env_steps']:,.0f}",
         f"{r['updates']:,.0f}", f"{r['at_85']} / {r['seeds']}",
         "-" if r["passed"] is None else f"{r['passed']} / {r['seeds']}"]
        for r in rows
    ]  # fmt: skip
    print_columns(heads, cells, 2)
    print(
        "\nscore, norm., seconds, steps, updates: medians over the seeds. A run that passed the"
        "\nstrict line was stopped there: its score is the one at the pass, by selection optimistic"
        "\nand no final score. seconds, steps and updates are to the pass, else of the whole run."
        "\n\nBest published:"
    )
    for env in dict.fromkeys(r["env"] for r in rows):
        print(f"  {env}: {REFERENCES[env].best:g}, {REFERENCES[env].by}")
    heads = ["who", "environments", "of one seed", "runs", "IQM", "95 % interval"]
    cells = [
        [r["who"], f"{r['envs']}", f"{r['one_seed']}", f"{r['runs']}", f"{r['iqm']:.3f}",
         "-" if r["low"] is None else f"{r['low']:.3f} to {r['high']:.3f}"]
        for r in over_all
    ]  # fmt: skip
    print("\nInterquartile mean of the normalised scores over all environments\n")
    print_columns(heads, cells, 1)
    print(
        "\nThe scores are those above, at the pass where a run passed. Rows are over different"
        "\nenvironments: compare contestants only where these are the same. An environment weighs"
        "\nwith its seeds; one with a single seed adds nothing to the interval."
    )
    for sentence in without:
        print(f"left out: {sentence}")


def curves(runs: list[Run], envs: list[str], names: list[str]) -> dict[str, Curves]:
    """What the figure shows of each environment; the 85 % line where there is no strict one."""
    found = {}
    for env in envs:
        task, reference = TASKS.get(env), REFERENCES[env]
        strict = task.line if task else None
        by = {n: [r for r in runs if (r.env, r.who) == (env, n)] for n in names}
        found[env] = Curves(
            line=reference.line if strict is None else strict, strict=strict is not None,
            random=reference.random, best=reference.best,
            runs={n: [(r.curve, r.passed) for r in rs] for n, rs in by.items() if rs},
        )  # fmt: skip
    return found


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("files", nargs="*", type=Path, help="default: docs/results/*.json")
    add("--figure", type=Path, help="PNG to draw (needs matplotlib: the extra `plot`)")
    args = parser.parse_args(words)
    try:
        runs, without = read(args.files or sorted((ROOT / "docs" / "results").glob("*.json")))
        envs = ordered((r.env for r in runs), TASKS)
        names = ordered((r.who for r in runs), OURS)
        if args.figure:
            draw(curves(runs, envs, names), args.figure)
    except (OSError, ValueError) as error:  # OSError: the figure cannot be written there
        parser.error(str(error))
    groups = [[r for r in runs if (r.env, r.who) == (env, n)] for env in envs for n in names]
    rows = [describe(group) for group in groups if group]
    over_all = [summarise([r for r in runs if r.who == n]) for n in names]
    show(rows, over_all, without)
    answer = {"format": FORMAT, "rows": rows, "over_all": over_all, "left_out": without}
    print(json.dumps(answer, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
