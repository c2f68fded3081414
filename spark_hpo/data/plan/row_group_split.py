"""Splits a table by row groups: a seeded hash assigns each row group to a split."""

from __future__ import annotations

import hashlib

_BITS = 53  # exact in a float, so that no position rounds up to 1.0


def in_share(path: str, index: int, share: tuple[float, float], seed: int) -> bool:
    """Return True if a row group belongs to a share. Adding or removing files moves no other row group.

    Args:
        path: the file, relative to the folder of the table.
        index: the row group within the file.
        share: half-open interval within [0, 1].
        seed: the seed of the hash.
    """
    return share[0] <= _position(path, index, seed) < share[1]


def _position(path: str, index: int, seed: int) -> float:
    """Return a uniform position in [0, 1)."""
    digest = hashlib.sha256(f"{seed}:{path}#{index}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _BITS)) / float(1 << _BITS)
