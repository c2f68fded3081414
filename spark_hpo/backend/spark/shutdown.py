"""spark-submit is told to end: its JVM, which gets Ctrl-C and SIGTERM first, waits for the driver."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from threading import Thread
from types import TracebackType
from typing import Any

from py4j.protocol import Py4JError

logger = logging.getLogger(__name__)

_FIRST, _SECOND = 101, 100  # priorities; Spark's own hooks, which stop the executors, have 40 and 50


class ShutdownHold:
    """While it is entered, the JVM's end is told to `notice`, and put off until the driver is done.

    Two pipes and two of the JVM's own shutdown hooks: the first writes into one, the second reads the other
    to its end, which comes when the driver closes it or dies. No port is opened for it.
    """

    def __init__(self, jvm: Any, notice: Callable[[], None], *, limit_s: float) -> None:
        """
        Args:
            limit_s: for which the JVM waits at most.
        """
        self._jvm = jvm
        self._notice = notice
        self._limit_s = limit_s
        self._hooks: list[Any] = []
        self._is_ending = False
        self._is_released = False

    def __enter__(self) -> ShutdownHold:
        folder = tempfile.mkdtemp(prefix="spark_hpo-")
        paths = [f"{folder}/{name}" for name in ("told", "held")]
        for path in paths:
            os.mkfifo(path, 0o600)
        # For both directions: so that neither side's opening waits for the other's.
        self._told, self._held = (os.open(path, os.O_RDWR) for path in paths)
        try:
            self._install(*paths)
        except (Py4JError, TypeError) as exc:  # another Spark may call these by other names
            logger.info("spark-submit will not wait for trials to save when it is told to end: %s", exc)
        shutil.rmtree(folder, ignore_errors=True)  # both sides have them open: nothing is left by a kill -9
        self._thread = Thread(target=self._listen, name="spark_hpo-shutdown", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_ending:
            atexit.register(self._release)  # what is yet to be printed goes through the JVM
        else:
            self._release()

    def _install(self, told: str, held: str) -> None:
        jvm = self._jvm
        copy, seconds = jvm.org.apache.spark.util.RedirectThread, jvm.java.util.concurrent.TimeUnit.SECONDS
        tells = copy(
            jvm.java.io.ByteArrayInputStream(b"x"), jvm.java.io.FileOutputStream(told), "spark_hpo", False
        )
        waits = copy(
            jvm.java.io.FileInputStream(held), jvm.java.io.ByteArrayOutputStream(), "spark_hpo", False
        )
        manager = jvm.org.apache.hadoop.util.ShutdownHookManager.get()
        for hook, priority in ((tells, _FIRST), (waits, _SECOND)):
            manager.addShutdownHook(hook, priority, int(self._limit_s) + 1, seconds)
            self._hooks.append(hook)

    def _listen(self) -> None:
        if os.read(self._told, 1) == b"x" and not self._is_released:
            self._is_ending = True
            self._notice()

    def _release(self) -> None:
        self._is_released = True
        try:
            manager = self._jvm.org.apache.hadoop.util.ShutdownHookManager.get()
            for hook in self._hooks:
                manager.removeShutdownHook(hook)
        except Exception:  # a JVM that is ending, or has ended: its hooks end with the pipe
            logger.debug("the shutdown hooks are not removed", exc_info=True)
        os.write(self._told, b".")
        self._thread.join()
        os.close(self._told)
        os.close(self._held)
