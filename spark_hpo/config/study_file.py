"""A study file as a mapping: YAML whose keys stand once, with dotted overrides."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from spark_hpo.errors import ConfigError
from spark_hpo.redact import hide
from spark_hpo.suggest import closest


def read_study_file(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a study file says, unchecked.

    Args:
        overrides: `key.key=value`, the value in YAML: `budget.trials=50`, `space.dropout={type: ...}`.

    Raises:
        ConfigError: it cannot be read, is no mapping, or an override makes no sense.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as exc:
        beside = [str(file) for file in Path(path).parent.glob("*.y*ml")]
        guess = closest(path, beside)
        cure = f"Did you mean {guess}?" if guess else ""
        raise ConfigError(f"{path}: the study file cannot be read: {exc.strerror}", cure=cure) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: the study file is not UTF-8 text: {exc}") from exc
    record = _parse_yaml(text, str(path))
    if not isinstance(record, dict):
        raise ConfigError(f"{path}: a study file is a mapping of keys to values, not {type(record).__name__}")
    hide(record)  # before anything is said about it
    for text in overrides:
        override(record, text)
    return record


_MOST_NODES = 100_000  # a study file has some hundred; aliases of aliases make billions
_LARGEST = 2**63 - 1  # what a study can count; integers of a thousand digits cannot even be shown


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key may stand only once: the second one would win in silence.

    Everything that is wrong with a value is told with its line.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as exc:  # a value that does not fit its tag may raise whatever it likes
            problem = str(exc) if isinstance(exc, ValueError) else "the value does not fit its tag"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
        if isinstance(value, int) and abs(value) > _LARGEST:
            problem = f"an integer is at most {_LARGEST}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable) or key in seen:
            problem = "stands twice" if isinstance(key, Hashable) else "is no plain key"
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} {problem}", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for when every alias is written out."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES + 1  # what contains itself has no end
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]


def _parse_yaml(text: str, place: str) -> Any:
    try:
        loader = _UniqueKeyLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > _MOST_NODES:
            raise ConfigError(f"{place}: its anchors make more than {_MOST_NODES} values: write fewer")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as exc:
        line = f", line {exc.problem_mark.line + 1}" if exc.problem_mark else ""
        # Not `from exc`: that one shows the line, whatever is in it.
        raise ConfigError(f"{place}{line}: this is not valid YAML: {exc.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{place}: this is not valid YAML: {exc}") from exc


def override(record: dict[str, Any], text: str) -> None:
    """Change one setting of a study file's mapping.

    Args:
        text: `key.key=value`, the value in YAML.

    Raises:
        ConfigError: it is not of this form, or the key leads through a value.
    """
    path, separator, value_text = text.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise ConfigError(f"override {text!r} must be key=value or key.key=value, e.g. budget.trials=50")
    value = _parse_yaml(value_text, f"override {text!r}")
    section = record
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override {text!r}: {key} is no section, it has the value {section!r}")
    section[keys[-1]] = value
