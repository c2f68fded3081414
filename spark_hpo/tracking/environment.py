"""Settings of MLflow that exist only as environment variables.

They are set while a tracker is open and restored when the last one closes. Variables that the user has set
are not changed.
"""

from __future__ import annotations

import logging
import logging.config
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

# The tracker retries. MLflow's own retries would create two runs if the reply to `create` was lost.
WRITING = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds, for connecting and for each read
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the last line of stdout is the study's JSON
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
STARTING = {**WRITING, "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
# Studies of one process share the connections to a database; SQLite allows any number.
STARTING_SQLITE = {**STARTING, "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "-1"}

_NOISY = ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc")


_lock = threading.Lock()
_open: dict[object, Mapping[str, str]] = {}  # the variables of each open block, the latest last
_before: dict[str, str | None] = {}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables inside the block. If several blocks are open, in any threads, the latest one counts."""
    block = object()
    with _lock:
        for name in variables:
            _before.setdefault(name, os.environ.get(name))
        _open[block] = variables
        _apply()
    try:
        yield
    finally:
        with _lock:
            del _open[block]
            _apply()


def _apply() -> None:
    wanted = {name: value for variables in _open.values() for name, value in variables.items()}
    for name, before in _before.items():
        value = wanted.get(name) if before is None else before
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if not _open:
        _before.clear()


class _Quiet:
    """Suppresses info messages of MLflow from the first `enter` to the last `exit` of the process."""

    _lock = threading.Lock()
    _depth = 0
    _before = ExitStack()

    @classmethod
    def enter(cls) -> None:
        with cls._lock:
            cls._depth += 1
            if cls._depth > 1:
                return
            for name in _NOISY:
                logger = logging.getLogger(name)
                cls._before.callback(logger.setLevel, logger.level)
                logger.setLevel(max(logger.level, logging.WARNING))
            # The migrations of MLflow 3.0 replace the handlers of the whole process.
            cls._before.callback(setattr, logging.config, "fileConfig", logging.config.fileConfig)
            logging.config.fileConfig = lambda *_, **__: None
            cls._before.enter_context(warnings.catch_warnings())
            # It hints at missing values in integer columns; here these are codes, which are never missing.
            warnings.filterwarnings("ignore", message="Hint: Inferred schema contains integer column")

    @classmethod
    def exit(cls) -> None:
        with cls._lock:
            cls._depth -= 1
            if not cls._depth:
                cls._before.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress info messages of MLflow inside the block, such as those of database migrations."""
    _Quiet.enter()
    try:
        yield
    finally:
        _Quiet.exit()
