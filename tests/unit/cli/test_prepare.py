"""`spark-hpo prepare` and its job, as far as they need no Spark."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from pathlib import Path

import pytest

from spark_hpo import cli
from spark_hpo.cli.prepare import _interruptible

JOB = Path(__file__).parents[3] / "jobs" / "prepare_data.py"


@pytest.fixture(autouse=True)
def _no_spark(monkeypatch: pytest.MonkeyPatch) -> object:
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("spark_hpo.prepare.sources.own_session", lambda: pytest.fail("a session was started"))
    yield
    signal.signal(signal.SIGTERM, handler)


def prepare(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["prepare", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["digits", "--fractions", "0.8,0.1"], "--fractions"),
        (["digits", "--fractions", "0.8,much"], "--fractions"),
        (["digits", "--fractions", "0.8,0.3,-0.1"], "--fractions"),
        (["digits", "--row-group-rows", "0"], "--row-group-rows"),
        (["synthetic", "--rows", "9", "--columns", "1"], "--columns"),
        (["synthetic", "--rows", "9", "--columns", "2", "--noise", "0.5"], "--noise"),
    ],
)
def test_prepare_exits_with_2_for_an_invalid_option(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], option: str
) -> None:
    assert prepare(*arguments, "--output", str(tmp_path / "out")) == 2
    assert option in capfd.readouterr().err


def test_prepare_exits_with_3_for_a_missing_input(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert prepare("csv", "--input", "none.csv", "--label", "y", "--output", str(tmp_path / "out")) == 3
    assert capfd.readouterr().err.startswith("none.csv: no such file or folder")


@pytest.mark.parametrize("output", ["a-file/out", "/proc/out"])
def test_prepare_checks_its_output_before_it_starts_spark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    assert prepare("digits", "--output", output) == 2
    err = capfd.readouterr().err
    assert "--output cannot be written: " in err
    assert repr(output) in err
    assert "Traceback" not in err
    assert os.listdir() == ["a-file"]


def test_the_job_exits_with_the_code_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["prepare_data.py", "csv", "--input", "n", "--label", "y", "--output", "o"]
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOB), run_name="__main__")
    assert ended.value.code == 3
    assert "Traceback" not in capfd.readouterr().err


def test_interruptible_stops_the_work_and_waits_for_it() -> None:
    stopped, ended = threading.Event(), threading.Event()

    def work() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        stopped.wait(10)
        ended.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            _interruptible(work, stopped.set)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()


def test_interruptible_raises_what_the_work_raises() -> None:
    with pytest.raises(LookupError):
        _interruptible(lambda: {}["none"], lambda: None)
