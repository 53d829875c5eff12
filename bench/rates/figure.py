"""The README's figure of a throughput run: bars of ours, the peers and the limits."""

from __future__ import annotations

from pathlib import Path

from rates.reading import Row


def draw(rows: list[Row], path: Path) -> None:
    """One panel per group of acting and training; bars from 0, whiskers from min to max."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [r for r in rows if r.values and r.kind in ("acting", "training")]
    drawn = [r for r in drawn if r.unit in ("steps/s", "updates/s")]
    panels = list(dict.fromkeys((r.kind, r.subject) for r in drawn if r.subject != "null"))
    panels = [p for p in panels if sum((r.kind, r.subject) == p for r in drawn) > 1]
    if not panels:
        raise ValueError("--figure: no group of acting or training has two rows to compare")
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(4.6 * columns, 2.4 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (kind, subject) in zip(axes.flat, panels, strict=False):
        mine = [r for r in drawn if (r.kind, r.subject) == (kind, subject)][::-1]
        values = [r.median for r in mine]
        off = [[v - min(r.values) for v, r in zip(values, mine, strict=True)],
               [max(r.values) - v for v, r in zip(values, mine, strict=True)]]  # fmt: skip
        colours = [
            "#d1495b" if r.who == "fdql" else "#c9c9c9" if r.who.startswith("limit") else "#66a182"
            for r in mine
        ]
        axis.barh([r.who for r in mine], values, xerr=off, color=colours, error_kw={"lw": 0.8})
        axis.bar_label(axis.containers[-1], [f" {v:,.0f}" for v in values], fontsize=7)
        axis.margins(x=0.25)
        axis.set_xticks([])  # the numbers stand at the bars
        axis.tick_params(labelsize=7)
        axis.set_title(f"{kind}, {subject}, {mine[0].unit}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
