"""The settings that a study was started with, frozen in its directory."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from spark_hpo.errors import ConfigError, JournalError
from spark_hpo.objective import BestRule, Choice, Mode
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import flatten

_NAME = "study.json"
_VERSION = 1
_CURE = "Restore it, or choose another study_dir (`storage=` in tune)."

_OTHER_RANGES = "To give new trials of this study other ranges: spark-hpo narrow."

# Settings that may change between two drivers of one study, because no decision in the journal depends on
# them. They are not in study.json: some, such as a tracking URI or Spark settings, may contain credentials.
# settings.json has them, redacted.
_FREE = (
    "study_dir",
    "backend",
    "spark",
    "mlflow",
    "notify",
    "budget.resource",
    "budget.seconds",
    "data.cache",
    "data.on_bad_file",
    "data.path",
    "data.prepare",
    "data.reader",
    "data.snapshots",
    "resources.max_concurrent",
    "resources.share",
    "resources.ports",
    "resources.rank_timeout_s",
    "resources.rendezvous",
    "resources.slot_timeout_s",
    "resources.max_infra_retries",
    "resources.grace_s",
    "search.confirm",
    "search.transfer",
    "stopping.max_trial_failures",
    "stopping.max_failed_share",
    "training.checkpoint_every",
    "training.compile",
    "training.metrics",
    "training.micro_batch",
    "training.strategy",
)

_RENAMED = {"search.first": "search.enqueue"}  # since earlier versions

# Studies of versions without this setting choose as they did, whatever the setting is now, because the
# checkpoints of another choice may be gone.
_BEST = "search.best"

# Settings that may change too, but whose first value a replay of the journal or an earlier study needs.
_FIRST_VALUES = ("budget.trials", "budget.finish")


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """The identity of a study and its frozen configuration."""

    study_id: str  # globally unique
    created_at: float  # seconds since 1970
    config: Mapping[str, Any]  # without the settings that may change
    table: str | None = None  # fingerprint of the table; None: there is none, or it is not known yet
    code: str | None = None  # fingerprint of a task that was passed as an object; None: it has a name
    source: Mapping[str, Any] | None = None  # of the table: url, format, version, and rows by split
    version: int = _VERSION
    methods: int = 1  # version of the settings of named methods; earlier versions did not write it

    @classmethod
    def load(cls, storage: Storage) -> Definition | None:
        """Read the definition in a study directory. None: there is no study yet.

        Raises:
            JournalError: it is damaged, or from a newer version.
        """
        data = storage.read(_NAME)
        if data is None:
            return None
        try:
            definition = cls(**json.loads(data))
            versions = definition.version, definition.methods
            if not all(type(one) is int for one in versions) or not isinstance(definition.config, dict):
                raise TypeError("version and methods must be numbers and config a mapping")
        except (ValueError, TypeError, RecursionError) as exc:
            raise JournalError(f"{storage.url}/{_NAME} is damaged or from a newer version: {exc}") from exc
        if definition.version > _VERSION:
            raise JournalError(
                f"{storage.url}/{_NAME} was written by a newer spark_hpo (version {definition.version}). "
                "Install that version to continue this study"
            )
        return definition

    @classmethod
    def require(cls, storage: Storage) -> Definition:
        """Read the definition in a study directory.

        Raises:
            ConfigError: there is no study.
            JournalError: it is damaged, or from a newer version.
        """
        definition = cls.load(storage)
        if definition is None:
            raise ConfigError(
                f"{storage.url}: there is no study here (no {_NAME})", cure="Check the study_dir"
            )
        return definition

    @classmethod
    def create(cls, config: Mapping[str, Any], *, methods: int = 1) -> Definition:
        """Define a new study, with this version of the settings of named methods."""
        return cls(
            study_id=uuid.uuid4().hex,
            created_at=time.time(),
            config=_frozen(config),
            methods=methods,
        )

    @property
    def choice(self) -> Choice:
        """How the best model is chosen. In studies of versions without `search.best` it is any checkpoint.

        Raises:
            LookupError, TypeError, ValueError: the configuration is damaged.
        """
        target = (self.config.get("stopping") or {}).get("target")
        sign = -1 if self.config["objective"]["mode"] == Mode.MAX else 1
        return Choice(
            rule=BestRule(self.config["search"].get("best", BestRule.ANY)),
            target=None if target is None else sign * target,
        )

    def redefined(self, config: Mapping[str, Any]) -> Definition:
        """Return the same study with another configuration, for a study without trials."""
        return replace(self, config=_frozen(config), table=None, source=None)

    def of_table(self, fingerprint: str | None, source: Mapping[str, Any] | None) -> Definition:
        """Return the same study with the fingerprint and the source of its table."""
        return replace(self, table=fingerprint, source=source)

    def of_code(self, fingerprint: str | None) -> Definition:
        """Return the same study with the fingerprint of the code that its trials run from now on."""
        return replace(self, code=fingerprint)

    def write(self, storage: Storage) -> None:
        storage.write(_NAME, json.dumps(asdict(self), indent=1).encode())

    def check(self, config: Mapping[str, Any], *, defaults: Mapping[str, Any] | None = None) -> None:
        """Check that a configuration agrees with the study in the settings that must not change.

        Args:
            config: the configuration, as JSON.
            defaults: of settings, by dotted key, for studies of versions that did not have the setting.

        Raises:
            ConfigError: settings have changed; one error for each.
        """
        before, now = self._both(config, defaults or {})
        changed = [
            ConfigError(f"must stay {before.get(key)!r} in this study", key=key, value=now.get(key))
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if changed:
            of_space = any(error.key.startswith("space") for error in changed)
            raise ConfigError.several(changed, cure=f"{_CURE} {_OTHER_RANGES}" if of_space else _CURE)

    def agrees(self, config: Mapping[str, Any], prefix: str, *, defaults: Mapping[str, Any]) -> bool:
        """Return True if the settings whose dotted key has this prefix are those of the study."""
        before, now = (
            {key: value for key, value in settings.items() if key.startswith(prefix)}
            for settings in self._both(config, defaults)
        )
        return before == now

    def _both(
        self, config: Mapping[str, Any], defaults: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings that must not change, as they were and as they are, by dotted key."""
        before, now = _settings(_frozen(self.config)), _settings(_frozen(config))
        before = {_RENAMED.get(key, key): value for key, value in before.items()}
        if _BEST not in before:
            now.pop(_BEST, None)
        before = {**{key: value for key, value in defaults.items() if key in now}, **before}
        for key in _FIRST_VALUES:
            before.pop(key, None)
            now.pop(key, None)
        return before, now

    def check_table(self, fingerprint: str | None) -> None:
        """Check that the table has not changed.

        Raises:
            ConfigError: it has.
        """
        if self.table != fingerprint:
            raise ConfigError("the files of the table have changed since the study was started", cure=_CURE)


def _frozen(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the settings that may change between two drivers."""
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
