"""What a study was started with: frozen in its directory, so that a resume is the same study."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from spark_hpo.dotted import flatten
from spark_hpo.errors import ConfigError, JournalError
from spark_hpo.study_dir.storage import Storage

_NAME = "study.json"
_VERSION = 1

# What may change between two drivers of one study: it changes no decision that the journal holds. It is
# not in study.json either, because a tracking URI or a Spark setting may carry credentials: settings.json has
# it, without them.
_FREE = (
    "study_dir",
    "backend",
    "spark",
    "mlflow",
    "budget.resource",
    "budget.seconds",
    "data.cache",
    "data.on_bad_file",
    "data.path",
    "data.prepare",
    "data.reader",
    "resources.max_concurrent",
    "resources.rank_timeout_s",
    "resources.rendezvous",
    "resources.slot_timeout_s",
    "resources.max_infra_retries",
    "resources.grace_s",
    "stopping.max_trial_failures",
    "stopping.max_failed_share",
    "training.checkpoint_every",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """The identity of a study and its frozen configuration."""

    study_id: str  # unique for ever
    created_at: float  # seconds since 1970
    config: Mapping[str, Any]  # without what may change: credentials could be in it
    table: str | None = None  # fingerprint of schema and rows; None: no table, or not known yet
    code: str | None = None  # fingerprint of a task that was given as an object; None: it has a name
    version: int = _VERSION

    @classmethod
    def load(cls, storage: Storage) -> Definition | None:
        """The definition in a study directory, or None when there is no study yet."""
        data = storage.read(_NAME)
        if data is None:
            return None
        try:
            definition = cls(**json.loads(data))
            if type(definition.version) is not int or not isinstance(definition.config, dict):
                raise TypeError("version is a number, and config a mapping")
        except (ValueError, TypeError, RecursionError) as exc:
            raise JournalError(f"{storage.url}/{_NAME} is damaged or of a newer version: {exc}") from exc
        if definition.version > _VERSION:
            raise JournalError(
                f"{storage.url}/{_NAME} was written by a newer spark_hpo (version {definition.version}); "
                "install that one to go on with this study"
            )
        return definition

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Definition:
        """A new study."""
        return cls(study_id=uuid.uuid4().hex, created_at=time.time(), config=_frozen(config))

    def redefined(self, config: Mapping[str, Any]) -> Definition:
        """The same study with another configuration, as long as nothing has been decided in it."""
        return replace(self, config=_frozen(config), table=None)

    def of_table(self, fingerprint: str | None) -> Definition:
        """The same study, its table known."""
        return replace(self, table=fingerprint)

    def of_code(self, fingerprint: str | None) -> Definition:
        """The same study, and what its trials run from now on."""
        return replace(self, code=fingerprint)

    def write(self, storage: Storage) -> None:
        storage.write(_NAME, json.dumps(asdict(self), indent=1).encode())

    def check(
        self, config: Mapping[str, Any], *, place: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Make sure that this is the study's configuration still, where it matters.

        Args:
            defaults: of settings, by dotted key: what a version that did not know a setting did.

        Raises:
            ConfigError: one line for each setting that has changed.
        """
        before, now = _settings(self.config), _settings(_frozen(config))
        before = {**{key: value for key, value in (defaults or {}).items() if key in now}, **before}
        changed = [
            f"{place}: {key} is {now.get(key)!r}, but the study was started with {before.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise ConfigError(
                "\n".join([*changed, "put it back, or choose another study_dir (storage of tune)"])
            )

    def check_table(self, fingerprint: str | None, *, place: str) -> None:
        """Make sure that the table holds what it held.

        Raises:
            ConfigError: it does not.
        """
        if self.table != fingerprint:
            raise ConfigError(
                f"{place}: the table's files are not those that the study was started with; "
                "put them back, or choose another study_dir (storage of tune)"
            )


def _frozen(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what may change between two drivers of one study."""
    return {
        section: {key: item for key, item in value.items() if f"{section}.{key}" not in _FREE}
        if isinstance(value, Mapping)
        else value
        for section, value in config.items()
        if section not in _FREE
    }


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by dotted key. An empty section has none."""
    return {key: value for key, value in flatten(config) if value != {}}
