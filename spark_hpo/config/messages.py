"""Translates pydantic's validation errors into ConfigErrors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from spark_hpo.errors import ConfigError, suggestion
from spark_hpo.redact import MASK, is_secret, redact_all

_RULES = {
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be above {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "string_type": "must be text",
    "dict_type": "must be a section of keys and values",
    "model_type": "must be a section of keys and values",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "finite_number": "must be a finite number",
    "string_pattern_mismatch": "must be 1 to 100 letters, digits, '_', '.' or '-', "
    "and begin with a letter or digit",
}


def mistake(rule: str, *, key: str = "", cure: str = "", **value: object) -> ValueError:
    """Wrap a ConfigError in the type that validators may raise, so that pydantic collects it.

    Args:
        rule: as for ConfigError.
        key: relative to the section or the field that is validated.
        cure: as for ConfigError.
        value: `value=...`, as for ConfigError.
    """
    return ValueError(ConfigError(rule, key=key, cure=cure, **value))


def as_config_error(
    exc: ValidationError, model: type[BaseModel], names: Mapping[str, str] | None = None
) -> ConfigError:
    """Translate all errors of a validation.

    Args:
        exc: what pydantic raised.
        model: the model that was validated.
        names: how the user calls a setting, by its dotted key, where that is another name.
    """
    errors = [_translated(error, model) for error in exc.errors()]
    for error in errors:
        error.key = (names or {}).get(error.key, error.key)
    return ConfigError.several(errors)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a field that is a section; None for any other field."""
    candidates = (annotation, *get_args(annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _translated(error: Any, model: type[BaseModel]) -> ConfigError:
    keys = [str(key) for key in error["loc"]]
    key = ".".join(part if part.isprintable() else repr(part) for part in keys)
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return ConfigError(
            "is not a setting", key=key, cure=suggestion(keys[-1], sorted(_fields(model, keys[:-1])))
        )
    if kind == "missing":
        return ConfigError("is missing", key=key, cure="Set it; it has no default")
    if kind == "value_error":
        raised = context["error"].args[0] if "error" in context else error["msg"]
        if not isinstance(raised, ConfigError):
            return ConfigError(str(raised), key=key)
        raised.key = ".".join(filter(None, (key, raised.key)))
        return raised
    rule = _RULES[kind].format(**context) if kind in _RULES else error["msg"]
    value = MASK if any(map(is_secret, keys)) else redact_all(error["input"])
    return ConfigError(rule, key=key, value=value)


def _fields(model: type[BaseModel], path: Sequence[str]) -> Sequence[str]:
    """Return the keys of the section at a path."""
    for key in path:
        section = section_of(model.model_fields[key].annotation)
        assert section is not None, "pydantic descends into sections only"
        model = section
    return list(model.model_fields)
