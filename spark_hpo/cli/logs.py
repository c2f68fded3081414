"""Log lines of a command: one per event, without credentials."""

from __future__ import annotations

import logging

from rich.console import Console

from spark_hpo.cli.console import diagnostics
from spark_hpo.errors import ConfigError
from spark_hpo.redact import redact


class _Formatter(logging.Formatter):
    """Formats a record as one line and its traceback, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def set_up_logging(console: Console, log_file: str | None = None, *, shown: int = logging.WARNING) -> None:
    """Log records of level `shown` and above to the console, and all records to a file.

    Raises:
        ConfigError: the file cannot be written.
    """
    formatter = _Formatter("%(asctime)s %(levelname)s %(message)s")
    on_console = logging.StreamHandler(console.file)
    on_console.setLevel(shown)
    handlers: list[logging.Handler] = [on_console]
    if log_file is not None:
        try:
            handlers.append(logging.FileHandler(log_file))
        except OSError as exc:
            raise ConfigError(
                f"--log-file {log_file} cannot be written: {exc.strerror}. Choose another file"
            ) from exc
    logger = logging.getLogger("spark_hpo")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)


def set_up_driver_logging(log_file: str | None) -> None:
    """Log only warnings on a terminal, where other lines would hide the live line."""
    console = diagnostics()
    set_up_logging(console, log_file, shown=logging.WARNING if console.is_terminal else logging.INFO)
