"""Who may use the page: a token, the names of this machine, and the headers that every answer has."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = "token"
"""The parameter of an address that contains the token. The page leaves it out of every other address."""
CSRF_HEADER = "x-spark-hpo"

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")
_HEADERS = {
    # Scripts come from files of the package only, whatever a study contains.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(eq=False)
class Access:
    """The secrets of one server."""

    token: str | None  # None: anyone who can connect may look
    port: int
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)  # of a browser
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def cookie(self) -> str:
        """The name of the cookie. Browsers send cookies to all ports of a host."""
        return f"spark_hpo_{self.port}"

    def is_token(self, given: str | None) -> bool:
        return self.token is not None and given is not None and _equal(given, self.token)

    def is_session(self, header: str) -> bool:
        """Return whether a header Cookie has the session."""
        try:
            morsel = SimpleCookie(header).get(self.cookie)
        except CookieError:
            return False
        return morsel is not None and _equal(morsel.value, self.session)

    def is_csrf(self, given: str | None) -> bool:
        return given is not None and _equal(given, self.csrf)


class Guard:
    """ASGI middleware that refuses requests without the token, and changes that another site asks for."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] += [pair for pair in more if pair[0] not in known]
                if b"cache-control" not in known:
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        answer = self._answer(scope)
        await (answer or self._app)(scope, receive, send_with_headers)

    def _answer(self, scope: Scope) -> Response | None:
        """Return a refusal, or the redirection of a browser that has brought the token; None: go on."""
        headers, access = Headers(scope=scope), self._access
        if access.token is None:
            # A page of another site may use a name of its own for this machine (DNS rebinding).
            name = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
            if name not in _LOCAL_NAMES:
                return PlainTextResponse("this page is for this machine only\n", 403)
        elif not self._is_known(headers):
            query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            if scope["method"] != "GET" or not access.is_token(dict(query).get(TOKEN)):
                return PlainTextResponse("open the address with its token, as the server printed it\n", 401)
            return self._welcome(scope, [(name, value) for name, value in query if name != TOKEN])
        if scope["method"] not in ("GET", "HEAD") and not self._is_own(headers):
            return PlainTextResponse("reload the page and try again\n", 403)
        return None

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._access.is_token(given.strip()):
            return True
        return self._access.is_session(headers.get("cookie", ""))

    def _is_own(self, headers: Headers) -> bool:
        """Return whether a page of this server has sent a change."""
        site = headers.get("sec-fetch-site", "same-origin")
        return site == "same-origin" and self._access.is_csrf(headers.get(CSRF_HEADER))

    def _welcome(self, scope: Scope, query: list[tuple[str, str]]) -> Response:
        """Give the browser a session, and an address without the token."""
        # Relative, because a proxy may add a prefix to the path.
        place = f"./{scope['path'].rsplit('/', 1)[-1]}" + (f"?{urlencode(query)}" if query else "")
        answer = RedirectResponse(place, 303)
        options: dict[str, Any] = {"httponly": True, "samesite": "strict", "path": None}
        answer.set_cookie(self._access.cookie, self._access.session, **options)
        return answer


def _equal(given: str, right: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(), right.encode())
