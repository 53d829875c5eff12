"""`fdql autotune`: measure the parts of a run, find settings that are faster here, write them down.

Prints what each part costs and what each trial did; the file holds the settings that were given and
the changes that won, so that `fdql train --config` goes on from it.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
from rich.table import Table

from fdql import __version__
from fdql.config import Config, ConfigError
from fdql.config_file import to_dict
from fdql.machine import allowed_cores, resolve
from fdql.outlet import standard_output
from fdql.probe import probe
from fdql.proc.memory import RunPlan
from fdql.search import Search, Setting, changed, gain, open_keys, shown
from fdql.stop_request import StopRequest
from fdql.trial import Measurement, TooSlowError, timed_run

LEAST_S = 10.0  # of the whole: two trials of the defaults and one of something else
WINDOWS = 40  # of the whole, one trial's window; starting a trial takes about as long again
SHORTEST_S, LONGEST_S = 0.5, 5.0  # of a window
WARM_UPS = 4  # of the whole, the longest warm-up
TABLE_COLUMNS = 100  # of the table of trials, also where the terminal is narrower
ROUND_TRIPS = 300  # whose median is the cost of waking a process
_ECHO = "import os\nwhile os.read(0, 1): os.write(1, b'x')"


def wake_us() -> float:
    """Median time to wake a sleeping process and be woken by it, halved; microseconds."""
    command = [sys.executable, "-I", "-S", "-c", _ECHO]
    trips = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo:
        assert echo.stdin is not None
        assert echo.stdout is not None
        into, out = echo.stdin.fileno(), echo.stdout.fileno()
        for _ in range(ROUND_TRIPS):
            start = time.perf_counter_ns()
            os.write(into, b"x")
            os.read(out, 1)
            trips.append(time.perf_counter_ns() - start)
        echo.stdin.close()
    return statistics.median(trips) / 2e3


def parts(m: Measurement, step_us: float, wake_us: float) -> Table:
    """What one of each thing costs: the step and the wake-up alone, the others in the defaults'
    trial.
    """
    table = Table(box=None, padding=(0, 2), header_style="dim")
    table.add_column("part")
    table.add_column("median us", justify="right")
    if step_us:
        table.add_row("environment step", f"{step_us:,.1f}")
    table.add_row("waking a process", f"{wake_us:,.1f}")
    rows = m.accounts["inference"].numbers["rows"].p50
    for name, role, stage in (
        ("step of one group", "worker", "step"),
        (f"forward of {rows:.0f} rows", "inference", "infer"),
        ("storing a chunk", "loader", "ingest"),
        ("sampling a batch", "loader", "sample"),
        ("update", "trainer", "update"),
        ("publishing a policy", "trainer", "publish"),
    ):
        if stage in m.accounts[role].stages:
            table.add_row(name, f"{m.accounts[role].stages[stage].p50:,.1f}")
    return table


def outcome(search: Search, chosen: Setting) -> Table:
    """Every setting that was run: its trials' updates per second, and their means."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("setting", no_wrap=True)
    for head in ("runs", "updates/s", "from", "to", "steps/s", "busy"):
        table.add_column(head, justify="right", no_wrap=True)
    for setting, runs in search.runs.items():
        measured = search.measured[setting]
        table.add_row(
            shown(setting) + (" *" if setting == chosen else ""),
            f"{len(runs)}",
            f"{statistics.fmean(runs):,.0f}",
            f"{min(runs):,.0f}",
            f"{max(runs):,.0f}",
            f"{statistics.fmean(m.steps_per_s for m in measured):,.0f}",
            f"{statistics.fmean(m.duty for m in measured):.0%}",
        )
    return table


def given(config: Config) -> dict[str, Any]:
    """The settings of `config` that are not the defaults, nested, and the environment."""

    def different(here: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
        out = {k: different(v, there[k]) if isinstance(v, dict) else v for k, v in here.items()}
        return {k: v for k, v in out.items() if v != {} and v != there.get(k)}

    values = different(to_dict(config), to_dict(Config()))
    for key in ("run_dir", "trace_seconds"):  # one run's, not settings to keep
        values.pop(key, None)
    return {"env": config.env} | values


def verdict(search: Search, chosen: Setting) -> str:
    """One sentence."""
    noise = f"two runs of one setting differ by {search.noise():.0%} here"
    if not chosen:
        return f"the defaults stay: none of {len(search.runs) - 1} other settings won ({noise})"
    more = gain(search.runs[chosen][-2:], search.runs[()][-2:])
    return f"{shown(chosen)}: {more:+.0%} updates/s over the defaults ({noise})"


def check(config: Config, seconds: float, out: Path, force: bool) -> None:
    """Raises ConfigError for what cannot work, before anything is measured."""
    if not LEAST_S <= seconds <= 86_400:
        raise ConfigError(f"seconds = {seconds:g}: must be in {LEAST_S:g}..86400; 60.0 works")
    if config.serial:
        raise ConfigError("serial = True: a lockstep run has nothing to tune; False works")
    if config.samples_per_insert == "free":
        raise ConfigError(
            "ratio = 'free': updates and steps that are not tied to each other have no one speed "
            "to tune for; 32.0 works"
        )
    if out.is_dir():
        raise ConfigError(f"out = {str(out)!r}: is a folder; {str(out / 'tuned.toml')!r} works")
    if out.exists() and not force:
        other = out.with_name(f"{out.stem}-2{out.suffix}")
        raise ConfigError(
            f"out = {str(out)!r} exists, and a file is overwritten only with --force; "
            f"{str(other)!r} works"
        )
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"out = {str(out)!r}: {str(out.parent)!r} is not a folder to write into")


def autotune(
    config: Config, *, seconds: float, out: Path, force: bool, keep: Collection[str] = ()
) -> Setting:
    """Search for about `seconds` (compiling kernels not counted), write `out`, return the changes.

    keep  keys of settings that stay as they are, beside those that are not the defaults

    Raises ConfigError for wrong use, RuntimeError when the defaults cannot run, KeyboardInterrupt
    after Ctrl-C; then nothing is left behind.
    """
    check(config, seconds, out, force)
    say = partial(standard_output().print, soft_wrap=True)
    cores = allowed_cores()
    env, step_us = probe(config)
    resolved = resolve(config, cores=cores, step_us=step_us, env=env)
    window = min(LONGEST_S, max(SHORTEST_S, seconds / WINDOWS))
    say(
        f"{config.env} on {cores} core(s): {resolved.workers} worker(s) of "
        f"{resolved.envs_per_worker} environments by default; {window:.1f} s a trial after its "
        f"warm-up, {seconds:g} s in all (the first start may compile kernels, once)"
    )
    with StopRequest() as stop:
        search = Search(
            resolved, open_keys(config, keep), seconds,
            lambda c: timed_run(c, env, stop, window_s=window, limit_s=seconds / WARM_UPS),
            say, lambda c: RunPlan(config=c, env=env, run_dir="").chunk.rows,
        )  # fmt: skip
        try:
            first = search.defaults()
        except TooSlowError as error:
            raise ConfigError(
                f"seconds = {seconds:g}: too short, {error}; {4 * seconds:g} works"
            ) from None
        say(parts(first, step_us, wake_us()), first.sentence, sep="\n")
        search.climb(cores)
        chosen = search.judge()
    standard_output(width=TABLE_COLUMNS).print(outcome(search, chosen))
    say(verdict(search, chosen))
    write(out, config, search, chosen, force)
    # A file never decides what code runs: the module is named again.
    again = f" --env {shlex.quote(config.env)}" if ":" in config.env else ""
    say(f"fdql train --config {shlex.quote(str(out))}{again}  uses it")
    return chosen


def write(out: Path, config: Config, search: Search, chosen: Setting, force: bool) -> None:
    """The file: what was given, and the changes that won."""
    values = given(changed(config, chosen))
    lines = [
        f"# fdql {__version__} autotune, {time.strftime('%Y-%m-%d')}, {allowed_cores()} core(s)",
        f"# {verdict(search, chosen)}",
    ]
    with out.open("w" if force else "x", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n" + tomli_w.dumps(values))
