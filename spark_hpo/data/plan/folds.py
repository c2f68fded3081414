"""Divides the rows of a table into the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

_PIECES_PER_FOLD = 50  # at least, if there are as many rows: a table in the order of a column is mixed

Range = tuple[int, int]
"""The first row (inclusive) and the last row (exclusive) of a row group's matching rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldRows:
    """One side of a fold: the rows that are held out, or all other rows."""

    number: int  # 1 to count
    count: int  # of folds
    seed: int
    is_held_out: bool

    def ranges(self, rows: Sequence[int]) -> list[list[Range]]:
        """Return the rows of this side, by row group: ascending ranges, of which no two touch.

        Row groups are cut into pieces, which are dealt to the folds: each fold has at least 50 pieces, evenly
        from all over the table. The folds are equal to within one row.

        Args:
            rows: of each row group.
        """
        total = sum(rows)
        size = max(1, -(-total // (self.count * _PIECES_PER_FOLD)))
        pieces = [
            (group, start, min(start + size, count))
            for group, count in enumerate(rows)
            for start in range(0, count, size)
        ]
        # Of each `count` neighbours, every fold gets one, so that each fold is spread evenly over the table.
        blocks = -(-len(pieces) // self.count)
        dealt = np.random.default_rng((self.seed, self.count)).random((blocks, self.count)).argsort(axis=1)
        order = np.argsort(dealt.reshape(-1)[: len(pieces)], kind="stable")
        ends = list(accumulate(pieces[i][2] - pieces[i][1] for i in order))
        first, last = (bound * total // self.count for bound in (self.number - 1, self.number))
        side: list[list[Range]] = [[] for _ in rows]
        for i, end in zip(order, ends, strict=True):
            group, start, stop = pieces[i]
            begin = end - (stop - start)  # the position of the piece's first row in the order
            # The rows of the piece that are before, in and behind the fold.
            cuts = [
                start,
                *(start + min(max(bound - begin, 0), stop - start) for bound in (first, last)),
                stop,
            ]
            before, held_out, behind = pairwise(cuts)
            chosen = (held_out,) if self.is_held_out else (before, behind)
            side[group] += [piece for piece in chosen if piece[0] < piece[1]]
        return [_joined(sorted(ranges)) for ranges in side]


def _joined(ranges: Sequence[Range]) -> list[Range]:
    """Join ranges that touch."""
    joined: list[Range] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return joined
