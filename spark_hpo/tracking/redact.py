"""Credentials out of texts: of our own, and of those that come back inside foreign exceptions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

MASK = "***"

_USERINFO = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#'\"<>]+@")
_SECRET_KEY = (
    r"[\w.-]*(?:password|passwd|pwd|token|secret|signature|sig|(?:account|access|api)[-_.]?key)[\w.-]*"
)
_QUERY = re.compile(rf"(?P<key>[?&;]{_SECRET_KEY}=)[^&;\s'\"<>)]+", re.IGNORECASE)
_NAME = re.compile(rf"^{_SECRET_KEY}$", re.IGNORECASE)


def redact(text: str, uri: str = "") -> str:
    """`text` without credentials: those of any URL in it, and those of `uri` wherever they stand.

    `redact("cannot reach http://ann:pw@host: pw refused", "http://ann:pw@host")
    -> "cannot reach http://***@host: *** refused"`. The user's name alone is no secret outside a URL.
    """
    for secret in _secrets(uri):
        text = text.replace(secret, MASK)
    text = _USERINFO.sub(rf"\g<scheme>{MASK}@", text)
    return _QUERY.sub(rf"\g<key>{MASK}", text)


def one_line(error: object, uri: str = "", limit: int = 500) -> str:
    """The first line of an error's text, redacted: database drivers add whole statements below it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return redact(lines[0], uri)[:limit].rstrip(".")


def redact_all(value: Any, uri: str = "") -> Any:
    """`value` with every string in it redacted, and with what a secret-sounding key holds masked."""
    match value:
        case str():
            return redact(value, uri)
        case Mapping():
            return {
                str(key): MASK if isinstance(item, str) and _NAME.match(str(key)) else redact_all(item, uri)
                for key, item in value.items()
            }
        case list() | tuple():
            return [redact_all(item, uri) for item in value]
        case _:
            return value


def _secrets(uri: str) -> list[str]:
    """What must not be seen of `uri`, longest first, so that none is left in part."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # not a URL, e.g. a bracket that is never closed
        return []
    userinfo, at, _ = parts.netloc.rpartition("@")
    if not at:
        return []
    _, _, password = userinfo.partition(":")
    found = {userinfo, unquote(userinfo), password, unquote(password)}
    # One or two letters occur in every word: the patterns above still take them out of URLs.
    return sorted((secret for secret in found if len(secret) > 2), key=len, reverse=True)
