"""Which row groups a split has, where a table is split by row groups: a seeded hash decides for each."""

from __future__ import annotations

import hashlib

_BITS = 53  # what a float holds exactly, so that no position rounds up to 1.0


def in_share(path: str, index: int, share: tuple[float, float], seed: int) -> bool:
    """Whether a row group falls into a share. Files that are added or removed move no other row group.

    Args:
        path: of the file, relative to the table's folder.
        index: of the row group within the file.
        share: from (included) and to (not included), within 0..1.
        seed: of the order.
    """
    return share[0] <= _position(path, index, seed) < share[1]


def _position(path: str, index: int, seed: int) -> float:
    """0 <= position < 1, uniform."""
    digest = hashlib.sha256(f"{seed}:{path}#{index}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _BITS)) / float(1 << _BITS)
