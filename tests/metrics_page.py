"""The keys that docs/metrics.md explains, to hold those of a run against."""

from __future__ import annotations

import json
import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"
PLACES = {
    "<role>": "(worker|inference|loader|trainer|evaluator)",
    "<stage>": "(step|ring|infer|act|ingest|sample|priorities|update|publish|evaluate)",
}


def undocumented(run: Path) -> set[str]:
    """Keys of a run's rows of metrics that the page does not explain; its rows are JSON."""
    patterns = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            for key in re.findall("`([^`]+)`", line.split(" | ")[0]):
                pattern = re.escape(key)
                for place, names in PLACES.items():
                    pattern = pattern.replace(place, names)
                patterns.append(re.compile(pattern))
    assert len(patterns) > 50
    text = (run / "metrics.jsonl").read_text()
    rows = [json.loads(line, parse_constant=_no_json) for line in text.splitlines()]
    assert rows
    return {k for row in rows for k in row if not any(p.fullmatch(k) for p in patterns)}


def _no_json(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
