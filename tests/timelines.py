"""Reads trace.json as a viewer's importer does: slices of a thread nest, arrows bind to slices."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

Event = dict[str, Any]


class Timeline(NamedTuple):
    """What a viewer shows.

    threads  (pid, tid) -> (process, thread)
    slices   (pid, tid) -> its slices by begin
    flows    (name, id) -> (phase, process, name of the slice it binds to) by time
    """

    threads: dict[tuple[int, int], tuple[str, str]]
    slices: dict[tuple[int, int], list[Event]]
    flows: dict[tuple[str, str], list[tuple[str, str, str]]]

    def names(self) -> Counter[str]:
        """How often each kind of slice occurs."""
        return Counter(s["name"] for found in self.slices.values() for s in found)


def nanoseconds(microseconds: float) -> int:
    """As Perfetto reads a time: cut, not rounded."""
    return int(microseconds * 1000)


def read_timeline(path: Path) -> Timeline:
    """Load and check a file. AssertionError names what a viewer would drop or misplace."""
    events: list[Event] = json.loads(path.read_text())["traceEvents"]
    processes: dict[int, str] = {}
    threads: dict[tuple[int, int], tuple[str, str]] = {}
    for e in (e for e in events if e["ph"] == "M"):
        if e["name"] == "process_name":
            processes[e["pid"]] = e["args"]["name"]
        elif e["name"] == "thread_name":
            threads[e["pid"], e["tid"]] = (processes[e["pid"]], e["args"]["name"])
    slices: dict[tuple[int, int], list[Event]] = defaultdict(list)
    flows: dict[tuple[str, str], list[tuple[str, str, str]]] = defaultdict(list)
    open_slices: dict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)
    # Importers sort by time and keep the order of the file where times are equal.
    for e in sorted((e for e in events if e["ph"] != "M"), key=lambda e: nanoseconds(e["ts"])):
        where = (e["pid"], e["tid"])
        assert where in threads, e
        begin = nanoseconds(e["ts"])
        assert begin >= 0, e
        stack = open_slices[where]
        while stack and stack[-1][0] <= begin:
            stack.pop()
        if e["ph"] == "X":
            assert e["dur"] >= 0, e
            end = begin + nanoseconds(e["dur"])
            assert not stack or end <= stack[-1][0], f"{e} ends after {stack[-1]}, which holds it"
            stack.append((end, e["name"]))
            slices[where].append(e)
        else:
            assert e["ph"] in "stf", e
            assert stack, f"{e} is in no slice"
            assert e["ph"] != "f" or e["bp"] == "e"
            flows[e["cat"], e["id"]].append((e["ph"], threads[where][0], stack[-1][1]))
    for key, points in flows.items():
        phases = "".join(phase for phase, _, _ in points)
        assert phases == "s" + "t" * (len(points) - 2) + "f", (key, points)
    return Timeline(threads, slices, flows)
