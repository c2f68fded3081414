"""The tables of `study-file.md`: every setting of a study file, from the docstrings of its configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sphinx.pycode import ModuleAnalyzer

from spark_hpo.config import StudyConfig

_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
_TYPES = {"string": "text", "boolean": "true or false", "integer": "integer", "number": "number"}


def tables() -> str:
    """In Markdown: the settings that stand alone, then a table for each section."""
    schema = StudyConfig.model_json_schema()
    meanings = ModuleAnalyzer.for_module("spark_hpo.config").find_attr_docs()
    sections: dict[str, str] = {}  # dotted key -> class
    rows = list(_rows(schema, "StudyConfig", "", meanings, schema["$defs"], sections))
    text = _table(rows)
    while sections:
        key, name = sections.popitem()
        record = schema["$defs"][name]
        rows = list(_rows(record, name, f"{key}.", meanings, schema["$defs"], inner := {}))
        sections |= dict(reversed(inner.items()))
        text += f"\n### `{key}`\n{record['description']}\n\n{_table(rows)}"
    return text


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = ["| setting | value | default | |", "|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _rows(
    record: Mapping[str, Any],
    name: str,
    prefix: str,
    meanings: Mapping[tuple[str, str], list[str]],
    definitions: Mapping[str, Any],
    sections: dict[str, str],
) -> Iterator[tuple[str, ...]]:
    """A row for each setting; what is a section itself goes to `sections`."""
    for field, kind in reversed(record["properties"].items()):
        if (reference := _reference(kind)) is not None:
            sections[prefix + field] = reference
    for field, kind in record["properties"].items():
        if prefix + field in sections:
            continue
        default = "" if field in record.get("required", ()) else f"`{json.dumps(kind.get('default'))}`"
        meaning = " ".join(meanings.get((name, field), ())).strip().replace("|", "\\|")
        yield f"`{prefix}{field}`", _words(kind, definitions), default.replace("`null`", "none"), meaning


def _reference(kind: Mapping[str, Any]) -> str | None:
    for one in (kind, *kind.get("anyOf", ())):
        if "$ref" in one:
            return str(one["$ref"]).rpartition("/")[2]
    return None


def _words(kind: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What a value may be."""
    if "anyOf" in kind:
        return " or ".join(_words(one, definitions) for one in kind["anyOf"] if one.get("type") != "null")
    if "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind["enum"])
    if (reference := _reference(kind)) is not None:
        return "mapping of " + ", ".join(f"`{field}`" for field in definitions[reference]["properties"])
    if kind.get("type") == "array":
        return f"list: {_words(kind['items'], definitions)}"
    if kind.get("type") == "object":
        values = kind.get("additionalProperties")
        return f"mapping: {_words(values, definitions)}" if isinstance(values, Mapping) else "mapping"
    bounds = [f"{words} {kind[key]:g}" for key, words in _BOUNDS.items() if key in kind]
    return ", ".join([_TYPES[kind["type"]], *bounds])
