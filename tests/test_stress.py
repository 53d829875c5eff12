"""A short run of each stress program; the long ones are commands, see their first lines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "stress"
sys.path.insert(0, str(PROGRAMS))

from soak import growth  # noqa: E402


@pytest.mark.parametrize(
    ("program", "option", "amount"),
    [
        ("ring_two_threads.py", "--chunks", 20_000),
        ("slots_two_threads.py", "--requests", 2_000),
        ("weights_two_threads.py", "--versions", 50_000),
        ("fuzz_files.py", "--mutations", 300),
        ("messages.py", "--messages", 1_000_000),
        ("records_two_threads.py", "--events", 100_000),
    ],
)
def test_stress(program, option, amount):
    command = [sys.executable, str(PROGRAMS / program), option, str(amount)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong" in done.stdout


def test_one_flipped_bit_of_a_message_is_found():
    command = [sys.executable, str(PROGRAMS / "messages.py"), "--messages", "2000", "--corrupt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 11
    assert " 0 wrong" not in done.stdout
    for line in lines[:3]:
        assert line.startswith("ring")
        assert "2000 received, 1 wrong, the first is number 1000," in line


def test_growth_is_found():
    """Quarters of 10 looks each, one a second: 100 MiB may become 106."""

    def seen(what: str, after: float) -> list[tuple[float, dict[str, float]]]:
        flat = {"MiB": 100.0, "descriptors": 20.0, "threads": 3.0}
        return [(t, flat | ({what: after} if t >= 30 else {})) for t in range(40)]

    for what, allowed, more in [("MiB", 105.9, 106.1), ("descriptors", 20, 21), ("threads", 3, 4)]:
        assert growth(seen(what, allowed), 40.0) == {}
        assert set(growth(seen(what, more), 40.0)) == {what}
    with pytest.raises(ValueError, match="too few"):
        growth(seen("MiB", 1.0)[:5], 40.0)


def test_every_kill_point_is_in_the_matrix(monkeypatch):
    monkeypatch.syspath_prepend(str(PROGRAMS))
    from kill_engine import POINTS

    sources = [p.read_text() for p in (PROGRAMS.parents[1] / "ext").glob("*.p[xy][dx]")]
    compiled_in = set(re.findall(r'\bTP\("([^"]+)"\)', "".join(sources)))
    assert len(compiled_in) > 20
    assert compiled_in == {point for points in POINTS.values() for point in points}
