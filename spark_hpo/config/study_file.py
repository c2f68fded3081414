"""Reads a study file: YAML without duplicate keys, with dotted overrides."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from spark_hpo.errors import ConfigError, closest, located
from spark_hpo.redact import hide

_MAX_NODES = 100_000  # a study file has some hundred; aliases of aliases expand to billions
_MAX_INTEGER = 2**63 - 1


def read_study_file(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a study file as a mapping, without checking its settings.

    Args:
        path: of the study file.
        overrides: `key.key=value`, the value in YAML: `budget.trials=50`, `space.dropout={type: ...}`.

    Raises:
        ConfigError: the file cannot be read, is not a mapping, or an override is malformed.
    """
    with located(str(path)):
        record = _parse_yaml(_read(Path(path)))
        if not isinstance(record, dict):
            raise ConfigError(
                f"the study file must be a mapping of keys to values, but it is a {type(record).__name__}"
            )
    hide(record)  # before any message can show its values
    for text in overrides:
        override(record, text)
    return record


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        files = {file.stem: file for file in path.parent.glob("*.y*ml")}
        guess = files.get(closest(path.stem, files) or "")
        raise ConfigError(
            f"the study file cannot be read: {exc.strerror}", cure=f"Did you mean {guess}?" if guess else ""
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the study file is not UTF-8 text: {exc}") from exc


def override(record: dict[str, Any], text: str) -> None:
    """Change one setting in the mapping of a study file.

    Args:
        record: the mapping, changed in place.
        text: `key.key=value`, the value in YAML.

    Raises:
        ConfigError: the text is not of this form, or a key on the way is not a section.
    """
    path, separator, value_text = text.partition("=")
    keys = path.split(".")
    with located(f"override {text!r}"):
        if not separator or not all(keys):
            raise ConfigError("must be key=value or key.key=value, for example budget.trials=50")
        value = _parse_yaml(value_text)
        section = record
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise ConfigError("is not a section", key=key, value=section)
        section[keys[-1]] = value


class _UniqueKeyLoader(yaml.SafeLoader):
    """Loads YAML, refuses duplicate keys, and reports every wrong value with its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as exc:  # constructors of YAML tags raise errors of any type
            problem = str(exc) if isinstance(exc, ValueError) else "the value does not fit its tag"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            problem = f"an integer must be at most {_MAX_INTEGER}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable) or key in seen:
            problem = f"duplicate key {key!r}" if isinstance(key, Hashable) else "a key must be a scalar"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _num_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values of a node with all aliases expanded."""
    if id(node) not in known:
        known[id(node)] = _MAX_NODES + 1  # a node that contains itself is infinite
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_num_nodes(child, known) for child in children)
    return known[id(node)]


def _parse_yaml(text: str) -> Any:
    try:
        loader = _UniqueKeyLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _num_nodes(node, {}) > _MAX_NODES:
            raise ConfigError(
                f"anchors and aliases expand to more than {_MAX_NODES} values", cure="Use fewer"
            )
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as exc:
        line = f"line {exc.problem_mark.line + 1}: " if exc.problem_mark else ""
        # Not chained: the YAML error quotes the line, which may contain credentials.
        raise ConfigError(f"{line}not valid YAML: {exc.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise ConfigError(f"not valid YAML: {exc}") from exc
