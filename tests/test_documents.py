"""Every code block of README.md and the guides works as it stands there.

Python blocks run, those of one document in one process and folder as in a notebook, with every
`train` cut short; a block that begins with `# name.py` is also saved as that file. Lines of bash
blocks are parsed by the verb they call, up to the point where it would start; what `pip install`
names exists. Blocks marked no-run (another library's) only have to be valid Python.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tyro
from fdql.cli import main
from fdql.config_file import load_toml

pytestmark = pytest.mark.timeout(600)  # the first run of all compiles the kernels
ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
_BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Before the blocks of a document: `train` as it is, but short and in one process.
SHORT = """
import dataclasses, sys
import fdql.supervisor
from fdql.config import EvalConfig, ExploreConfig
sys.path.insert(0, ".")

def short(config, _train=fdql.supervisor.train, **words):
    config = dataclasses.replace(
        config, total_timesteps=160, serial=True, stop_at_return="never",
        explore=ExploreConfig(warmup_steps=64), eval=EvalConfig(episodes=2, longest_episode=50),
    )
    return _train(config, **words)

fdql.supervisor.train = short
"""


def blocks(document: Path) -> list[tuple[str, str, str]]:
    """Language, mark and text of every block of code."""
    return [(m[1], m[2].strip(), m[3]) for m in _BLOCK.finditer(document.read_text())]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_python_blocks_run(document: Path, tmp_path: Path):
    texts = []
    for language, mark, text in blocks(document):
        if language != "python":
            continue
        ast.parse(text)
        if mark == "no-run":
            continue
        if named := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / named[1]).write_text(text)
        texts.append(text)
    if not texts:
        pytest.skip("no Python in it")
    done = subprocess.run(
        [sys.executable, "-c", SHORT + "\n".join(texts)],
        cwd=tmp_path, capture_output=True, text=True, timeout=590,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", PAGES, ids=lambda d: d.name)
def test_tables_are_whole(document: Path):
    """Every row has as many cells as its head, for a bar ends a cell even in code; and nothing in
    angle brackets, which a page takes for an element and does not show.
    """
    bars = None  # of the table's head
    for line in re.sub(_BLOCK, "", document.read_text()).splitlines():
        if not line.startswith("|"):
            bars = None
            continue
        found = len(re.findall(r"(?<!\\)\|", line))
        bars = bars or found
        assert found == bars, line
        assert not re.search(r"<\w", re.sub(r"`[^`]*`", "", line)), line


class Parsed(Exception):
    """A verb's words were understood."""


def commands(document: Path) -> list[str]:
    """The lines of its bash blocks, joined where they go on, without comments."""
    out = []
    for language, _, text in blocks(document):
        assert language, f"a block of {document.name} has no language: {text[:60]!r}"
        if language == "bash":
            out += text.replace("\\\n", " ").splitlines()
    return [line for line in out if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_commands_are_understood(document: Path, tmp_path: Path, monkeypatch):
    """By the parser of their verb; everything after it would train."""
    real = tyro.cli

    def parse(*args: Any, **words: Any) -> Any:
        real(*args, **words)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", parse)
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/lander", "runs/balance"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.toml").write_text("seed = 1\n")
    (tmp_path / "tuned.toml").write_text("seed = 2\n")
    seeds = [load_toml(p).seed for p in sorted(tmp_path.rglob("*.toml"))]
    assert seeds == [1, 1, 2]
    lines = commands(document)
    for line in lines:
        for command in line.split("&&"):
            check(shlex.split(command, comments=True), line)
    if document.name == "README.md":
        assert len(lines) > 10


def check(words: list[str], line: str) -> None:
    """One command: AssertionError, or Parsed swallowed."""
    while "=" in words[0]:  # a variable for this command
        words = words[1:]
    if words[0] == "taskset":
        words = words[3:]
    if ">" in words:
        words = words[: words.index(">")]
    match words:
        case ["pip", "install", *rest]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
                assert set(extra.split(",")) <= set(project["optional-dependencies"]), line
        case ["python", "-m", "pytest"]:
            pass
        case ["python", "main.py", *rest] | ["fdql", *rest]:
            if rest[:1] == ["doctor"] or "--help" in rest:
                return
            with pytest.raises(Parsed):
                main(rest)
        case ["python", script, *_]:
            assert (ROOT / script).is_file(), line
        case ["bash", script, *_]:
            assert (ROOT / script).is_file(), line
        case _:
            raise AssertionError(f"nobody checks {line!r}")
