"""The settings of a study's last driver, kept in its directory so that it resumes without a study file.

Credentials are masked; they have to be passed again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spark_hpo.config import StudyConfig, build_config
from spark_hpo.config.study_file import override
from spark_hpo.errors import ConfigError, JournalError, located
from spark_hpo.redact import MASK, hide, redact, redact_all
from spark_hpo.study_dir.storage import Storage

_NAME = "settings.json"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a driver. `Definition` has those of them that must not change."""

    config: Mapping[str, Any]  # without credentials
    place: str  # the study file; where there was none, the name of the call
    folder: str  # the driver's working directory, to which relative paths refer
    objects: tuple[str, ...] = ()  # "task", "space": what a program passed as objects
    version: int = _VERSION

    @classmethod
    def of(cls, config: StudyConfig, *, objects: Sequence[str] = ()) -> Settings:
        """Collect the settings of this process."""
        source = config.source
        return cls(
            config=redact_all(config.model_dump(mode="json", exclude_unset=True)),
            place=redact(os.path.abspath(source) if Path(source).is_file() else source),
            folder=os.getcwd(),
            objects=tuple(objects),
        )

    def write(self, storage: Storage) -> None:
        storage.write(_NAME, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, storage: Storage) -> Settings | None:
        """Read the settings in a study directory. None: there are none.

        Raises:
            JournalError: they are damaged, or from a newer version.
        """
        data = storage.read(_NAME)
        if data is None:
            return None
        try:
            settings = cls(**json.loads(data))
            if not isinstance(settings.config, dict) or not isinstance(settings.folder, str):
                raise TypeError("config must be a mapping and folder a text")
        except (ValueError, TypeError, RecursionError) as exc:
            raise JournalError(f"{storage.url}/{_NAME} is damaged or from a newer version: {exc}") from exc
        if settings.version != _VERSION:
            raise JournalError(
                f"{storage.url}/{_NAME} was written by a newer spark_hpo (version {settings.version}). "
                "Install that version, or resume with the study file"
            )
        return settings

    def config_with(
        self, overrides: Sequence[str], *, study_dir: str, needs_credentials: bool = True
    ) -> StudyConfig:
        """Rebuild the configuration.

        Args:
            overrides: `key.key=value`, the masked settings among them.
            study_dir: the directory, which may have been moved.
            needs_credentials: whether masked settings must be passed again.

        Raises:
            ConfigError: a masked setting is missing, or a setting is wrong.
        """
        record: dict[str, Any] = {**json.loads(json.dumps(self.config)), "study_dir": study_dir}
        hide(record)
        for text in overrides:
            override(record, text)
        masked = [
            ConfigError(
                "contained credentials, which are not kept",
                key=".".join(keys),
                cure=f"Pass it as {_as_override(keys, value)}, or resume with the study file",
            )
            for keys, value in _leaves(record)
            if isinstance(value, str) and MASK in value
        ]
        place = f"{study_dir}/{_NAME}"
        with located(place):
            if masked and needs_credentials:
                raise ConfigError.several(masked)
        return build_config(record, place=place).with_source(self.place)


def check_owner(storage: Storage) -> None:
    """Refuse settings that another user may have written, because they name code that would be run.

    Raises:
        ConfigError: on a local file system, another user owns the file or may write it.
    """
    if storage.local is None:
        return
    found = os.stat(storage.path(_NAME), follow_symlinks=False)
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"{storage.url}/{_NAME} names code that would be run, but it belongs to another user, or other "
            "users may write it",
            cure="Resume with the study file, or make the file yours and writable only by you",
        )


def _as_override(keys: Sequence[str], value: str) -> str:
    """Format a setting for a command line; a key that contains dots is put into its section."""
    text = value.replace(MASK, "...")
    if any("." in key for key in keys):
        return f"'{keys[0]}={{{keys[-1]}: {text}}}'"
    return f"'{'.'.join(keys)}={text}'"


def _leaves(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*keys, str(key)))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, keys)
    else:
        yield keys, value
