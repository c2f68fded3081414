"""The settings of a study's last driver, kept in its directory, so that it goes on without a study file.

Credentials are not kept: what had some is masked, and has to be given again.
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
from spark_hpo.errors import ConfigError, JournalError
from spark_hpo.redact import MASK, hide, redact, redact_all
from spark_hpo.study_dir.storage import Storage

_NAME = "settings.json"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a driver was given. `Definition` is what may never change of it; this is all."""

    config: Mapping[str, Any]  # without credentials
    place: str  # the study file; where there was none, what messages call it
    folder: str  # the driver's working directory: relative paths begin there
    objects: tuple[str, ...] = ()  # "task", "space": what a program gave as objects, in place of the config's
    version: int = _VERSION

    @classmethod
    def of(cls, config: StudyConfig, *, place: str, objects: Sequence[str] = ()) -> Settings:
        """Those of this process."""
        return cls(
            config=redact_all(config.model_dump(mode="json", exclude_unset=True)),
            place=redact(os.path.abspath(place) if Path(place).is_file() else place),
            folder=os.getcwd(),
            objects=tuple(objects),
        )

    def write(self, storage: Storage) -> None:
        storage.write(_NAME, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, storage: Storage) -> Settings | None:
        """Those in a study directory; None: there are none.

        Raises:
            JournalError: they are damaged, or of a newer version.
        """
        data = storage.read(_NAME)
        if data is None:
            return None
        try:
            settings = cls(**json.loads(data))
            if not isinstance(settings.config, dict) or not isinstance(settings.folder, str):
                raise TypeError("config is a mapping, and folder a text")
        except (ValueError, TypeError, RecursionError) as exc:
            raise JournalError(f"{storage.url}/{_NAME} is damaged or of a newer version: {exc}") from exc
        if settings.version != _VERSION:
            raise JournalError(
                f"{storage.url}/{_NAME} was written by a newer spark_hpo (version {settings.version}); "
                "install that one, or go on with the study file"
            )
        return settings

    def config_with(
        self, overrides: Sequence[str], *, study_dir: str, needs_credentials: bool = True
    ) -> StudyConfig:
        """The configuration again.

        Args:
            overrides: `key.key=value`, the masked settings among them.
            study_dir: where the directory is now: it may have been moved.
            needs_credentials: otherwise settings may stay masked.

        Raises:
            ConfigError: a setting that was masked is missing, or one is wrong.
        """
        place = f"{study_dir}/{_NAME}"
        record: dict[str, Any] = {**json.loads(json.dumps(self.config)), "study_dir": study_dir}
        hide(record)
        for text in overrides:
            override(record, text)
        masked = [
            f"{place}: {'.'.join(keys)} is {value!r}: credentials are not kept; give it as "
            + _as_override(keys, value)
            for keys, value in _leaves(record)
            if isinstance(value, str) and MASK in value
        ]
        if masked and needs_credentials:
            raise ConfigError("\n".join([*masked, "or go on with the study file, which has them"]))
        return build_config(record, place=place)


def check_owner(storage: Storage) -> None:
    """Before the code is run that the settings name: on a local file system it can be seen who wrote them.

    Raises:
        ConfigError: somebody else may have.
    """
    if storage.local is None:
        return
    found = os.stat(storage.path(_NAME), follow_symlinks=False)
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"{storage.url}/{_NAME} is another user's, or others may write it, and it names code that would "
            "run: go on with the study file, or make it yours alone"
        )


def _as_override(keys: Sequence[str], value: str) -> str:
    """How a setting is given on a command line. Keys that have dots themselves go into their section."""
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
