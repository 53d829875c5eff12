"""What fdql needs and its extras bring, from the checkout's pyproject.toml or, where it is
installed from a wheel, from its metadata; and the commands that install them.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]  # of a source checkout; elsewhere nothing of it is there
REBUILD = f"cd {CHECKOUT} && pip install -c constraints.txt -e ."
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")
_BELOW = re.compile(r"""python_version\s*<\s*['"](\d+)\.(\d+)['"]""")
_NAME = re.compile(r"[\w.-]+")


def in_checkout() -> bool:
    """This module lies in a source checkout."""
    return (CHECKOUT / "ext").is_dir() and (CHECKOUT / "pyproject.toml").is_file()


def install(extra: str = "") -> str:
    """The command that installs fdql again, with an extra."""
    words = f"[{extra}]" if extra else ""
    if in_checkout():
        return f'cd {CHECKOUT} && pip install -c constraints.txt -e ".{words}"'
    return f'pip install "fdql{words}"'


def _declared() -> dict[str, list[str]]:
    """Requirement lines of each extra; those of fdql itself under the empty name."""
    if in_checkout():
        project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
        return {"": project["dependencies"], **project["optional-dependencies"]}
    out: dict[str, list[str]] = {"": []}
    for line in metadata.requires("fdql") or []:
        out.setdefault(_extra_of(line), []).append(line)
    return out


def _packages(lines: list[str]) -> list[str]:
    """Their distributions, without our own extras and without what another Python wants."""
    names = []
    for line in lines:
        bound, name = _BELOW.search(line), _NAME.match(line)
        assert name is not None
        if name[0] != "fdql" and not (bound and sys.version_info >= (int(bound[1]), int(bound[2]))):
            names.append(name[0])
    return names


def _extra_of(line: str) -> str:
    found = _EXTRA.search(line)
    return found[1] if found else ""


def required() -> list[str]:
    """Distributions that every run needs."""
    return _packages(_declared()[""])


def extras() -> dict[str, list[str]]:
    """Extra -> its distributions; those that only collect others are left out."""
    found = {k: _packages(v) for k, v in _declared().items() if k}
    return {k: v for k, v in found.items() if v}


def pinned() -> dict[str, str]:
    """Distribution -> the version that is tested; empty where there is no constraints.txt."""
    file = CHECKOUT / "constraints.txt"
    lines = file.read_text().splitlines() if in_checkout() and file.is_file() else []
    pairs = (line.split("#")[0].strip().split("==") for line in lines)
    return {p[0]: p[1].split(";")[0].strip() for p in pairs if len(p) == 2}
