"""The output of commands: answers to standard output, everything else to the terminal or standard error.

Credentials are removed.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from spark_hpo.driver.provenance import under_spark_submit
from spark_hpo.errors import ConfigError
from spark_hpo.redact import redact

_WIDTH = 120  # columns, without a terminal


def answers() -> Console:
    """The console for a command's answer, for people."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)


def diagnostics() -> Console:
    """The console for live lines, log lines and errors: the terminal or standard error."""
    terminal = _terminal_of_spark_submit()
    if terminal is not None:
        return Console(file=terminal, highlight=False)
    return Console(stderr=True, width=None if sys.stderr.isatty() else _WIDTH, highlight=False)


def say(text: str, console: Console | None = None) -> None:
    """Print a line without wrapping it, so that it can be copied."""
    print(redact(text), file=(console or answers()).file, flush=True)


def say_json(value: Any) -> None:
    """Print the answer for programs, in one line."""
    print(redact(json.dumps(value)), flush=True)


def complain(text: str) -> None:
    """Print an error."""
    say(text, diagnostics())


def write_file(path: str, data: bytes) -> str:
    """Write a file, creating its folder, and return its full path.

    Raises:
        ConfigError: the file cannot be written.
    """
    file = Path(path).absolute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    except OSError as exc:
        raise ConfigError(
            f"cannot be written: {exc.strerror}", key="--output", value=path, cure="Choose another file"
        ) from exc
    return str(file)


@cache
def _terminal_of_spark_submit() -> Any:
    """The terminal of spark-submit, whose child has only a pipe to the JVM as standard error."""
    if under_spark_submit():
        with suppress(OSError):
            terminal = os.readlink(f"/proc/{os.getppid()}/fd/2")
            if terminal.startswith(("/dev/pts/", "/dev/tty")):
                return open(terminal, "w")
    return None
