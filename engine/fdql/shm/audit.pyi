"""What proves that nothing was lost or changed: checksums, and the totals of a ring at rest."""

from typing import NamedTuple

from typing_extensions import Buffer

HAS_INSTRUCTION: bool
"""The processor computes CRC32C; else tables do."""

class CorruptError(RuntimeError):
    """What was read is not what was handed over, or not what should come next."""

class RingTotals(NamedTuple):
    """What went through a ring."""

    chunks_in: int
    chunks_out: int
    steps_in: int
    steps_out: int
    last_steps: int
    """Steps of the newest chunk."""

def crc32c(data: Buffer, before: int = 0) -> int:
    """CRC32C of bytes; `before` is that of the bytes in front of them."""

def crc32c_portable(data: Buffer, before: int = 0) -> int:
    """The same without the processor's instruction."""

def ring_totals(buf: Buffer) -> RingTotals:
    """What went in and came out so far, from the commit words and the chunks between them alone.

    For a ring at rest: its writer and its reader are gone. CorruptError when a chunk that is still
    inside does not follow the one before it.
    """
