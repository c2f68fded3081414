"""`spark-hpo serve` as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from spark_hpo.report.serve.server import TOKEN_VARIABLE
from spark_hpo.study_dir.storage import Storage
from tests.support.written_studies import StudyWriter

TOKEN = "a-token-that-is-long-enough"
LIMIT_S = 60.0


def started(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if key != TOKEN_VARIABLE}
    return subprocess.Popen(
        [sys.executable, "-m", "spark_hpo", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, **environment},
    )


@pytest.mark.medium
def test_command_serves_until_it_is_told_to_end_and_logs_no_token(tmp_path: Path) -> None:
    StudyWriter(storage=Storage(tmp_path / "study")).start(1).die()
    process = started(str(tmp_path), "--host", "0.0.0.0", "--port", "0", **{TOKEN_VARIABLE: TOKEN})
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        assert address.startswith("http://")
        port = address.rstrip("/").rpartition(":")[2]
        local = f"http://127.0.0.1:{port}/"
        assert requests.get(local, timeout=LIMIT_S).status_code == 401
        assert "by hand" in requests.get(f"{local}?token={TOKEN}", timeout=LIMIT_S).text
    finally:
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "not encrypted" in errors
    assert TOKEN not in rest + errors
    assert "Traceback" not in errors


@pytest.mark.medium
def test_command_prints_no_random_token_into_a_log(tmp_path: Path) -> None:
    process = started(str(tmp_path), "--host", "0.0.0.0", "--port", "0")
    rest, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert "--token-file" in errors
    assert "token=" not in rest + errors
