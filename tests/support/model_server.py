"""`mlflow models serve` for tests, in a process that has neither Java nor the checkout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.support.mlflow_server import free_port

LIMIT_S = 240.0


class ModelServer:
    """A served model, which runs inside a `with` block."""

    def __init__(self, uri: str, *, tracking_uri: str, folder: Path) -> None:
        self.port = free_port()
        self.log = folder / "served.log"
        self._command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri]
        self._command += ["--env-manager", "local", "--port", str(self.port), "--host", "127.0.0.1"]
        hidden = ("JAVA_HOME", "PYTHONPATH", "SPARK_HOME")
        self._environment = {k: v for k, v in os.environ.items() if k not in hidden}
        self._environment |= {
            "MLFLOW_TRACKING_URI": tracking_uri,
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "JAVA_HOME": str(folder / "no-java"),
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",  # MLflow starts uvicorn
        }
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + LIMIT_S
        while True:
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=5):
                    return self
            except OSError:
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)

    def ask(self, *rows: dict[str, Any]) -> tuple[int, Any]:
        """Ask for predictions. Return the HTTP status and the answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/invocations",
            json.dumps({"dataframe_records": rows}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()
