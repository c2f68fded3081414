"""The buttons of the page: requests to the driver of a study, from the text of a form."""

from __future__ import annotations

import shlex
from typing import Any

from spark_hpo.config.study_file import override
from spark_hpo.errors import ConfigError, within
from spark_hpo.report.steering import ask
from spark_hpo.study_dir.requests import Answer, Reply, Verb
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
    return ask(storage, kind, arguments, timeout_s=TIMEOUT_S)


def status_code(answer: Answer) -> int:
    """Return the HTTP status that goes with an answer."""
    return {Reply.DONE: 200, Reply.QUEUED: 202, Reply.REFUSED: 409}[answer.reply]


def _arguments(verb: Verb, text: str) -> dict[str, Any]:
    if verb is Verb.DROP:
        if not text.strip().isdecimal():
            raise ConfigError("needs the number of a trial", value=text, cure=f"Write {_EXAMPLES[verb]}")
        return {"trial": int(text)}
    if verb not in (Verb.ADD, Verb.EXTEND, Verb.NARROW):
        return {}
    params: dict[str, Any] = {}
    by_key: dict[str, Any] = {}
    for word in _words(verb, text):
        key, _, value = word.partition("=")
        override(params, word)  # optimizer.momentum=0.9 is nested in the parameters of a trial
        found: dict[str, Any] = {}
        override(found, f"value={value}")
        # A limit stays text, because +50 is more than a number.
        by_key[key] = value if verb is Verb.EXTEND else found["value"]
    return {Verb.ADD: {"params": params}, Verb.EXTEND: {"budget": by_key}}.get(verb, {"space": by_key})


def _words(verb: Verb, text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError:  # a quote is not closed
        words = []
    if not words or not all(word.partition("=")[0] and word.partition("=")[2] for word in words):
        raise ConfigError("needs key=value", value=text, cure=f"Write {_EXAMPLES[verb]}")
    return words
