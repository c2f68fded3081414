"""Runs command lines in the process of the test, which saves starting an interpreter."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Done = subprocess.CompletedProcess[str]


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
