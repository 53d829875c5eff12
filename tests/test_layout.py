"""Layout and API pages of the compiled modules: C++, Python and stubs say the same."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from fdql.shm import layout

ROOT = Path(__file__).parents[1]
EXT = ROOT / "ext"
MODULES = ["segment", "records", "ring", "slots", "weights", "guard", "audit"]
# names that a compiled module has beside its API
INTERNAL = {"annotations", "namedtuple", "errno", "mmap", "os", "signal", "sys"}
INTERNAL |= {"CorruptError"}  # of audit, in the modules that raise it


def module(name: str):
    return importlib.import_module(f"fdql.shm.{name}")


def stub(name: str) -> ast.Module:
    return ast.parse((ROOT / f"engine/fdql/shm/{name}.pyi").read_text())


def test_offsets_are_those_of_the_compiler():
    compiled = {}
    for name in MODULES[:-2]:
        compiled |= module(name).OFFSETS
    assert compiled == layout.OFFSETS


def test_fields_do_not_overlap():
    for struct, fields in layout.OFFSETS.items():
        end = 0
        for field, (offset, nbytes) in fields.items():
            assert offset >= end, (struct, field)
            assert offset % min(nbytes, 8) == 0, (struct, field)
            end = offset + nbytes


@pytest.mark.parametrize(
    ("struct", "one", "other"),
    [
        ("RingHeader", "schema_hash", "head"),
        ("RingHeader", "committed_steps", "tail"),
        ("RingHeader", "consumed_steps", "not_full"),
        ("Mailbox", "req_seq", "rep_seq"),
        ("Mailbox", "policy_version", "waiting"),
        ("WeightsHeader", "stride", "latest"),
    ],
)
def test_words_of_different_writers_are_128_bytes_apart(struct, one, other):
    fields = layout.OFFSETS[struct]
    assert fields[one][0] // 128 != fields[other][0] // 128


def test_hash_depends_on_every_number(monkeypatch):
    before = layout.layout_hash()
    assert 0 < before < 2**64
    assert layout.layout_hash() == before
    monkeypatch.setitem(layout.OFFSETS, "Pin", {"buffer": (8, 8)})
    assert layout.layout_hash() != before
    monkeypatch.undo()
    monkeypatch.setattr(layout, "KIND_RING", 9)
    assert layout.layout_hash() != before


@pytest.mark.parametrize("name", MODULES)
def test_stub_names_the_built_module(name):
    declared = set()
    for node in stub(name).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            declared.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            declared.add(node.target.id)
    declared = {n for n in declared if not n.startswith("_")}
    built = {n for n in dir(module(name)) if not n.startswith("_")}
    assert declared == built - (INTERNAL - declared)


@pytest.mark.parametrize("name", MODULES)
def test_stub_classes_have_the_built_members(name):
    classes = {n.name: n for n in stub(name).body if isinstance(n, ast.ClassDef)}
    for title, node in classes.items():
        bases = [node] + [classes[b.id] for b in node.bases if getattr(b, "id", 0) in classes]
        declared = set()
        for part in (part for base in bases for part in base.body):
            if isinstance(part, ast.FunctionDef):
                declared.add(part.name)
            elif isinstance(part, ast.AnnAssign):
                declared.add(part.target.id)
        built = getattr(module(name), title)
        inherited = next((b for b in (RuntimeError, tuple) if issubclass(built, b)), object)
        members = {m for m in dir(built) if not m.startswith("_")} - set(dir(inherited))
        if inherited is tuple:
            members |= {"count", "index"} & declared
        public = {m for m in declared if not m.startswith("_")}
        assert public == members - {"count", "index"}, title


@pytest.mark.parametrize("name", MODULES)
def test_stub_signatures_are_the_built_ones(name):
    """Parameter names and order; Cython writes its own into the first line of a docstring."""
    for node in stub(name).body:
        owner, functions = None, [node]
        if isinstance(node, ast.ClassDef):
            owner, functions = node.name, node.body
        for f in functions:
            if not isinstance(f, ast.FunctionDef) or f.name.startswith("__") or f.decorator_list:
                continue
            home = getattr(module(name), owner) if owner else module(name)
            line = getattr(home, f.name).__doc__.splitlines()[0]
            inside = re.sub(r"\[.*?\]", "", re.match(r"[\w.]+\((.*?)\)", line).group(1))
            built = [re.split(r"[=:]", p)[0].split()[-1] for p in inside.split(",") if p.strip()]
            declared = [a.arg for a in f.args.args]
            assert [b for b in built if b != "self"] == [d for d in declared if d != "self"], line


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_explained(name):
    for node in stub(name).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("__"):
                    setter = any(getattr(d, "attr", "") == "setter" for d in part.decorator_list)
                    assert setter or ast.get_docstring(part), (node.name, part.name)
        elif isinstance(node, ast.FunctionDef):
            assert ast.get_docstring(node), node.name


def ordered_operations() -> list[tuple[str, str, str]]:
    """(pair, operation, place) of every acquire, release and fence outside the probes."""
    found = []
    for path in sorted([*EXT.glob("*.pyx"), *EXT.glob("*.pxd")]):
        if path.name.startswith(("probe_", "atomics")):
            continue
        lines = path.read_text().splitlines()
        for i, line in enumerate(lines):
            if operation := re.search(
                r"\b(load_acquire|store_release|add_release|fence_seq_cst)\(", line
            ):
                near = [n for n in lines[i : i - 4 : -1] if "SYNC" in n]
                name = re.search(r"SYNC ([a-z-]+)", near[0]).group(1) if near else ""
                found.append((name, operation.group(1), f"{path.name}:{i + 1}"))
    return found


def test_every_acquire_release_and_fence_names_its_pair():
    assert [place for name, _, place in ordered_operations() if not name] == []


def test_sync_names_stand_at_both_ends():
    """A pair is a release and an acquire, or two fences."""
    ends: dict[str, list[str]] = {}
    for name, operation, _ in ordered_operations():
        ends.setdefault(name, []).append(operation)
    assert len(ends) >= 12
    for name, operations in ends.items():
        release = {"store_release", "add_release"} & set(operations)
        both = release and "load_acquire" in operations
        assert both or operations.count("fence_seq_cst") >= 2, (name, operations)


def test_only_atomics_names_fences_and_system_calls():
    words = (
        r"atomic_thread_fence|SYS_futex|_mm_pause|clock_gettime|__rdtsc|memory_order_(?!relaxed)"
    )
    for path in EXT.iterdir():
        if path.name not in {"atomics.hpp", "probe_ring.pyx"}:  # the probe's own textbook queue
            assert not re.search(words, path.read_text()), path.name
