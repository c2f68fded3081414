"""Makes the JVM of spark-submit, which receives Ctrl-C and SIGTERM too, wait for the driver to finish."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import Any

from py4j.protocol import Py4JError

logger = logging.getLogger(__name__)

_FIRST, _SECOND = 101, 100  # priorities; Spark's own hooks, which stop executors, have 40 and 50


@dataclass(eq=False)
class ShutdownHold:
    """A context in which a JVM that exits calls `notice`, and waits until the context ends.

    It uses two pipes and two shutdown hooks of the JVM, and no port. The first hook writes into one pipe,
    which the driver listens to. The second hook reads the other pipe to its end, which comes when the driver
    closes the pipe or dies.
    """

    jvm: Any
    notice: Callable[[], None]
    limit_s: float  # the longest time that the JVM waits

    def __post_init__(self) -> None:
        self._hooks: list[Any] = []
        self._is_ending = False
        self._is_released = False

    def __enter__(self) -> ShutdownHold:
        folder = tempfile.mkdtemp(prefix="spark_hpo-")
        paths = [f"{folder}/{name}" for name in ("notice", "hold")]
        for path in paths:
            os.mkfifo(path, 0o600)
        # Open both for reading and writing, so that neither side waits for the other to open.
        self._notice_pipe, self._hold_pipe = (os.open(path, os.O_RDWR) for path in paths)
        try:
            self._install(*paths)
        except (Py4JError, TypeError) as exc:  # these names are internal to Spark
            logger.info("on exit, spark-submit will not wait for trials to save their state: %s", exc)
        shutil.rmtree(folder, ignore_errors=True)  # both sides have opened them, so kill -9 leaves no files
        self._thread = Thread(target=self._listen, name="spark_hpo-shutdown", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_ending:
            atexit.register(self._release)  # output that is still to come passes through the JVM
        else:
            self._release()

    def _install(self, notice: str, hold: str) -> None:
        jvm = self.jvm
        copy, seconds = jvm.org.apache.spark.util.RedirectThread, jvm.java.util.concurrent.TimeUnit.SECONDS
        notify = copy(
            jvm.java.io.ByteArrayInputStream(b"x"), jvm.java.io.FileOutputStream(notice), "spark_hpo", False
        )
        wait = copy(
            jvm.java.io.FileInputStream(hold), jvm.java.io.ByteArrayOutputStream(), "spark_hpo", False
        )
        manager = jvm.org.apache.hadoop.util.ShutdownHookManager.get()
        for hook, priority in ((notify, _FIRST), (wait, _SECOND)):
            manager.addShutdownHook(hook, priority, int(self.limit_s) + 1, seconds)
            self._hooks.append(hook)

    def _listen(self) -> None:
        if os.read(self._notice_pipe, 1) == b"x" and not self._is_released:
            self._is_ending = True
            self.notice()

    def _release(self) -> None:
        self._is_released = True
        try:
            manager = self.jvm.org.apache.hadoop.util.ShutdownHookManager.get()
            for hook in self._hooks:
                manager.removeShutdownHook(hook)
        except Exception:  # the JVM is exiting: its hooks end with the pipe
            logger.debug("could not remove the shutdown hooks", exc_info=True)
        os.write(self._notice_pipe, b".")
        self._thread.join()
        os.close(self._notice_pipe)
        os.close(self._hold_pipe)
