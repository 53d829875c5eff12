"""What a run shows while it goes on: a live board on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fdql.budget import Account

LINE_SECONDS = 5.0  # between two plain lines
LIVE_SECONDS = 0.5  # between two pictures: one costs about 10 ms of a core that training could use
ROWS = {  # of the table: role -> its stages, parts and waits; they and the rest make 23 lines
    "worker": ("step", "step.env", "ring", "wait.actions"),
    "inference": ("infer", "act", "wait.requests", "wait.ratio"),
    "loader": ("ingest", "sample"),
    "trainer": ("update", "publish", "wait.batch"),
    "evaluator": ("evaluate",),
}


def _number(value: Any, form: str = ",.1f") -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return format(value, form)


class Board:
    """Shows rows of metrics, and what the processes did in the last seconds.

    `note` prints a line above the board and keeps it.
    """

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.console = Console(highlight=False, quiet=quiet)
        self.title = title
        self._live: Live | None = None
        self._shown = 0.0
        if self.console.is_terminal and not quiet:
            self._live = Live(
                console=self.console, refresh_per_second=4, transient=True, auto_refresh=False
            )
            self._live.start()

    @property
    def due(self) -> bool:
        """True when the next `show` shows something."""
        every = LIVE_SECONDS if self._live is not None else LINE_SECONDS
        return time.monotonic() - self._shown >= every

    def show(self, row: dict[str, Any], accounts: dict[str, Account], bottleneck: str) -> None:
        """Show the newest metrics, the accounts by role and the sentence, if it is time."""
        if not self.due:
            return
        self._shown = time.monotonic()
        if self._live is not None:
            self._live.update(self.picture(row, accounts, bottleneck), refresh=True)
        else:
            self.console.print(
                f"{row['time/time_elapsed']:7.1f} s {row['time/total_timesteps']:>9,} steps  "
                f"{row['train/n_updates']:>7,} updates  return "
                f"{_number(row.get('rollout/ep_rew_mean'))}  "
                f"evaluation {_number(row.get('eval/mean_reward'))}  "
                f"samples/insert {_number(row.get('train/samples_per_insert'), '.2f')}",
                soft_wrap=True,
            )

    def picture(self, row: dict[str, Any], accounts: dict[str, Account], bottleneck: str) -> Panel:
        """The live board: numbers, the time of every process, what limits; 80 columns, 24 lines."""
        parts = self._numbers(row), self._times(accounts), Text(bottleneck, "bold")
        return Panel(Group(*parts), title=self.title)

    @staticmethod
    def _numbers(row: dict[str, Any]) -> Table:
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in range(3):
            table.add_column(justify="left")

        def of(key: str, form: str = ",.1f") -> str:
            return _number(row.get(key), form)

        lag = of("engine/policy_lag_p50", ".0f"), of("engine/policy_lag_p99", ".0f")
        cells = [
            ("time", f"{row['time/time_elapsed']:,.1f} s"),
            ("steps", f"{row['time/total_timesteps']:,} ({of('time/fps', ',.0f')}/s)"),
            ("updates", f"{row['train/n_updates']:,} ({of('train/updates_per_second', ',.0f')}/s)"),
            ("restarts", str(row.get("engine/restarts", 0))),
            ("training return", of("rollout/ep_rew_mean")),
            ("evaluation", f"{of('eval/mean_reward')} +- {of('eval/std_reward')}"),
            ("episode length", of("rollout/ep_len_mean", ",.0f")),
            ("replay", f"{row.get('replay/size', 0):,}"),
            ("samples/insert", of("train/samples_per_insert", ".2f")),
            ("duty cycle", of("engine/duty_cycle", ".0%")),
            ("policy lag", " / ".join(lag)),
            ("temperature", of("train/ent_coef", ".5f")),
        ]
        for i in range(0, len(cells), 3):
            table.add_row(
                *(Text.assemble((f"{k}  ", "dim"), (v, "bold")) for k, v in cells[i : i + 3])
            )
        return table

    @staticmethod
    def _times(accounts: dict[str, Account]) -> Table:
        table = Table(box=None, padding=(0, 1), header_style="dim", expand=True)
        table.add_column("process")
        table.add_column("stage")
        for head in ("p50 us", "p99 us", "per s", "share"):
            table.add_column(head, justify="right")
        for role, names in ROWS.items():
            account = accounts.get(role)
            known = account.stages | account.waits if account is not None else {}
            for i, name in enumerate(names):
                r = known.get(name)
                cells = ("-", "-", "-", "-")
                if r is not None:
                    times = f"{r.p50:,.1f}", f"{r.p99:,.1f}"
                    cells = (*times, f"{r.per_second:,.0f}", f"{r.share:.1%}")
                style = "dim" if "." in name else ""  # parts and waits
                table.add_row("" if i else role, name, *cells, style=style)
        return table

    def note(self, text: str) -> None:
        """Print one line that stays."""
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    def problem(self, text: str) -> None:
        """Print to standard error."""
        if self._live is not None:
            self.console.print(
                text, style="bold red", markup=False, soft_wrap=not self.console.is_terminal
            )
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None
