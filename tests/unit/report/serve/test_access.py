"""Who may read the page, and who may change a study through it."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from spark_hpo.errors import ConfigError
from spark_hpo.redact import redact
from spark_hpo.report.serve.access import is_loopback
from spark_hpo.report.serve.server import TOKEN_VARIABLE, Server, serve

TOKEN = "a-token-that-is-long-enough"


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("public"), host="0.0.0.0", port=0, token=TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("private"), port=0) as server:
        yield server


class Browser(requests.Session):
    """A session that follows no redirection by itself."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.base = f"http://127.0.0.1:{server.port}"

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        options |= {"timeout": 20, "allow_redirects": False}
        return super().request(method, self.base + url, **options)


@pytest.mark.parametrize("path", ["/", "/study?id=x", "/events?follow=all", "/page.css", "/nothing"])
def test_public_page_refuses_without_its_token(public: Server, path: str) -> None:
    with Browser(public) as browser:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": f"spark_hpo_{public.port}=wrong"}):
            answer = browser.get(path, headers=headers)
            assert answer.status_code == 401
            assert "content-security-policy" in answer.headers
        assert browser.get(f"{path}{'&' if '?' in path else '?'}token=wrong").status_code == 401


def test_token_becomes_a_session_and_leaves_the_address(public: Server) -> None:
    with Browser(public) as browser:
        first = browser.get(f"/study?id=x&token={TOKEN}")
        assert first.status_code == 303
        assert first.headers["location"] == "./study?id=x"
        cookie = first.headers["set-cookie"]
        assert TOKEN not in cookie
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert "path=" not in cookie.lower(), "the browser takes the folder, which a proxy may have chosen"
        assert browser.get("/").status_code == 200
    with Browser(public) as program:
        assert program.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert public.url.endswith(f"?token={TOKEN}")
        assert TOKEN not in public.address


def test_token_is_in_no_log(public: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Browser(public) as browser:
        for path in ("/", "/study?id=x", "/trial?id=x&trial=y"):
            browser.get(path, params={"token": TOKEN})
            browser.get(path, headers={"authorization": f"Bearer {TOKEN}"})
    own = [record for record in caplog.records if not record.name.startswith("urllib3")]
    assert not [record for record in own if TOKEN in record.getMessage()]
    assert TOKEN not in redact(f"an error about {public.url}")
    assert TOKEN not in repr(public)


def test_private_page_answers_to_names_of_this_machine_only(private: Server) -> None:
    with Browser(private) as browser:
        assert browser.get("/").status_code == 200
        assert browser.get("/", headers={"host": f"localhost:{private.port}"}).status_code == 200
        rebound = browser.get("/", headers={"host": f"evil.example:{private.port}"})
        assert rebound.status_code == 403


def test_changes_need_the_secret_of_the_page_and_its_origin(private: Server) -> None:
    with Browser(private) as browser:
        page = browser.get("/").text
        csrf = page.partition('name="csrf" content="')[2].partition('"')[0]
        assert len(csrf) > 20
        body = '{"verb": "pause", "text": ""}'
        for headers in (
            {},
            {"x-spark-hpo": "wrong"},
            {"x-spark-hpo": csrf, "sec-fetch-site": "cross-site"},
            {"x-spark-hpo": csrf, "sec-fetch-site": "same-site"},
        ):
            assert browser.post("/steer?id=x", data=body, headers=headers).status_code == 403
        allowed = {"x-spark-hpo": csrf, "sec-fetch-site": "same-origin"}
        assert browser.post("/steer?id=x", data=body, headers=allowed).status_code == 404, "no such study"


def test_server_chooses_a_token_where_others_can_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    open_, own = Server([tmp_path], host="0.0.0.0", port=0), Server([tmp_path], port=0)
    try:
        assert open_.has_own_token
        assert len(open_.url.partition("?token=")[2]) >= 30
        assert not own.has_own_token
        assert "token" not in own.url
    finally:
        open_.close()
        own.close()
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with Server([tmp_path], host="0.0.0.0", port=0) as given:
        assert given.url.endswith(TOKEN)
        assert not given.has_own_token


def test_wrong_arguments_have_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as found:
        serve(tmp_path, host="0.0.0.0", token="short")
    assert found.value.key == "token"
    with pytest.raises(ConfigError) as found:
        serve(tmp_path / "nothing")
    assert found.value.key == "DIR"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError) as found:
            serve(tmp_path, port=taken.getsockname()[1])
    assert found.value.key == "port"


def test_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError) as found:
        serve(tmp_path)
    assert "spark_hpo[serve]" in found.value.cure


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)],
)
def test_loopback_addresses(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
