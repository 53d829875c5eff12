"""The tables that bench/throughput.py prints: rates, stages, what was not run, what was wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from rates.reading import NOISY, Row


def ratio_to_ours(row: Row, rows: Iterable[Row]) -> float:
    """Ours over this row's median, 1 for ours itself; nan where there is nothing to compare."""
    ours = next(
        (r for r in rows if (r.kind, r.subject, r.who) == (row.kind, row.subject, "fdql")), None
    )
    if ours is None or not ours.values or not row.values or ours.unit != row.unit:
        return math.nan
    return ours.median / row.median


def gemm_share(rows: list[Row], shape: str) -> float:
    """Multiply-adds of our updates over the best rate of the matrix product; nan: unknown."""
    mine = {r.who: r for r in rows if r.kind == "training" and r.subject == shape}
    ours, limit = mine.get("fdql"), mine.get("limit: float32 GEMM")
    if not (ours and limit and ours.values and limit.values):
        return math.nan
    return float(ours.median * limit.facts["multiply_adds"][shape] / limit.median)


def facts_of(row: Row, rows: list[Row]) -> str:
    """A few words beside a row's number."""
    words = []
    if row.who == "fdql" and row.kind == "training":
        words.append(f"GEMM share {gemm_share(rows, row.subject):.2f}")
    names = ("duty_cycle", "updates_per_second", "samples_per_insert", "policy_lag_p99", "workers")
    words += [f"{n.replace('_', ' ')} {row.facts[n]:g}" for n in names if n in row.facts]
    words += ["noisy"] if row.spread > NOISY else []
    return ", ".join(words)


def show(rows: list[Row]) -> None:
    """Rates of every group, then the stages of ours, then what is missing or wrong."""
    before = None
    for row in rows:
        if (row.kind, row.subject) != before:
            before = (row.kind, row.subject)
            print(f"\n{row.kind}: {row.subject}")
            print(
                f"  {'who':<26} {'median':>15} {'min':>15} {'max':>15} {'fdql/it':>8}  unit; facts"
            )
        if not row.values:
            print(f"  {row.who:<26} not run: {row.not_run}")
            continue
        share = ratio_to_ours(row, rows)
        ratio = "-" if math.isnan(share) or row.who == "fdql" else f"{share:.2f}"
        facts = facts_of(row, rows)
        numbers = (row.median, min(row.values), max(row.values))
        print(
            f"  {row.who:<26} {' '.join(f'{n:>15,.1f}' for n in numbers)} {ratio:>8}  {row.unit}"
            + (f"; {facts}" if facts else "")
        )
    for row in rows:
        if row.stages:
            show_stages(row)
    if any(r.wrong for r in rows):
        print("\nWRONG")
        for row in rows:
            for what in row.wrong:
                print(f"  {row.kind} {row.subject} {row.who}: {what}")


def show_stages(row: Row) -> None:
    """Count, p50, p99 of every stage; lag is in updates, rows in rows, the rest in microseconds."""
    print(f"\nstages of {row.kind}: {row.subject}, microseconds (lag in updates, rows in rows)")
    print(f"  {'stage':<12} {'count':>10} {'p50':>12} {'p99':>12}")
    for stage, at in row.stages.items():
        print(f"  {stage:<12} {at['count']:>10,.0f} {at['p50']:>12,.1f} {at['p99']:>12,.1f}")


def result(rows: list[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """The machine-readable result; nan becomes null."""
    out = []
    for row in rows:
        ratio = ratio_to_ours(row, rows)
        one = row.to_dict() | {"fdql_over_it": None if math.isnan(ratio) else round(ratio, 4)}
        if row.who == "fdql" and row.kind == "training":
            share = gemm_share(rows, row.subject)
            one["gemm_share"] = None if math.isnan(share) else round(share, 4)
        out.append(one)
    wrong = [f"{r.kind} {r.subject} {r.who}: {w}" for r in rows for w in r.wrong]
    absent = {f"{r.kind} {r.subject} {r.who}": r.not_run for r in rows if r.not_run}
    return facts | {"ok": not wrong, "wrong": wrong, "not_run": absent, "rows": out}
