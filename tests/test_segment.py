from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest
from fdql.shm import segment as segment_module
from fdql.shm.segment import PAGE, Segment, SegmentError

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="shared segments need memfd")


def test_sections_by_hand():
    # header 64 + 3 * 32 = 160, one page; then one page, three pages (8193 bytes), one page
    with Segment.create([(1, 0, 128), (3, 0, 8193), (3, 1, 1)], 7, shared=False) as segment:
        assert segment.nbytes == 6 * PAGE
        assert segment.fd == -1
        views = [segment.section(1, 0), segment.section(3, 0), segment.section(3, 1)]
        assert [v.nbytes for v in views] == [128, 8193, 1]
        assert all(v.format == "B" and not v.readonly and not any(v) for v in views)
        views[1][:] = b"\xff" * 8193
        assert not any(views[0])
        assert not any(views[2])


def test_missing_section_names_what_there_is():
    with (
        Segment.create([(1, 0, 8)], 7, shared=False) as segment,
        pytest.raises(KeyError, match=r"\(kind 2, index 5\).*\[\(1, 0\)\]"),
    ):
        segment.section(2, 5)


@pytest.mark.parametrize("sections", [[(1, 0, 8), (1, 0, 8)], [(1, 0, 0)], [(1, 0, -4)]])
def test_bad_sections_are_refused(sections):
    with pytest.raises(ValueError, match="section"):
        Segment.create(sections, 7, shared=False)


def test_closing_keeps_the_memory_of_live_views():
    segment = Segment.create([(1, 0, 8)], 7, shared=False)
    view = segment.section(1, 0)
    segment.close()
    segment.close()
    view[0] = 3
    assert view[0] == 3
    with pytest.raises(ValueError, match="closed"):
        segment.section(1, 0)


def test_too_much_private_memory_says_how_much():
    with pytest.raises(MemoryError, match=r"cannot take 4398046511104\.0 MiB"):
        Segment.create([(1, 0, 1 << 62)], 7, shared=False)


@linux_only
def test_too_much_shared_memory_says_how_much():
    with pytest.raises(OSError, match=r"cannot take \d+\.\d MiB of shared memory: .* are free"):
        Segment.create([(1, 0, 1 << 60)], 7)


@linux_only
def test_attach_sees_the_same_bytes():
    with Segment.create([(1, 0, 8), (2, 3, 5000)], 7) as segment:
        segment.section(2, 3)[4999] = 9
        with Segment.attach(os.dup(segment.fd), 7) as other:
            assert other.nbytes == segment.nbytes
            assert other.section(2, 3)[4999] == 9
            other.section(1, 0)[0] = 1
        assert segment.section(1, 0)[0] == 1


@linux_only
def test_nobody_else_may_open_it():
    with Segment.create([(1, 0, 8)], 7) as segment:
        assert stat.S_IMODE(os.fstat(segment.fd).st_mode) == 0o600


@linux_only
def test_size_is_sealed():
    with Segment.create([(1, 0, 8)], 7) as segment:
        for nbytes in (PAGE, 4 * PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(segment.fd, nbytes)


@linux_only
def test_all_pages_are_taken_at_creation():
    with Segment.create([(1, 0, 1 << 20)], 7) as segment:
        assert os.fstat(segment.fd).st_blocks * 512 >= 1 << 20


@linux_only
def test_kernel_without_populate(monkeypatch):
    """Before Linux 5.14 madvise says EINVAL: pages are touched one by one."""

    class Memory(bytearray):
        def madvise(self, option):
            raise OSError(errno.EINVAL, "no such advice")

    memory = Memory(b"x" * (3 * PAGE))
    segment_module._populate(memory, 3 * PAGE)
    assert [memory[at] for at in (0, PAGE, 2 * PAGE)] == [0, 0, 0]


@linux_only
def test_attach_says_what_differs():
    with Segment.create([(1, 0, 8)], 7) as segment:
        fd = os.dup(segment.fd)
        with pytest.raises(SegmentError, match=r"layout hash is 0x7, this process expects 0x8"):
            Segment.attach(fd, 8)
        os.pwrite(fd, b"\x02", 8)
        with pytest.raises(SegmentError, match="abi is 0x2"):
            Segment.attach(fd, 7)
        os.pwrite(fd, bytes(8), 0)
        with pytest.raises(SegmentError, match="not a segment"):
            Segment.attach(fd, 7)
        os.close(fd)


@linux_only
def test_attach_refuses_another_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"short")
    with open(path, "r+b") as file, pytest.raises(SegmentError, match="5 bytes"):
        Segment.attach(file.fileno(), 7)


@linux_only
def test_no_memory_remains_after_a_killed_creator():
    """Nothing has a name: with the last process the memory is gone."""
    before = set(os.listdir("/dev/shm"))
    code = (
        "import os, signal; from fdql.shm.segment import Segment;"
        "s = Segment.create([(1, 0, 1 << 20)], 7); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert set(os.listdir("/dev/shm")) == before


@linux_only
def test_no_descriptors():
    """RLIMIT_NOFILE: the message names the memory that was asked for, and nothing leaks."""
    code = (
        "import resource; from fdql.shm.segment import Segment\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))\n"
        "held = []\n"
        "try:\n"
        "    for _ in range(9): held.append(Segment.create([(1, 0, 8)], 7))\n"
        "except OSError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Too many open files" in out.stdout, out
