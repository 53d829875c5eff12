"""One block of memory for a whole run: create, populate, hand over by descriptor, attach, view.

    segment = Segment.create([(KIND_CONTROL, 0, CONTROL_BYTES)], layout_hash())
    subprocess.Popen([..., str(segment.fd)], pass_fds=[segment.fd])
    # in the child: Segment.attach(fd, layout_hash())

A shared segment is an anonymous memfd: it has no name and vanishes with the last process that holds
it. All its pages are taken at creation. Private segments (one process) work on every system.
"""

from collections.abc import Sequence
from types import TracebackType

ABI: int
PAGE: int
OFFSETS: dict[str, dict[str, tuple[int, int]]]

def nameless() -> tuple[int, bool]:
    """Descriptor of memory without a name, whether it can be sealed. Raises OSError."""

def build_flags() -> str:
    """The compiler flags that this extension was built with."""

class SegmentError(RuntimeError):
    """The memory is not what this process expects: another version, another layout, cut short."""

class Segment:
    """Made by create or attach. All sections are page-aligned (4,096 bytes) and begin as zeros."""

    @property
    def fd(self) -> int:
        """Descriptor to pass to children; -1 when private or closed. Not inherited by itself."""
    @property
    def nbytes(self) -> int:
        """Size of the whole segment."""
    @staticmethod
    def create(
        sections: Sequence[tuple[int, int, int]], layout_hash: int, *, shared: bool = True
    ) -> Segment:
        """Lay out sections (kind, index, nbytes), each (kind, index) once, nbytes >= 1.

        shared=True takes sealed anonymous shared memory and all its pages now; Linux only.
        Raises OSError (with the computed size) or, for private memory, MemoryError; ValueError.
        """
    @staticmethod
    def attach(fd: int, layout_hash: int) -> Segment:
        """Map the segment behind fd, which then belongs to this object.

        Raises SegmentError saying which of magic, abi, layout hash and size differs.
        """
    def section(self, kind: int, index: int) -> memoryview:
        """Writable bytes (format "B") of one section. KeyError names what there is."""
    def close(self) -> None:
        """Give up descriptor and mapping (which lives until its last view is gone). Idempotent."""
    def __enter__(self) -> Segment: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
