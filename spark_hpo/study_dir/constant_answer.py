"""The constant answer of a study: how good a model is that ignores its input."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from spark_hpo.study_dir.storage import Storage

_NAME = "constant_answer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantAnswer:
    """The best constant answer for a metric on the validation split. A useful model beats it."""

    metric: str
    value: float  # of the metric
    answer: str  # what is always answered, in words

    @classmethod
    def load(cls, storage: Storage) -> ConstantAnswer | None:
        """Return the one in a study directory. None: there is none, or it cannot be read."""
        data = storage.read(_NAME)
        try:
            return None if data is None else cls(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return None

    def write(self, storage: Storage) -> None:
        storage.write(_NAME, json.dumps(asdict(self)).encode())
