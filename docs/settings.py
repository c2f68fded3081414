"""The tables of `study-file.md`: every setting of a study file, from the docstrings of its configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sphinx.pycode import ModuleAnalyzer

from spark_hpo.config import StudyConfig

_MODULES = (
    "model",
    "objective",
    "search",
    "learn",
    "limits",
    "resources",
    "training",
    "data",
    "prepare",
    "split",
    "windows",
    "notify",
)
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
_TYPES = {"string": "text", "boolean": "true or false", "integer": "integer", "number": "number"}
_Meanings = Mapping[tuple[str, str], list[str]]


def tables() -> str:
    """In Markdown: the settings that stand alone, then a table for each section."""
    schema = StudyConfig.model_json_schema()
    schema["$defs"]["StudyConfig"] = schema
    meanings = {
        key: lines
        for module in _MODULES
        for key, lines in ModuleAnalyzer.for_module(f"spark_hpo.config.{module}").find_attr_docs().items()
    }
    return "\n".join(_section("StudyConfig", "", schema["$defs"], meanings))


def _section(name: str, key: str, definitions: Mapping[str, Any], meanings: _Meanings) -> Iterator[str]:
    """The lines of a section and of those within it."""
    record = definitions[name]
    if key:
        yield from ("", f"### `{key}`", record["description"], "")
    yield from ("| setting | value | default | |", "|---|---|---|---|")
    inner = []
    for field, kind in record["properties"].items():
        dotted = f"{key}.{field}" if key else field
        if (reference := _reference(kind)) is not None:
            inner.append((reference, dotted))
            continue
        is_required = field in record.get("required", ())
        default = "" if is_required else f"`{json.dumps(kind.get('default'))}`".replace("`null`", "none")
        meaning = " ".join(meanings.get((name, field), ())).strip().replace("|", "\\|")
        yield f"| `{dotted}` | {_words(kind, definitions)} | {default} | {meaning} |"
    for reference, dotted in inner:
        yield from _section(reference, dotted, definitions, meanings)


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
