"""Derives the study file of a narrower search around the best trials of a study."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from spark_hpo.errors import ConfigError, NoTrialSucceeded, count
from spark_hpo.redact import MASK
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.search.space.space_config import NUMBERS, json_constant
from spark_hpo.study_dir.driver_settings import Settings
from spark_hpo.study_dir.storage import Storage

_FEWEST = 5  # trials around which a range is narrowed
_MARGIN = 0.1  # of the old range, on each side of the best trials
_DIGITS = 3  # significant, of a bound


def zoom(storage: Storage, *, share: float) -> str:
    """Return the study file, as YAML.

    Each range becomes that of the best trials, with a margin on both sides; options that none of them has are
    left out. The new study learns from the old one (`search.transfer`) and has a directory of its own.

    Args:
        storage: the directory of the study.
        share: of its trials, the best ones, that the new ranges contain; at least five trials are used.

    Raises:
        ConfigError: there is no study, or a program passed its space as an object.
        NoTrialSucceeded: there is no trial to narrow the ranges around.
    """
    record, settings = StudyRecord.read(storage), Settings.load(storage)
    if settings is None or "space" in settings.objects or not settings.config.get("space"):
        raise ConfigError(
            f"{storage.url}: its space was passed by a program, so there is no study file to narrow",
            cure="Narrow the space in the program, and pass search={'transfer': {'studies': [...]}}",
        )
    ranking = [trial for trial in record.ranking if not trial.violation] or list(record.ranking)
    if not ranking:
        raise NoTrialSucceeded(f"{storage.url}: no trial has succeeded yet")
    best = ranking[: max(_FEWEST, math.ceil(share * len(ranking)))]
    config: dict[str, Any] = json.loads(json.dumps(settings.config))
    where = storage.url if storage.local is None else os.path.abspath(storage.url)
    search = {key: value for key, value in config["search"].items() if key not in ("enqueue", "first")}
    config |= {
        "name": f"{config['name']}-zoom",
        "study_dir": f"{where.rstrip('/')}-zoom",
        "space": narrowed(config["space"], [trial.params for trial in best]),
        "search": {**search, "transfer": {**search.get("transfer", {}), "studies": [where]}},
    }
    trials = count(len(record.trials), "trial")
    head = f"# A narrower search around the best {len(best)} of {trials} of {where}.\n"
    if _without_secrets(config):
        head += "# Settings that contained credentials are left out: add them before you run it.\n"
    return head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def narrowed(entry: Any, values: Sequence[Any]) -> Any:
    """Return an entry of a space, as in a study file, for some of its values.

    Args:
        entry: a parameter, a constant, or a mapping of these.
        values: of the entry, in the trials that have it.
    """
    if not isinstance(entry, Mapping) or not values:
        return entry
    if "type" not in entry:
        return {name: narrowed(item, [v[name] for v in values if name in v]) for name, item in entry.items()}
    if entry["type"] == "choice":
        return _choice(entry, values)
    return _range(entry, values) if "low" in entry else dict(entry)


def _choice(entry: Mapping[str, Any], values: Sequence[Any]) -> dict[str, Any]:
    options, weights = [], []
    for number, option in enumerate(entry["options"]):
        if matching := [value for value in values if _is_of(option, value)]:
            options.append(narrowed(option, matching))
            weights.append(entry.get("weights", [])[number : number + 1])
    rest = {key: item for key, item in entry.items() if key not in ("options", "weights", "default")}
    if "weights" in entry:
        rest["weights"] = [weight for each in weights for weight in each]
    return {**rest, "options": options or list(entry["options"])}


def _is_of(option: Any, value: Any) -> bool:
    """Return whether a value may come from an option."""
    if not isinstance(option, Mapping):
        return bool(json_constant(option) == value)
    if "type" in option:
        return not isinstance(value, Mapping)
    if not isinstance(value, Mapping) or option.keys() != value.keys():
        return False
    return all(_is_of(item, value[name]) or _is_parameter(item) for name, item in option.items())


def _is_parameter(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "type" in entry


def _range(entry: Mapping[str, Any], values: Sequence[Any]) -> dict[str, Any]:
    old_low, old_high = float(entry["low"]), float(entry["high"])
    is_log = bool(NUMBERS[entry["type"]].flags.get("log"))
    to, back = (math.log, math.exp) if is_log else (float, float)
    margin = _MARGIN * (to(old_high) - to(old_low))
    low, high = back(to(min(values)) - margin), back(to(max(values)) + margin)
    q = 1.0 if entry["type"] in ("int", "logint") else entry.get("q")
    if q is None:
        low, high = (float(f"{bound:.{_DIGITS}g}") for bound in (low, high))
    else:
        low, high = math.floor(low / q) * q, math.ceil(high / q) * q
    low, high = max(low, old_low), min(high, old_high)
    whole = q is not None and float(q).is_integer() and low.is_integer() and high.is_integer()
    found = {**entry, "low": int(low) if whole else low, "high": int(high) if whole else high}
    if "default" in found and not low <= float(found["default"]) <= high:
        del found["default"]
    return found


def _without_secrets(section: dict[str, Any]) -> bool:
    """Remove settings whose credentials were not stored. Returns whether there were any."""
    found = False
    for key, value in list(section.items()):
        if isinstance(value, str) and MASK in value:
            del section[key]
            found = True
        elif isinstance(value, dict):
            found |= _without_secrets(value)
    return found
