"""The processes that a study has started, including those that have lost their parents."""

from __future__ import annotations

import contextlib
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

VARIABLE = "FAULT_TEST"
LIMIT_S = 240.0  # for everything that a test waits for
GONE_LIMIT_S = 20.0


class StudyProcesses:
    """All processes that have the same mark in their environment, which children inherit."""

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
        """Return the JVMs of the executors, oldest first."""
        named = [(process, _command_line(process)) for process in self.alive()]
        jvms = [p for p, words in named if words.startswith("java") and "CoarseGrainedExecutor" in words]
        return sorted(jvms, key=lambda process: process.create_time())

    def wait_until_gone(self) -> bool:
        """Wait for the end of all processes, and return whether they ended in time."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: not self.alive(), "the end of the processes", limit_s=GONE_LIMIT_S)
        return not self.alive()

    def names(self) -> list[str]:
        return [_command_line(process)[:200] for process in self.alive()]

    def kill(self) -> None:
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        assert self.wait_until_gone(), self.names()


def executor_of(pid: int) -> psutil.Process:
    """Return the executor of a rank: the parent of the daemon that forked it."""
    executor = psutil.Process(psutil.Process(pid).ppid()).parent()
    assert executor is not None
    return executor


def eventually(condition: Callable[[], bool], what: str, *, limit_s: float = LIMIT_S) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:.0f} s for {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """Stop a process for the duration of a block."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def _command_line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join([Path(process.exe()).name, *process.cmdline()[1:]])
    return ""
