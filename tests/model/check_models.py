"""Runs the models and their faults: `python tests/model/check_models.py [--long] [words]`.

Every model must hold, and every fault must be found: those that the models ask for by name, and one
for each SYNC of the Cython source, whose order is weakened to relaxed or whose fence is left out.
What no model finds is listed in HARMLESS with the reason; with --long that is tried too.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from model import control, doorbell, records, ring, slots, weights
from model.explorer import Model, Result, explore, plant
from model.weak_memory import Site

EXT = Path(__file__).parents[2] / "ext"
MODULES = (doorbell, ring, slots, weights, records, control)
MODELS: list[Model] = [m for module in MODULES for m in module.MODELS]
FAULTS: dict[str, str] = {k: v for module in MODULES for k, v in module.FAULTS.items()}


class Sync(NamedTuple):
    """One ordered operation, as the Cython source and the models name it."""

    function: str
    sync: str
    order: str


FENCED = "the fence beside it orders more"
COMPARED = "the wait compares rep_seq itself, behind the kernel's own barrier"
ALONE = "nothing else is read because of it"

# What no model finds, and why it does no harm. It stays in ext/: it costs nothing there, and says
# what is meant.
HARMLESS: dict[Sync | str, str] = {
    Sync("bell_arm", "bell-seq", "acquire"): FENCED,
    Sync("bell_ring", "bell-seq", "release"): FENCED,
    Sync("bell_sleep", "bell-seq", "acquire"): "who wakes looks for work by acquire",
    Sync("snapshot_acquire", "weights", "acquire"): FENCED + "; the second look is at the same",
    Sync("mailbox_await", "reply-wake", "seq_cst"): COMPARED,
    "look before saying that it waits": COMPARED,
    "asleep without a second look": COMPARED,
    Sync("Control.stop", "stop", "acquire"): ALONE,
    Sync("Control.stop", "stop", "release"): ALONE + "; bell_wake publishes it",
    Sync("stopped", "stop", "acquire"): ALONE,
    Sync("Record.add", "counter", "release"): ALONE,
    "pin of a dead reader stays": "it holds one buffer, and there is one for every reader",
}


def sync_of_source() -> Counter[Sync]:
    """Every operation in ext/ that says SYNC. ValueError for an ordered one that does not."""
    found: Counter[Sync] = Counter()
    orders = {
        "load_acquire": "acquire",
        "store_release": "release",
        "add_release": "release",
        "fence_seq_cst": "seq_cst",
    }
    for file in sorted([*EXT.glob("*.pxd"), *EXT.glob("*.pyx")]):
        if file.name == "atomics.pxd" or file.name.startswith("probe_"):  # declarations; benches
            continue
        owner, function, named = "", "", ""
        for line in file.read_text().splitlines():
            code, _, comment = line.partition("#")
            if begins := re.match(r"cdef class (\w+)", code):
                owner = begins[1] + "."
            elif begins := re.match(r"(?:cdef|def|cpdef) .*?(\w+)\(", code):
                owner, function = "", begins[1]
            elif begins := re.match(r" +(?:cdef|def) .*?(\w+)\(.*[:,]$", code.rstrip()):
                function = owner + begins[1]
            if sync := re.search(r"SYNC ([\w-]+)", comment):
                named = sync[1]
            used = re.search(r"\b(" + "|".join(orders) + r")\(", code)
            if used:
                if not named:
                    raise ValueError(f"{file.name}, {function}: {line.strip()} names no SYNC")
                found[Sync(function, named, orders[used[1]])] += 1
            if code.strip():
                named = ""
    return found


def sync_of_models(results: dict[str, Result]) -> Counter[Sync]:
    """Every operation with a SYNC that was reached in these explorations."""
    sites = {site for result in results.values() for site in result.sites}
    return Counter(Sync(*site[:3]) for site in sites)


def find(site: Site, results: dict[str, Result], models: list[Model]) -> tuple[str, Result] | None:
    """The smallest model that finds the fault at a site, and what it says; None when none does."""
    reaching = [m for m in models if site in results[m.name].sites]
    for model in sorted(reaching, key=lambda m: results[m.name].states):
        result = explore(model, site)
        if not result.holds:
            return model.name, result
    return None


def run(models: list[Model]) -> Iterator[tuple[Model, Result]]:
    for model in models:
        began = time.perf_counter()
        result = explore(model)
        seconds = time.perf_counter() - began
        print(f"{model.name:36} {result.verdict:12} {result.states:9,} states {seconds:6.2f} s")
        yield model, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="the large models, harmless faults too")
    parser.add_argument("words", nargs="*", help="only models with these words in their names")
    args = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    models = [
        m for m in MODELS if all(w in m.name for w in args.words) and (args.long or not m.long)
    ]
    results = {}
    for model, result in run(models):
        results[model.name] = result
        if not result.holds:
            print("    " + "\n    ".join(result.trace))
    wrong = [name for name, result in results.items() if not result.holds]
    found = 0

    def report(fault: str, harmless: bool, result: Result | None) -> None:
        nonlocal found
        missed = result is None or result.holds
        said = "harmless" if missed and harmless else "NOT FOUND" if missed else result.verdict
        print(f"  {fault:60} {said}")
        found += not missed
        wrong.extend([fault] * (missed != harmless))

    for fault, name in FAULTS.items():
        if name in results and (fault not in HARMLESS or args.long):
            with plant(fault):
                result = explore(next(m for m in MODELS if m.name == name))
            report(fault, fault in HARMLESS, result)
    short = [m for m in models if not m.long]
    for site in sorted({s for r in results.values() for s in r.sites}):
        sync = Sync(*site[:3])
        if sync in HARMLESS and not args.long:
            continue
        shown = find(site, results, short)
        fault = f"{site.function}: {site.sync} not {site.order}"
        report(fault, sync in HARMLESS, shown and shown[1])
    states = sum(r.states for r in results.values())
    print(f"{len(results)} models, {states:,} states, {found} faults found; wrong: {wrong or 0}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
