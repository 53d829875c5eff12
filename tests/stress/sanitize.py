"""The two-thread programs under ThreadSanitizer, AddressSanitizer and UBSan: nothing is reported.

    python tests/stress/sanitize.py --short     # what .ci/run does
    python tests/stress/sanitize.py --long      # ten times the messages, then the tests of ext/

Builds what it needs into a temporary folder. A run proves something only if the same programs, with
a fault planted, are reported: release and acquire weakened to relaxed (every program), an event
written behind its track and a shift by a huge number (records). Nothing is suppressed: the programs
import neither numpy nor anything else that the sanitizers were not told of.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from builds import ROOT, Plant, build

HERE = Path(__file__).parent
PROBES = ("probe_ring", "probe_slots")
PROGRAMS = {  # program -> its option and how many messages are few
    "ring": ("--chunks", 20_000),
    "slots": ("--requests", 1_000),
    "weights": ("--versions", 50_000),
    "records": ("--events", 50_000),
}
PLANTED = (
    Plant("track.pxd", "if n >= capacity:", "if n > capacity:"),
    Plant("histogram.pxd", "if (v < 8) return static_cast<unsigned>(v);", ""),
)
MARKS = ("WARNING: ThreadSanitizer", "ERROR: AddressSanitizer", "runtime error:")
TESTS = ("ring", "slots", "weights", "records", "segment", "chunk", "layout")


def environment(engine: Path, sanitizer: str) -> dict[str, str]:
    """Of a process that imports the package from `engine` with the sanitizer's library loaded."""
    found = subprocess.run(
        ["gcc", f"-print-file-name=lib{sanitizer}.so"], capture_output=True, text=True, check=True
    )
    return os.environ | {
        "PYTHONPATH": f"{engine}{os.pathsep}{ROOT / 'tests'}",
        "LD_PRELOAD": found.stdout.strip(),
        "TSAN_OPTIONS": "exitcode=66",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python gives little back when it ends
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def reports(command: list[str], env: dict[str, str]) -> tuple[dict[str, int], int, str]:
    """How often each of MARKS was said, the exit code, and everything that was said."""
    fixed = ["setarch", "-R"]  # random addresses where ThreadSanitizer expects none end it at once
    done = subprocess.run(fixed + command, env=env, capture_output=True, text=True, timeout=3600)
    text = done.stdout + done.stderr
    return {mark: text.count(mark) for mark in MARKS if mark in text}, done.returncode, text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--short", action="store_true")
    length.add_argument("--long", action="store_true")
    times, began = 10 if parser.parse_args().long else 1, time.monotonic()
    failed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        place = Path(folder)

        def made(name: str, **how: object) -> Path:
            return build(place / name, **how)  # type: ignore[arg-type]

        modules = PROBES if times == 1 else ()
        both = "address,undefined"
        builds = [
            pool.submit(made, "thread", modules=PROBES, sanitize="thread"),
            pool.submit(made, "relaxed", modules=PROBES, sanitize="thread",
                        define="FDQL_MUTANT_RELAXED"),
            pool.submit(made, "both", modules=modules, sanitize=both),
            pool.submit(made, "planted", modules=PROBES, sanitize=both, plants=PLANTED),
        ]  # fmt: skip
        thread, relaxed, address, planted = (b.result() for b in builds)
        print(f"built in {time.monotonic() - began:.0f} s")

        def judged(
            what: str, engine: Path, sanitizer: str, command: list[str], need: set[str]
        ) -> tuple[bool, str]:
            found, code, text = reports(command, environment(engine, sanitizer))
            good = need <= set(found) if need else not found and code == 0
            line = f"{what:32} {found or 'no report'}"
            return good, line if good else f"{line}   WRONG\n{text[-4000:]}"

        runs = []
        for name, (option, few) in PROGRAMS.items():
            command = [sys.executable, str(HERE / f"{name}_two_threads.py"), option]
            many, short = [*command, str(few * times)], [*command, str(few)]
            runs += [
                (f"{name}, thread", thread, "tsan", many, set()),
                (f"{name}, thread, relaxed", relaxed, "tsan", short, {MARKS[0]}),
                (f"{name}, address and undefined", address, "asan", many, set()),
            ]
        runs.append(("records, planted", planted, "asan", short, {MARKS[1], MARKS[2]}))
        if times > 1:
            files = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS]
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
            runs.append(("tests of ext/", address, "asan", command, set()))
        for done in [pool.submit(judged, *run) for run in runs]:
            good, said = done.result()
            failed += not good
            print(said, flush=True)
    print(f"{failed} wrong, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
