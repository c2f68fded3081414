"""Runs command lines: in the process of the test, which saves starting an interpreter, or as users do."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_S = 400.0

Done = subprocess.CompletedProcess[str]


def spark_hpo(folder: Path, *words: str, limit_s: float = LIMIT_S) -> Done:
    """Run `spark-hpo WORDS` in a folder, in a process of its own."""
    return _run([sys.executable, "-W", "ignore", "-m", "spark_hpo", *words], folder, limit_s)


def submit_tune(folder: Path, *words: str, limit_s: float = LIMIT_S) -> Done:
    """Run the command of `make tune` in a folder: `spark-submit jobs/tune.py WORDS`."""
    submit = Path(sys.executable).parent / "spark-submit"
    return _run([str(submit), str(ROOT / "jobs/tune.py"), *words], folder, limit_s)


def output(done: Done) -> str:
    """Return the standard output of a command that has succeeded."""
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def _run(command: Sequence[str], folder: Path, limit_s: float) -> Done:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
    )


def run_in_process(main: Callable[[Sequence[str]], Any], arguments: Sequence[str], folder: Path) -> Done:
    """Run `spark_hpo.cli.main` or `tune` in a folder, and undo their changes to the process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    logger, handler = logging.getLogger("spark_hpo"), signal.getsignal(signal.SIGTERM)
    before = logger.level, logger.propagate, logger.handlers[:]
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(arguments)
            raise AssertionError("the command line did not exit")
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 0
    finally:
        signal.signal(signal.SIGTERM, handler)
        logger.setLevel(before[0])
        logger.propagate, logger.handlers[:] = before[1:]
    text = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return Done(list(arguments), code, *text)
