"""Credentials out of texts: out of our own, and of those that come back inside foreign exceptions.

A credential is known by its place (in a URL, after `password=`), by its name (settings and environment
variables that sound secret), or because it was hidden. Errors, failures, log lines, representations of the
configuration and all that MLflow gets pass through here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

MASK = "***"

# Texts are as long as a traceback may be: nothing here looks at a character more than a few times.
_SECRET_NAME = re.compile(
    # Not of tokens, tokenizers and the like, which are everyday words of models.
    r"password|passwd|pwd|token(?!s|i[sz])|secret|signature|sig(?![a-z])|credentials?"
    r"|(?:account|access|api)[-_.]?key",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(?P<scheme>[a-zA-Z0-9+.-]{1,30})://(?P<userinfo>[^\s/?#'\"<>]+)@")
_NAME_OF_VALUE = re.compile(r"(?<![\w.-])(?P<name>[\w.-]++)=")
_VALUE = re.compile(r"[^&;\s'\"<>)]+")
_ITEM = re.compile(
    r"(?P<name>(?P<quote>['\"])[\w.-]{1,200}+(?P=quote)\s*:\s*)(?P<q>['\"])(?P<value>[^'\"]*)(?P=q)"
)
# There the name of the container stands where others have the user.
_CONTAINER_SCHEMES = ("abfs", "abfss", "wasb", "wasbs")
_MIN_LENGTH = 3  # One or two letters occur in every word.
_MIN_NAMED_LENGTH = 6  # of what only its name says of it: it may be as harmless as `false`

_hidden: frozenset[str] = frozenset()  # of the process: a text may come out of it anywhere


def hide(config: Any) -> None:
    """Have `redact` know the credentials in a URL, or in a configuration with whatever is in it."""
    global _hidden
    _hidden |= frozenset(_secrets_of(config))


def redact(text: str) -> str:
    """`text` without credentials.

    A trace: hide("http://ann:pw1@host")
        redact("cannot reach http://ann:pw1@host: pw1 refused") -> "cannot reach http://***@host: *** refused"
    """
    # The longest first, so that none is left in part.
    for secret in sorted(_hidden.union(_environment()), key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = _USERINFO.sub(_without_userinfo, text)
    return _ITEM.sub(_without_value, _without_assigned(text))


def one_line(error: object, limit: int = 500) -> str:
    """The first line of an error's text, redacted: database drivers add whole statements below it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return redact(lines[0])[:limit].rstrip(".")


def redact_all(value: Any) -> Any:
    """`value` with every string in it redacted, and with what a secret-sounding key holds masked."""
    match value:
        case str():
            return redact(value)
        case Mapping():
            items = [(str(key), item) for key, item in value.items()]
            return {
                key: MASK if is_secret(key) and isinstance(item, str | float | int) else redact_all(item)
                for key, item in items
            }
        case list() | tuple():
            return [redact_all(item) for item in value]
        case _:
            return value


def has_credentials(url: str) -> bool:
    """Whether a URL has a password, or a query with a key or signature in it."""
    return any(":" in match["userinfo"] for match in _USERINFO.finditer(url)) or bool(
        list(_assigned(url.partition("?")[2]))
    )


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether a setting of this name sounds secret."""
    return _SECRET_NAME.search(name) is not None


def _without_userinfo(match: re.Match[str]) -> str:
    return match[0] if _is_container(match) else f"{match['scheme']}://{MASK}@"


def _without_value(match: re.Match[str]) -> str:
    return f"{match['name']}{match['q']}{MASK}{match['q']}" if is_secret(match["name"]) else match[0]


def _without_assigned(text: str) -> str:
    parts, end = [], 0
    for start, stop in _assigned(text):
        parts += [text[end:start], MASK]
        end = stop
    return "".join([*parts, text[end:]])


def _assigned(text: str) -> Iterator[tuple[int, int]]:
    """Where in a text the values of `name=value` stand whose names sound secret."""
    end = 0
    for match in _NAME_OF_VALUE.finditer(text):
        if match.start() >= end and is_secret(match["name"]):
            value = _VALUE.match(text, match.end())
            if value is not None:
                end = value.end()
                yield value.span()


def _is_container(match: re.Match[str]) -> bool:
    return match["scheme"].lower() in _CONTAINER_SCHEMES and ":" not in match["userinfo"]


def _secrets_of(value: Any, name: str = "") -> Iterator[str]:
    match value:
        case str():
            yield from _secrets_in(value)
            if is_secret(name) and len(value) >= _MIN_NAMED_LENGTH:
                yield value
        case Mapping():
            for key, item in value.items():
                yield from _secrets_of(item, str(key))
        case list() | tuple():
            for item in value:
                yield from _secrets_of(item)


def _secrets_in(text: str) -> Iterator[str]:
    """The credentials of the URLs in a text, as they stand there and as programs pass them on."""
    found: set[str] = set()
    for match in _USERINFO.finditer(text):
        if not _is_container(match):
            userinfo = match["userinfo"]
            password = userinfo.partition(":")[2]
            # The user's name alone is no secret outside of a URL.
            found |= {userinfo, password} if password else set() if ":" in userinfo else {userinfo}
    found |= {text[start:stop] for start, stop in _assigned(text)}
    for secret in found | {unquote(secret) for secret in found}:
        if len(secret) >= _MIN_LENGTH:
            yield secret


def _environment() -> Iterator[str]:
    """What secret-sounding variables hold: clients of stores and servers take their keys from there."""
    for name, value in os.environ.items():
        # Not where they name a file or a socket: the path is none.
        if len(value) >= _MIN_NAMED_LENGTH and not value.startswith("/") and is_secret(name):
            yield value
