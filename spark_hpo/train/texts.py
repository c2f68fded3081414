"""Texts of a batch."""

from __future__ import annotations

from torch import Tensor

from spark_hpo.data.schema import LENGTH_SUFFIX
from spark_hpo.train.task import Batch


def texts_of(batch: Batch, column: str) -> list[str]:
    """Return the texts of a column, one per row.

    A text that was cut within a character loses that character.
    """
    padded: Tensor = batch[column].cpu()
    lengths = batch[column + LENGTH_SUFFIX].tolist()
    longest, data = padded.shape[1], padded.numpy().tobytes()
    starts = range(0, len(data), longest)
    return [
        data[start : start + length].decode(errors="ignore")
        for start, length in zip(starts, lengths, strict=True)
    ]
