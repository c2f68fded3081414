"""Runs the page: for the command `spark-hpo serve`, and in the background of a notebook."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from spark_hpo.errors import ConfigError, SparkHpoError, located
from spark_hpo.redact import hide
from spark_hpo.report.notebook import in_notebook

TOKEN_VARIABLE = "SPARK_HPO_SERVE_TOKEN"
DEFAULT_PORT = 7480  # Databricks' driver proxy takes 3000 to 8000

_LOOPBACK, _ALL = "127.0.0.1", "0.0.0.0"
_MIN_TOKEN = 16  # characters
_START_LIMIT_S = 30.0
_STOP_LIMIT_S = 10.0
_REQUIRED = ("fastapi", "starlette", "uvicorn")
_INSTALL = "pip install 'spark_hpo[serve]'"


def serve(
    *dirs: str | Path, host: str | None = None, port: int | None = None, token: str | None = None
) -> Server:
    """Show the studies below directories on a web page, and keep it up to date while they run.

    The page is served by a thread of this process until `close`, or the end of the process. It reads the
    directories alone and writes nothing there unless you steer a study.

    Args:
        dirs: study directories, or directories that contain some: paths or fsspec URLs. Default: `studies`
            in the working directory, or the working directory itself.
        host: the address to listen on. Default: 127.0.0.1, which only this machine can reach; on Databricks
            0.0.0.0, which its driver proxy needs.
        port: default: 7480, or the next free one.
        token: what a browser needs to know if others can reach the address, 16 characters or more. Default:
            SPARK_HPO_SERVE_TOKEN in the environment, or a random one.

    Returns:
        The running page. A notebook shows it as a link; elsewhere print its `url`.

    Raises:
        ConfigError: an argument is wrong, FastAPI is missing, or the port is in use.
    """
    with located("serve()"):
        server = Server(dirs, host=host, port=port, token=token)
        server.start()
        return server


class Server:
    """The page of some directories."""

    def __init__(
        self,
        dirs: Sequence[str | Path],
        *,
        host: str | None = None,
        port: int | None = None,
        token: str | None = None,
    ) -> None:
        """Listen on the address, so that the port is known. `start` or `run` answers requests.

        Raises:
            ConfigError: as for `serve`.
        """
        try:
            import uvicorn

            from spark_hpo.report.serve.access import Access, is_loopback
            from spark_hpo.report.serve.app import build_app
            from spark_hpo.report.serve.catalog import Catalog
        except ModuleNotFoundError as exc:
            if exc.name not in _REQUIRED:
                raise
            raise ConfigError(f"the page needs {exc.name}, which is not installed", cure=_INSTALL) from exc
        self.dirs = [str(folder) for folder in dirs] or [_usual_folder()]
        for folder in self.dirs:
            if "://" not in folder and not Path(folder).is_dir():
                raise ConfigError("is not a directory", key="DIR", value=folder, cure="Check the path")
        self.host = host or (_ALL if _on_databricks() else _LOOPBACK)
        self.is_private = is_loopback(self.host)
        given = token or os.environ.get(TOKEN_VARIABLE) or None
        if given is not None and len(given) < _MIN_TOKEN:
            raise ConfigError(
                f"must have at least {_MIN_TOKEN} characters", key="token", cure="Use a longer one"
            )
        self.has_own_token = given is None and not self.is_private
        self._token = secrets.token_urlsafe(24) if self.has_own_token else given
        if self._token is not None:
            hide([self._token])  # it may not get into a log line or an error
        self._socket = _listen(self.host, port)
        self.port = int(self._socket.getsockname()[1])
        app = build_app(Catalog(self.dirs), Access(self._token, self.port))
        self._end_streams: Callable[[], None] = app.state.end_streams
        config = uvicorn.Config(
            app,
            access_log=False,  # an address may contain the token
            log_config=None,
            log_level="warning",
            lifespan="on",
            timeout_graceful_shutdown=1,  # streams of events do not end by themselves
            server_header=False,
            proxy_headers=False,
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """The address of the page, without its token."""
        if (proxied := _databricks_address(self.port)) is not None:
            return proxied
        name = socket.gethostname() if self.host in (_ALL, "::") else self.host
        return f"http://[{name}]:{self.port}/" if ":" in name else f"http://{name}:{self.port}/"

    @property
    def url(self) -> str:
        """The address to open in a browser. It may contain the token: keep it out of logs."""
        return self.address + ("" if self._token is None else f"?token={quote(self._token)}")

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until Ctrl-C or SIGTERM.

        Args:
            ready: called when a browser can connect.
        """
        self.start()
        ready()
        try:
            while self._thread is not None and self._thread.is_alive():
                self._thread.join(0.5)
        finally:
            self.close()

    def start(self) -> None:
        """Serve from a thread of this process.

        Raises:
            SparkHpoError: the server does not start.
        """
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="spark_hpo-page", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_LIMIT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.close()
                raise SparkHpoError(f"the page at {self.address} does not start")
            time.sleep(0.01)

    def close(self) -> None:
        """Stop serving. Idempotent."""
        self._server.should_exit = True
        self._end_streams()
        if self._thread is not None:
            self._thread.join(_STOP_LIMIT_S)
            self._thread = None
        self._socket.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Server {self.address}>"

    def _repr_html_(self) -> str:
        from html import escape

        link = escape(self.url, quote=True)
        note = (
            "" if self._token is None else " The link contains a token that opens the page: do not share it."
        )
        return f'<p><a href="{link}" target="_blank" rel="noreferrer">Open the studies</a>.{note}</p>'


def _listen(host: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ports = [port] if port is not None else [*range(DEFAULT_PORT, DEFAULT_PORT + 20), 0]
    for candidate in ports:
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, candidate))
        except (OSError, OverflowError) as exc:
            found.close()
            if candidate == ports[-1]:
                reason = exc.strerror if isinstance(exc, OSError) else exc
                raise ConfigError(
                    f"cannot be used: {reason}", key="port", value=candidate, cure="Choose another one"
                ) from exc
        else:
            return found
    raise AssertionError("the last port is returned or refused")


def _usual_folder() -> str:
    return "studies" if Path("studies").is_dir() else "."


def _on_databricks() -> bool:
    return "DATABRICKS_RUNTIME_VERSION" in os.environ


def _databricks_address(port: int) -> str | None:
    """Return the address of a port of the driver behind Databricks' proxy; None: it is not known."""
    sql: Any = sys.modules.get("pyspark.sql")  # a notebook has imported it
    session = sql.SparkSession.getActiveSession() if sql is not None and _on_databricks() else None
    if session is None or not in_notebook():
        return None
    tags = "spark.databricks.clusterUsageTags"
    names = ("spark.databricks.workspaceUrl", f"{tags}.orgId", f"{tags}.clusterId")
    workspace, org, cluster = (session.conf.get(name, None) for name in names)
    if not (workspace and cluster):
        return None
    return f"https://{workspace}/driver-proxy/o/{org or 0}/{cluster}/{port}/"
