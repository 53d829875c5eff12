"""Stage 6 of 8, `publish`: weight snapshots from the trainer to inference and evaluator.

    trainer: writer.publish(flat, version)
    reader:  version, data = reader.acquire(); use data in place; reader.release()

readers + 2 buffers and one pin per reader: the writer never waits, and no
snapshot changes while it is read.
"""

from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

MAX_READERS: int
OFFSETS: dict[str, dict[str, tuple[int, int]]]

class WeightsError(RuntimeError):
    """Bytes that are no weights, or a version that does not grow."""

def weights_bytes(readers: int, nbytes: int, checked: bool = False) -> int:
    """Bytes for readers + 2 buffers of nbytes each."""

def init_weights(buf: Buffer, readers: int, nbytes: int, checked: bool = False) -> None:
    """Lay out the snapshots in zeroed, 128-aligned bytes. Once, by the creator.

    checked: every snapshot carries a checksum, which readers verify.
    """

class WeightsWriter:
    """The one writer. A successor of a dead writer goes on from the latest version."""

    def __init__(self, buf: Buffer) -> None: ...
    @property
    def nbytes(self) -> int:
        """Bytes of a snapshot."""
    @property
    def version(self) -> int:
        """Latest version published; 0 before the first."""
    def publish(self, data: Buffer | NDArray[Any], version: int) -> None:
        """Copy a contiguous buffer of nbytes bytes and make it the latest.

        Raises WeightsError unless version grows and is below 2**56, ValueError for another size.
        """

class WeightsReader:
    """Reader number `reader`; at most one process uses a number at a time."""

    def __init__(self, buf: Buffer, reader: int) -> None: ...
    @property
    def reader(self) -> int:
        """Its number."""
    @property
    def nbytes(self) -> int:
        """Bytes of a snapshot."""
    @property
    def latest(self) -> int:
        """Latest version published, without pinning it; 0 before the first."""
    def acquire(self) -> tuple[int, memoryview]:
        """(version, read-only bytes) of the latest snapshot; unchanged until the next call here.

        Version 0 and zero bytes before the first publication. 64-aligned. CorruptError when weights
        are checked and the snapshot is not the one that was published.
        """
    def release(self) -> None:
        """Let go of the snapshot. Its bytes may change from now on."""

def clear_pin(buf: Buffer, reader: int) -> None:
    """Free the pin of a dead reader. The supervisor's, after reaping it."""
