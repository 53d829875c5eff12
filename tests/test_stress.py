"""A short run of each stress program; the long ones are commands, see their first lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "stress"


@pytest.mark.parametrize(
    ("program", "option", "amount"),
    [
        ("ring_two_threads.py", "--chunks", 20_000),
        ("slots_two_threads.py", "--requests", 2_000),
        ("weights_two_threads.py", "--versions", 50_000),
        ("fuzz_files.py", "--mutations", 300),
    ],
)
def test_stress(program, option, amount):
    command = [sys.executable, str(PROGRAMS / program), option, str(amount)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong" in done.stdout
