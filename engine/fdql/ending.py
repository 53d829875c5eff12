"""How a run ended: its result, and what is written and said last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fdql.accounting import books
from fdql.report import Report


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended.

    exit_reason   solved, no_improvement, total_timesteps, traced, callback, interrupted,
                  crash, bad_value or corrupt
    problem       one sentence when it did not end well
    summary       what summary.json holds
    """

    run_dir: Path
    exit_reason: str
    problem: str | None
    summary: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """For the shell: 0, 130 after Ctrl-C, 1 when there was a problem."""
        if self.problem:
            return 1
        in_order = self.exit_reason in (
            "solved",
            "no_improvement",
            "total_timesteps",
            "traced",
            "callback",
        )
        return 0 if in_order else 130 if self.exit_reason == "interrupted" else 1


def conclude(report: Report, exit_reason: str, problem: str | None) -> RunResult:
    """Write the last metrics and summary.json, say how it ended, close the folder."""
    folder, board = report.folder, report.board
    account = books(report.memory, killed=problem is not None)
    if account.fault:
        fault = f"the books do not close, which is a fault of fdql: {account.fault}"
        folder.log(fault)
        board.problem(fault)
        problem = problem or fault
    problem = problem or report.problem or folder.failed
    summary = report.summary(exit_reason, problem, account)
    result = RunResult(folder.path, exit_reason, problem, summary)
    board.close()
    if problem:
        board.problem(f"{exit_reason}: {problem}")
    if exit_reason == "interrupted" and report.env_steps == 0:
        folder.discard()
        board.note("interrupted before the first step; nothing was kept")
        return result
    folder.metrics(report.row())
    folder.summary(summary)
    folder.close(result.exit_code)
    if problem is None and folder.failed is not None:  # only now
        board.problem(folder.failed)
        result = replace(result, problem=folder.failed)
    first = report.first_time_at_stop_return
    solved = f", {report.threshold:g} reached after {first['seconds']:.1f} s" if first else ""
    board.note(
        f"{exit_reason}: {report.env_steps:,} steps, {report.updates:,} updates, "
        f"{summary['wall_seconds']:.1f} s{solved}; kept in {folder.path}"
    )
    if report.updates:
        board.note(summary["bottleneck"])
    return result
