"""The processes that a study has started, whoever their parents are by now."""

from __future__ import annotations

import contextlib
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

VARIABLE = "FAULT_TEST"
LIMIT_S = 240.0  # of anything that a test waits for
GONE_LIMIT_S = 20.0


class Family:
    """All that carry one mark in their environment, which children inherit."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(VARIABLE) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def executors(self) -> list[psutil.Process]:
        """The JVMs of the executors, oldest first."""
        named = [(process, _words(process)) for process in self.alive()]
        jvms = [p for p, words in named if words.startswith("java") and "CoarseGrainedExecutor" in words]
        return sorted(jvms, key=lambda process: process.create_time())

    def are_gone(self) -> bool:
        """Whether they all end, within a limit."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: not self.alive(), "their end", limit_s=GONE_LIMIT_S)
        return not self.alive()

    def names(self) -> list[str]:
        return [_words(process)[:200] for process in self.alive()]

    def kill(self) -> None:
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        assert self.are_gone(), self.names()


def executor_of(pid: int) -> psutil.Process:
    """The executor under which a rank runs: the parent of its daemon."""
    executor = psutil.Process(psutil.Process(pid).ppid()).parent()
    assert executor is not None
    return executor


def eventually(condition: Callable[[], bool], what: str, *, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:.0f} s for {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """A process that is stopped meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def _words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join([Path(process.exe()).name, *process.cmdline()[1:]])
    return ""
