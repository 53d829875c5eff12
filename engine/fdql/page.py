"""`fdql report`: runs as one HTML page that needs nothing else, neither network nor scripts.

Reads run folders (history.py) and draws with plot.py. What comes from the files of a run is data:
escaped, cut to a length, numbers only where they are numbers; and the page forbids its reader's
browser to load or run anything.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fdql import __version__
from fdql.checkpoint import write_bytes
from fdql.config import ConfigError
from fdql.extras import require
from fdql.history import Group, History, find_runs, groups, is_number
from fdql.plot import draw, read_curves

LONGEST_TEXT = 300  # characters of one value
LONGEST_TABLE = 400  # rows
LARGEST_VIDEO = 16 << 20  # bytes
# Curves of the page: key, over what, heading.
CURVES: tuple[tuple[str, Literal["steps", "seconds"], str], ...] = (
    ("eval/mean_reward", "steps", "Return of evaluations by environment steps"),
    ("eval/mean_reward", "seconds", "Return of evaluations by seconds"),
    ("rollout/ep_rew_mean", "steps", "Return while training"),
    ("train/samples_per_insert", "seconds", "Samples per insert"),
    ("time/fps", "seconds", "Environment steps per second"),
    ("engine/duty_cycle", "seconds", "Duty cycle of the trainer"),
)

STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #888; --busy: #0072b2; --wait: #e69f00; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: min(1360px, 96vw); margin: 2rem auto; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th { font-weight: 600; color: var(--dim); } td:first-child, th:first-child { text-align: left; }
.wide { overflow-x: auto; } .note { color: var(--dim); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1rem; }
figure { margin: 0; background: #fff; padding: .5rem; }
figcaption { color: #333; font-weight: 600; } svg { max-width: 100%; height: auto; }
.bar { display: inline-flex; width: 160px; height: .7rem; background: var(--line); }
.busy { background: var(--busy); } .wait { background: var(--wait); }
video { max-width: 480px; width: 100%; } summary { cursor: pointer; font-weight: 600; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:"


def text(value: Any) -> str:
    """Anything as text of a page, escaped."""
    shown = str(value)
    cut = shown if len(shown) <= LONGEST_TEXT else shown[:LONGEST_TEXT] + "..."
    return html.escape(cut, quote=True)


def number(value: Any, form: str = ",.1f") -> str:
    """A number in its form; a dash for all that is none."""
    return html.escape(format(value, form)) if is_number(value) else "-"


def part(values: Any, *path: str) -> Any:
    """What stands at `path` in tables within tables, None where there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{h}</th>" for h in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in list(rows)[:LONGEST_TABLE]
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _overview(runs: Sequence[History]) -> str:
    def row(run: History) -> list[str]:
        s = run.summary
        first = part(s, "first_time_at_stop_return", "seconds")
        ratio = number(s.get("samples_per_insert_actual"), ".2f")
        target = number(s.get("samples_per_insert_target"), "g")
        return [
            text(run.env), text(run.settings.get("seed", "?")), text(s.get("mode", "-")),
            text(s.get("exit_reason", "not ended")), number(s.get("wall_seconds")),
            number(s.get("env_steps"), ",.0f"), number(s.get("updates"), ",.0f"),
            _score(s), number(first), f"{ratio} of {target}",
            number(s.get("trainer_duty_cycle"), ".0%"),
            f"{number(s.get('policy_lag_p50'), '.0f')} / {number(s.get('policy_lag_p99'), '.0f')}",
            number(s.get("worker_restarts"), ".0f"),
        ]  # fmt: skip

    heads = (
        "environment", "seed", "mode", "ended", "seconds", "steps", "updates", "last evaluation",
        "solved after, s", "samples per insert", "duty cycle", "policy lag p50 / p99", "restarts",
    )  # fmt: skip
    return table(heads, (row(run) for run in runs))


def _score(s: Mapping[str, Any]) -> str:
    interval = s.get("eval_return_interval")
    shown = f"{number(s.get('eval_return_mean'))} &plusmn; {number(s.get('eval_return_std'))}"
    if isinstance(interval, list) and len(interval) == 2:
        shown += f" [{number(interval[0])}, {number(interval[1])}]"
    return shown


def _figures(found: Sequence[Group]) -> str:
    out = []
    curves = read_curves(found, [key for key, _, _ in CURVES])
    for key, x, heading in CURVES:
        try:
            svg = draw(found, curves, key, x, "svg").decode()
        except ConfigError:
            continue  # no run has this value, a serial one no duty cycle
        svg = svg[svg.index("<svg") :]  # without the XML declaration and document type
        out.append(f"<figure><figcaption>{text(heading)}</figcaption>{svg}</figure>")
    return f'<div class="curves">{"".join(out)}</div>'


def _bar(busy: Any, waiting: Any) -> str:
    widths = [min(100.0, max(0.0, 100 * v)) if is_number(v) else 0.0 for v in (busy, waiting)]
    return (
        f'<span class="bar"><span class="busy" style="width:{widths[0]:.1f}%"></span>'
        f'<span class="wait" style="width:{widths[1]:.1f}%"></span></span>'
    )


def _budget(run: History) -> str:
    processes = part(run.summary, "processes")
    if not isinstance(processes, Mapping):
        return ""
    shares, stages = [], []
    for name, account in list(processes.items())[:LONGEST_TABLE]:
        busy, waiting = part(account, "busy"), part(account, "waiting")
        columns = ("busy", "waiting", "other", "core", "queued")
        shares.append(
            [text(name), _bar(busy, waiting), *(number(part(account, c), ".1%") for c in columns)]
        )
        for kind in ("stages_us", "waits_us"):
            readings = part(account, kind)
            for stage, r in readings.items() if isinstance(readings, Mapping) else ():
                times = (number(part(r, p)) for p in ("p50", "p99", "p99.9"))
                rate, share = number(part(r, "per_second"), ",.0f"), number(part(r, "share"), ".1%")
                stages.append([text(name), text(stage), *times, rate, share])
    return (
        f"<h3>Where the time goes</h3><p><b>{text(run.summary.get('bottleneck', ''))}</b></p>"
        + table(("process", "busy, waiting", "busy", "waiting", "other", "core", "queued"), shares)
        + "<details><summary>Latency of every stage, microseconds</summary>"
        + table(("process", "stage", "p50", "p99", "p99.9", "per second", "share"), stages)
        + "</details>"
    )


def _leaderboard(run: History) -> str:
    if not run.leaderboard:
        return ""
    rows = [
        [
            str(rank), number(e.mean, ",.2f"), number(e.std, ",.2f"),
            f"{number(e.low, ',.2f')} to {number(e.high, ',.2f')}", number(e.episodes, ",.0f"),
            number(e.env_steps, ",.0f"), number(e.updates, ",.0f"), text(e.file),
        ]
        for rank, e in enumerate(run.leaderboard, 1)
    ]  # fmt: skip
    heads = (
        "rank", "mean", "deviation", "95 % of the mean", "episodes", "steps", "updates", "file",
    )  # fmt: skip
    return "<h3>Best policies</h3>" + table(heads, rows)


def _video(run: History) -> str:
    videos = run.videos
    if not videos:
        return ""
    newest = videos[-1]
    if newest.stat().st_size > LARGEST_VIDEO:
        return f'<p class="note">{text(newest)} is too large to be part of this page.</p>'
    data = base64.b64encode(newest.read_bytes()).decode()
    return (
        f"<h3>Video</h3><p>{text(newest.name)}</p>"
        f'<video controls muted src="data:video/mp4;base64,{data}"></video>'
    )


def _run(run: History) -> str:
    settings = ([text(k), text(v)] for k, v in sorted(run.settings.items()))
    problem = run.summary.get("problem")
    return (
        f"<h2>{text(run.env)}, seed {text(run.settings.get('seed', '?'))}</h2>"
        f'<p class="note">{text(run.path)}</p>'
        + (f"<p><b>{text(problem)}</b></p>" if problem else "")
        + _budget(run)
        + _leaderboard(run)
        + _video(run)
        + "<details><summary>Settings</summary>"
        + table(("setting", "value"), settings)
        + "</details>"
    )


def page(runs: Sequence[History]) -> str:
    """The page of these runs. Raises ConfigError when matplotlib is not installed."""
    require("matplotlib", "plot", "fdql report")
    found = groups(runs)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>fdql: {len(runs)} run(s)</title><style>{STYLE}</style></head><body>"
        f"<h1>{len(runs)} run(s) of {text(', '.join(dict.fromkeys(g.env for g in found)))}</h1>"
        + _overview(runs)
        + "<h2>Curves</h2>"
        + _figures(found)
        + "".join(_run(run) for run in runs)
        + f'<p class="note">Written by fdql {text(__version__)}.</p></body></html>\n'
    )


def report(runs: Sequence[str], out: Path) -> str:
    """Write the page of the runs in these folders. Returns what to say of it.

    Raises ConfigError for folders without runs, or another kind of file.
    """
    if out.suffix.lower() != ".html":
        raise ConfigError(f"out = {str(out)!r}: must end in .html; report.html works")
    found = find_runs(runs)
    data = page(found).encode("utf-8", "replace")  # half a surrogate, from a file, has no code
    try:
        write_bytes(out, data)
    except OSError as error:
        raise ConfigError(
            f"out = {str(out)!r}: cannot be written ({error.strerror}); report.html works"
        ) from None
    return f"{len(found)} run(s), {len(data) / 1e6:.1f} MB: {out}"
