"""The buttons of the page: requests to the driver of a study, from the text of a form."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from spark_hpo.errors import ConfigError, within
from spark_hpo.study_dir.requests import Answer, Reply, Verb, request
from spark_hpo.study_dir.storage import Storage

TIMEOUT_S = 20.0  # proxies end a request that takes much longer

_EXAMPLES = {
    Verb.ADD: "learning_rate=0.01 width=64",
    Verb.DROP: "17",
    Verb.EXTEND: "trials=+50",
    Verb.NARROW: "learning_rate=[1e-4,1e-2]",
}


def steer(storage: Storage, verb: str, text: str) -> Answer:
    """Ask the driver of a study to do something, and wait for its answer.

    Args:
        verb: as of `spark_hpo.study_dir.requests`; `stop now` also stops the running assignments.
        text: what the user has written: `key=value ...`, or the number of a trial.

    Raises:
        ConfigError: the request makes no sense.
        StorageError: the directory cannot be written.
    """
    name, _, now = verb.partition(" ")
    try:
        kind = Verb(name)
    except ValueError:
        raise ConfigError("is not a valid verb", value=verb) from None
    with within(name):
        arguments = _arguments(kind, text)
    if kind is Verb.STOP:
        arguments = {"now": now == "now"}
    return request(storage, kind, arguments, timeout_s=TIMEOUT_S)


def status_code(answer: Answer) -> int:
    """Return the HTTP status that goes with an answer."""
    return {Reply.DONE: 200, Reply.QUEUED: 202, Reply.REFUSED: 409}[answer.reply]


def _arguments(verb: Verb, text: str) -> dict[str, Any]:
    match verb:
        case Verb.ADD:
            return {"params": _pairs(verb, text)}
        case Verb.DROP:
            if not text.strip().isdecimal():
                raise ConfigError("needs the number of a trial", value=text, cure=f"Write {_EXAMPLES[verb]}")
            return {"trial": int(text)}
        case Verb.EXTEND:
            # The value stays text: +50 is more than a number.
            return {"budget": _pairs(verb, text, parsed=False)}
        case Verb.NARROW:
            return {"space": _pairs(verb, text)}
        case _:
            return {}


def _pairs(verb: Verb, text: str, *, parsed: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        for word in shlex.split(text):
            key, equals, value = word.partition("=")
            if not (key and equals):
                raise ValueError(word)
            found[key] = yaml.safe_load(value) if parsed else value
    except (ValueError, yaml.YAMLError):
        raise ConfigError("needs key=value", value=text, cure=f"Write {_EXAMPLES[verb]}") from None
    return found
