"""A study file made of another tool's file, and what of that file has no counterpart."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spark_hpo.config import build_config
from spark_hpo.errors import ConfigError, located
from spark_hpo.search.space import Space

_MAX_NAME = 100
EPOCHS = re.compile(r"^(num_|n_|max_)?epochs?$")
"""Names of parameters that say how long to train."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the study file does differently from the imported file."""

    key: str  # of the imported file, dotted
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The result of an import."""

    study: Mapping[str, Any]  # the sections of a study file
    notes: tuple[Note, ...]
    source: str  # "sweep of W&B"

    def to_yaml(self, file: str) -> str:
        """Return the study file, which begins with the notes.

        Args:
            file: name of the imported file.
        """
        head = [f"# Imported from {file} ({self.source}) by `spark-hpo import`."]
        if self.notes:
            head += ["# What differs, by the key of that file:", *(f"# - {note}" for note in self.notes)]
        body = yaml.safe_dump(dict(self.study), sort_keys=False, default_flow_style=None, width=110)
        return "\n".join([*head, "", body])


class Source:
    """A mapping of which each key is read once; what is left has no counterpart.

    Args:
        record: the imported file, or a section of it.
        notes: gets what has no counterpart.
        section: the key of the section, dotted; "": the whole file.
    """

    def __init__(self, record: Mapping[str, Any], notes: list[Note], section: str = "") -> None:
        self._record, self._notes = dict(record), notes
        self._prefix = f"{section}." if section else ""

    def take(self, key: str, default: Any = None) -> Any:
        return self._record.pop(key, default)

    def section(self, key: str) -> Source:
        """Return a section, which may be missing.

        Raises:
            ConfigError: it is not a mapping.
        """
        record = self.take(key) or {}
        if not isinstance(record, Mapping):
            raise ConfigError("must be a mapping", key=f"{self._prefix}{key}", value=record)
        return Source(record, self._notes, f"{self._prefix}{key}")

    def nested(self, name: str, record: Mapping[str, Any]) -> Source:
        """Return the mapping of an entry that `items` has given."""
        return Source(record, self._notes, f"{self._prefix}{name}")

    def note(self, key: str, text: str) -> None:
        self._notes.append(Note(f"{self._prefix}{key}", text))

    def note_rest(self, reasons: Mapping[str, str]) -> None:
        """Note every key that was not read.

        Args:
            reasons: what to do instead, by key.
        """
        for key in self._record:
            self.note(key, reasons.get(key, "has no counterpart"))

    def __contains__(self, key: str) -> bool:
        return key in self._record

    def items(self) -> Iterator[tuple[str, Any]]:
        """Take all keys."""
        record, self._record = self._record, {}
        yield from record.items()


def read_mapping(file: Path) -> Mapping[str, Any]:
    """Read a YAML or JSON file.

    Raises:
        ConfigError: it cannot be read, or is not a mapping.
    """
    try:
        record = yaml.safe_load(file.read_text())
    except OSError as exc:
        raise ConfigError(f"{file} cannot be read: {exc.strerror}") from exc
    except (UnicodeDecodeError, yaml.YAMLError) as exc:
        raise ConfigError(f"{file} is not valid YAML: {str(exc).partition(chr(10))[0]}") from exc
    if not isinstance(record, Mapping):
        raise ConfigError(f"{file} must be a mapping")
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """The file format of another tool."""

    source: str  # "sweep of W&B"
    keys: tuple[str, ...]  # that such a file has
    read: Callable[[Source], Mapping[str, Any]]
    """Takes the keys of a file, and returns the sections of the study without `study_dir`."""
    reasons: Mapping[str, str]  # what to do instead, by key that has no counterpart

    def fits(self, record: Mapping[str, Any]) -> bool:
        return all(key in record for key in self.keys)

    def study(self, record: Mapping[str, Any], file: Path) -> Imported:
        """Convert a file, and check the study as if it was run.

        Args:
            record: the content of the file.
            file: where it was read, for names and messages.

        Raises:
            ConfigError: the file is not valid, or has something that no study can have, such as an empty
                space.
        """
        notes: list[Note] = []
        source = Source(record, notes)
        sections = dict(self.read(source))
        source.note_rest(self.reasons)
        name = study_name(sections.pop("name"), file)
        study = {"name": name, "study_dir": f"studies/{name}", **sections}
        with located(str(file)):
            Space.from_config(build_config(study, place=str(file)).space)
        return Imported(study=study, notes=tuple(notes), source=self.source)


def study_name(name: Any, file: Path) -> str:
    """Return a valid name for a study."""
    text = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(name or file.stem)).strip("-._")
    return text[:_MAX_NAME] or "imported"


def number(kind: str, low: Any, high: Any, **more: Any) -> Any:
    """Return a parameter between two bounds; the bound itself where they are equal."""
    return low if low == high else {"type": kind, "low": low, "high": high, **more}


def whole(*values: Any) -> bool:
    """Return whether all values are whole numbers."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) and v == int(v) for v in values)


def rounded(value: float) -> float:
    """Return a number with twelve digits: 0.001, not 0.0010000000000000002."""
    return float(f"{value:.12g}") if math.isfinite(value) else value


def space_of(source: Source, parameter: Callable[[str, Mapping[str, Any], Source], Any]) -> dict[str, Any]:
    """Return the space of a section of parameters.

    Args:
        parameter: converts an entry that is a mapping.
    """
    return {
        name: parameter(name, entry, source) if isinstance(entry, Mapping) else entry
        for name, entry in source.items()
    }
