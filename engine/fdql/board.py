"""What a run shows while it goes on: a live board on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fdql.budget import Account
from fdql.outlet import standard_output, told
from fdql.progress import Progress

LINE_SECONDS = 5.0  # between two plain lines
LIVE_SECONDS = 0.5  # between two pictures: one costs about 10 ms of a core that training could use
ROWS = {  # of the table: role -> its stages, parts and waits
    "worker": ("step", "step.env", "ring", "wait.actions"),
    "inference": ("infer", "act", "wait.requests", "wait.ratio"),
    "loader": ("ingest", "sample"),
    "trainer": ("update", "publish", "wait.batch"),
    "evaluator": ("evaluate",),
}
HALVES = (("worker", "inference"), ("loader", "trainer", "evaluator"))  # left and right
LEVELS, PLAIN_LEVELS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"  # of a cell of the curve; the latter in ASCII
CURVE_LINES, MOST_WIDE = 2, 3  # of the curve; characters that one value takes
BAR_WIDTH = 8


def _number(value: Any, form: str = ",.1f") -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return format(value, form)


def duration(us: float) -> str:
    """Microseconds in at most 6 characters: 9.4us, 123us, 2.35ms, 1.2s."""
    if us < 99.5:
        return f"{us:.1f}us"
    if us < 999.5:
        return f"{us:.0f}us"
    if us < 99_950:
        return f"{us / 1e3:.1f}ms"
    return f"{us / 1e3:.0f}ms" if us < 999_500 else f"{us / 1e6:.4g}s"


def clock(seconds: float | None) -> str:
    """4.2 s, 1:05, 2:03:04; a dash for what is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def rounded(n: int) -> str:
    """A count in at most 5 characters, never more than there is: 950, 12.3k, 123k, 1M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= 100 * size:
            return f"{n // size}{unit}"
        if n >= size:
            return f"{10 * n // size / 10:g}{unit}"
    return str(n)


def columns_of(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values in their order; where there are more, means of neighbours."""
    n = len(values)
    if n <= width:
        return list(values)
    cuts = [i * n // width for i in range(width + 1)]
    return [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]


class Curve:
    """Values as a curve of characters, CURVE_LINES high, as wide as there is room; newest right."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = [v for v in values if math.isfinite(v)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        levels = PLAIN_LEVELS if options.ascii_only else LEVELS
        ends = ("", "")
        if self.values:
            ends = f"{max(self.values):,.1f}", f"{min(self.values):,.1f}"
        margin = max(9, *(len(e) for e in ends)) + 1
        room = max(1, options.max_width - margin)
        drawn = columns_of(self.values, room)
        low, high = min(drawn, default=0.0), max(drawn, default=1.0)
        most = CURVE_LINES * (len(levels) - 1)
        # The lowest value is seen too: 1 of `most`.
        heights = [1 + round((most - 1) * (v - low) / ((high - low) or 1.0)) for v in drawn]
        wide = min(MOST_WIDE, room // max(1, len(drawn)))  # a young curve is seen too
        for line in range(CURVE_LINES - 1, -1, -1):
            below = line * (len(levels) - 1)
            top = len(levels) - 1
            cells = "".join(wide * levels[min(max(h - below, 0), top)] for h in heights)
            end = ends[0] if line == CURVE_LINES - 1 else ends[1] if line == 0 else ""
            yield Segment(f"{end:>{margin - 1}} ", Style(dim=True))
            yield Segment(cells, Style(color="cyan"))
            yield Segment.line()


class Board:
    """Shows rows of metrics, and what the processes did in the last seconds.

    `note` prints a line above the board and keeps it.
    """

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.console = standard_output(quiet=quiet)
        self.title = title
        self._live: Live | None = None
        self._shown = 0.0
        console = self.console
        if console.is_terminal and not console.is_dumb_terminal and not quiet:
            self._live = Live(
                console=console, refresh_per_second=4, transient=True, auto_refresh=False
            )
            self._live.start()

    @property
    def due(self) -> bool:
        """True when the next `show` shows something."""
        every = LIVE_SECONDS if self._live is not None else LINE_SECONDS
        return time.monotonic() - self._shown >= every

    def show(
        self, row: dict[str, Any], accounts: dict[str, Account], bottleneck: str, progress: Progress
    ) -> None:
        """Show the newest of everything, if it is time."""
        if not self.due:
            return
        self._shown = time.monotonic()
        if self._live is not None:
            self._live.update(self.picture(row, accounts, bottleneck, progress), refresh=True)
        else:
            self.console.print(
                f"{row['time/time_elapsed']:7.1f} s {row['time/total_timesteps']:>9,} steps  "
                f"{row['train/n_updates']:>7,} updates  return "
                f"{_number(row.get('rollout/ep_rew_mean'))}  "
                f"evaluation {_number(row.get('eval/mean_reward'))}  "
                f"samples/insert {_number(row.get('train/samples_per_insert'), '.2f')}",
                soft_wrap=True,
            )

    def picture(
        self, row: dict[str, Any], accounts: dict[str, Account], bottleneck: str, progress: Progress
    ) -> Panel:
        """The live board: numbers, the curve of evaluations, progress, the time of every process,
        what limits; 80 columns, 23 lines.
        """
        return Panel(
            Group(
                self._numbers(row, progress),
                Curve(progress.returns),
                self._bars(progress),
                self._times(accounts),
                Text(bottleneck, "bold"),
            ),
            title=Text(self.title),
        )

    @staticmethod
    def _numbers(row: dict[str, Any], progress: Progress) -> Table:
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in range(3):
            table.add_column(justify="left", no_wrap=True)

        def of(key: str, form: str = ",.1f") -> str:
            return _number(row.get(key), form)

        lag = of("engine/policy_lag_p50", ".0f"), of("engine/policy_lag_p99", ".0f")
        updates = f"{row['train/n_updates']:,} ({of('train/updates_per_second', ',.0f')}/s)"
        cells = [
            ("time", clock(row["time/time_elapsed"])),
            ("left at most", clock(progress.seconds_left)),
            ("memory", f"{of('engine/memory_mib', ',.0f')} MiB"),
            ("steps", f"{row['time/total_timesteps']:,} ({of('time/fps', ',.0f')}/s)"),
            ("updates", updates),
            ("restarts", str(row.get("engine/restarts", 0))),
            ("samples/insert", of("train/samples_per_insert", ".2f")),
            ("duty cycle", of("engine/duty_cycle", ".0%")),
            ("policy lag", " / ".join(lag)),
            ("training return", of("rollout/ep_rew_mean")),
            ("evaluation", f"{of('eval/mean_reward')} +- {of('eval/std_reward')}"),
            ("temperature", of("train/ent_coef", ".5f")),
        ]
        for i in range(0, len(cells), 3):
            table.add_row(
                *(Text.assemble((f"{k}  ", "dim"), (v, "bold")) for k, v in cells[i : i + 3])
            )
        return table

    @staticmethod
    def _bars(progress: Progress) -> Table:
        """Two to a line."""
        table = Table.grid(padding=(0, 1))
        for _ in range(6):
            table.add_column(no_wrap=True)
        cells: list[Any] = []
        for bar in progress.bars:
            shown = ProgressBar(total=max(1, bar.total), completed=bar.done, width=BAR_WIDTH)
            text = f"{rounded(bar.done)} of {rounded(bar.total)}"
            cells += [Text(bar.name, "dim"), shown, Text(f"{text:<14}")]
        for i in range(0, len(cells), 6):
            table.add_row(*cells[i : i + 6])
        return table

    @staticmethod
    def _times(accounts: dict[str, Account]) -> Table:
        """Left and right half; each role's line has its busy share, its stages' theirs."""
        both = Table.grid(padding=(0, 2), expand=True)
        halves = []
        for roles in HALVES:
            half = Table.grid(padding=(0, 1), expand=True)
            half.add_column("stage", no_wrap=True, min_width=14)
            for _ in range(3):
                half.add_column(justify="right", no_wrap=True, min_width=6)
            for role in roles:
                account = accounts.get(role)
                known = account.stages | account.waits if account is not None else {}
                busy = f"{account.busy:.0%}" if account is not None else "-"
                half.add_row(Text(role, "bold"), Text("p50", "dim"), Text("p99", "dim"), busy)
                for name in ROWS[role]:
                    r = known.get(name)
                    cells = ("-", "-", "-")
                    if r is not None:
                        cells = duration(r.p50), duration(r.p99), f"{r.share:.1%}"
                    style = "dim" if "." in name else ""  # parts and waits
                    half.add_row(f"  {name}", *cells, style=style)
            halves.append(half)
            both.add_column(ratio=1)
        both.add_row(*halves)
        return both

    def note(self, text: str) -> None:
        """Print one line that stays."""
        self.console.print(text, soft_wrap=self._live is None)

    def problem(self, text: str) -> None:
        """Print to standard error."""
        if self._live is not None:
            self.console.print(text, style="bold red")
        else:
            told(text)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None
