"""Keeps a few samples of a time of any length."""

from __future__ import annotations

from spark_hpo.trial import UseSample

MOST = 16  # samples that are kept, besides the one that is being collected


class Series:
    """Keeps at most `MOST` samples: when there are more, each two neighbours become one, their mean.

    A trace, MOST 2: add(1 s), add(2 s), add(3 s) -> samples() at 2, 3 s; add(4 s), add(5 s) -> at 2, 4, 5 s
    """

    def __init__(self) -> None:
        self._kept: list[UseSample] = []
        self._collected: list[UseSample] = []
        self._stride = 1  # samples that become one

    def add(self, sample: UseSample) -> None:
        self._collected.append(sample)
        if len(self._collected) < self._stride:
            return
        self._kept.append(_mean(self._collected))
        self._collected = []
        if len(self._kept) > MOST:
            *pairs, last = self._kept
            self._kept = [_mean(pairs[i : i + 2]) for i in range(0, MOST, 2)]
            self._stride *= 2
            self._collected = [last]

    def samples(self) -> tuple[UseSample, ...]:
        """Return the samples so far, in their order, rounded for the journal."""
        rest = [_mean(self._collected)] if self._collected else []
        return tuple(
            UseSample(
                round(at_s, 1),
                *(None if value is None else round(value, 3) for value in values),
            )
            for at_s, *values in (*self._kept, *rest)
        )


def _mean(samples: list[UseSample]) -> UseSample:
    columns = list(zip(*(sample[1:] for sample in samples), strict=True))
    known = [[value for value in column if value is not None] for column in columns]
    return UseSample(samples[-1].at_s, *(sum(column) / len(column) if column else None for column in known))
