"""Removes credentials from texts, including those of foreign exceptions.

A credential is recognised by position (in a URL, after `password=`), by name (settings and environment
variables with secret-sounding names), or because it was passed to `hide`. Errors, failures, log lines,
representations of the configuration and everything sent to MLflow are redacted here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

MASK = "***"

# Texts can be as long as a traceback, so every pattern runs in linear time.
_SECRET_NAME = re.compile(
    # Excludes tokens, tokenizers and similar words that are common in models.
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
# In these schemes, the part before @ is a container, not a user.
_CONTAINER_SCHEMES = ("abfs", "abfss", "wasb", "wasbs")
_MIN_LENGTH = 3  # shorter texts occur in ordinary words
_MIN_NAMED_LENGTH = 6  # for values known only by name, which may be harmless, such as `false`

_hidden: frozenset[str] = frozenset()  # per process


def hide(config: Any) -> None:
    """Register the credentials in a URL or a configuration, so that `redact` removes them."""
    global _hidden
    _hidden |= frozenset(_secrets_of(config))


def redact(text: str) -> str:
    """Return `text` without credentials.

    A trace: hide("http://ann:pw1@host")
        redact("cannot reach http://ann:pw1@host: pw1 refused") -> "cannot reach http://***@host: *** refused"
    """
    # Longest first, so that no part of a secret is left.
    for secret in sorted(_hidden.union(_environment()), key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = _USERINFO.sub(_without_userinfo, text)
    return _ITEM.sub(_without_value, _without_assigned(text))


def one_line(error: object, limit: int = 500) -> str:
    """Return the first line of an error, redacted. Database drivers append whole statements."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return redact(lines[0])[:limit].rstrip(".")


def redact_all(value: Any) -> Any:
    """Redact every string in `value` and mask the values of secret-sounding keys."""
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
    """Return True if a URL contains a password, or a key or signature in its query."""
    return any(":" in match["userinfo"] for match in _USERINFO.finditer(url)) or bool(
        list(_assigned(url.partition("?")[2]))
    )


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Return True if the name of a setting sounds secret."""
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
    """Yield the spans of values in `name=value` whose names sound secret."""
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
    """Yield the credentials of URLs in a text, both percent-encoded and decoded."""
    found: set[str] = set()
    for match in _USERINFO.finditer(text):
        if not _is_container(match):
            userinfo = match["userinfo"]
            password = userinfo.partition(":")[2]
            # Outside a URL, a user name alone is not a secret.
            found |= {userinfo, password} if password else set() if ":" in userinfo else {userinfo}
    found |= {text[start:stop] for start, stop in _assigned(text)}
    for secret in found | {unquote(secret) for secret in found}:
        if len(secret) >= _MIN_LENGTH:
            yield secret


def _environment() -> Iterator[str]:
    """Yield the values of secret-sounding environment variables, which store clients read their keys from."""
    for name, value in os.environ.items():
        # A path of a file or socket is not a secret.
        if len(value) >= _MIN_NAMED_LENGTH and not value.startswith("/") and is_secret(name):
            yield value
