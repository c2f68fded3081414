"""What a study was started with: frozen in its directory, so that a resume is the same study."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from spark_hpo.errors import ConfigError, JournalError
from spark_hpo.storage import Storage

_NAME = "study.json"

# What may change between two drivers of one study: it changes no decision that the journal holds.
_FREE = (
    "study_dir",
    "backend",
    "spark",
    "mlflow",
    "budget.resource",
    "budget.seconds",
    "data.path",
    "data.prepare",
    "data.reader",
    "resources.max_concurrent",
    "resources.rank_timeout_s",
    "resources.max_infra_retries",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """The identity of a study and its frozen configuration."""

    study_id: str  # unique for ever
    created_at: float  # seconds since 1970
    config: Mapping[str, Any]
    table: str | None  # fingerprint of the training and validation rows; None: no table
    version: int = 1

    @classmethod
    def load(cls, storage: Storage) -> Definition | None:
        """The definition in a study directory, or None when there is no study yet."""
        data = storage.read(_NAME)
        if data is None:
            return None
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as exc:
            raise JournalError(f"{storage.url}/{_NAME} is damaged or of a newer version: {exc}") from exc

    @classmethod
    def create(cls, storage: Storage, config: Mapping[str, Any], table: str | None) -> Definition:
        definition = cls(study_id=uuid.uuid4().hex, created_at=time.time(), config=dict(config), table=table)
        storage.write(_NAME, json.dumps(asdict(definition), indent=1).encode())
        return definition

    def check(self, config: Mapping[str, Any], table: str | None, *, place: str) -> None:
        """Make sure that this is the study's configuration still, where it matters.

        Raises:
            ConfigError: one line for each setting that has changed.
        """
        before, now = dict(_leaves(self.config)), dict(_leaves(config))
        changed = [
            f"{place}: {key} is {now.get(key)!r}, but the study was started with {before.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.startswith(_FREE)
        ]
        if self.table != table:
            changed.append(f"{place}: the table's files are not those that the study was started with")
        if changed:
            raise ConfigError("\n".join([*changed, "put it back, or choose another study_dir"]))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
