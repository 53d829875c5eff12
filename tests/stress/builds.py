"""Builds of the package for proofs: with a sanitizer, with kill points, with planted faults.

Each is a copy of the package in a folder of its own, compiled there, to be put into PYTHONPATH;
nothing of the checkout changes. A planted fault replaces one passage of the copied source; what is
not compiled anew is the checkout's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Plant:
    """A fault: the passage `old` of ext/`file`, which stands there once, becomes `new`."""

    file: str
    old: str
    new: str


def build(
    folder: Path, *, modules: tuple[str, ...] = (), sanitize: str = "", kill_points: bool = False,
    define: str = "", plants: tuple[Plant, ...] = (),
) -> Path:  # fmt: skip
    """Compile `modules` of ext/ (none: all) into a copy of the package; the path to import it from.

    RuntimeError with the compiler's words when that fails, ValueError when a plant finds no place.
    """
    engine = folder / "engine"
    # Numba's caches beside the sources come along, and stay valid, for the times are kept.
    shutil.copytree(ROOT / "engine" / "fdql", engine / "fdql")
    shutil.copytree(ROOT / "ext", folder / "ext")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / name)
    cython = ROOT / "build" / "cython"
    if cython.is_dir() and not plants:  # translated already: Cython compares the times
        shutil.copytree(cython, folder / "build" / "cython")
    for source in (folder / "ext").glob("*.pyx"):
        if modules and source.stem not in modules:
            source.unlink()
        else:
            for old in (engine / "fdql" / "shm").glob(f"{source.stem}.*.so"):
                old.unlink()
    for plant in plants:
        path = folder / "ext" / plant.file
        text = path.read_text()
        if text.count(plant.old) != 1:
            raise ValueError(f"{plant.file} does not hold once: {plant.old!r}")
        path.write_text(text.replace(plant.old, plant.new))
    env = dict(os.environ, CPPFLAGS=f"-D{define}" if define else "", FDQL_SANITIZE=sanitize)
    env |= {"FDQL_KILL_POINTS": "1"} if kill_points else {}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the build failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return engine
