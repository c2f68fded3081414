"""The parent process of the ranks: imports torch and the readers once, then forks a process for each rank.

The local counterpart of `spark_hpo.daemon`. It has one thread, because a fork does not copy threads. When the
driver ends, however it ends, the server kills all ranks and ends too; when the server ends, Linux kills them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import selectors
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from spark_hpo.backend import strays
from spark_hpo.backend.collector import collector_off
from spark_hpo.backend.local import messages, rank

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, temporary: str, preloaded: Sequence[str]) -> None:
    """Serve the driver until it closes its end of a socket.

    Args:
        descriptor: of the socket.
        temporary: a folder to delete at the end, which a killed driver would leave behind; "": none.
        preloaded: names of the modules to import before the first fork.
    """
    with collector_off():
        for name in preloaded:
            with contextlib.suppress(ImportError):  # an optional one is not installed
                importlib.import_module(name)
    strays.adopt()
    with socket.socket(fileno=descriptor) as driver:
        _Server(driver).run()
    if temporary:
        shutil.rmtree(temporary, ignore_errors=True)


class _Server:
    def __init__(self, driver: socket.socket) -> None:
        self._driver = driver
        self._numbers: dict[int, int] = {}  # by pid
        # A signal writes into this pipe and so wakes the selector.
        self._wakeup, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's; it tells the ranks

    def run(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._driver, selectors.EVENT_READ)
                selector.register(self._wakeup, selectors.EVENT_READ)
                while self._serve(selector):
                    pass
        finally:
            for pid in self._numbers:
                _kill(pid)
            strays.kill(())

    def _serve(self, selector: selectors.BaseSelector) -> bool:
        """Handle what has happened. False: the driver has ended."""
        for key, _ in selector.select():
            if key.fileobj is self._driver:
                request = messages.receive_request(self._driver)
                if request is None:
                    return False
                if request.verb == messages.FORK:
                    self._fork(request)
                else:
                    for pid in [pid for pid, number in self._numbers.items() if number == request.number]:
                        _kill(pid)
            else:
                os.read(self._wakeup, 4096)
                self._reap()
        return True

    def _fork(self, request: messages.Request) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_rank(request.descriptors)
        self._numbers[pid] = request.number
        for descriptor in request.descriptors:
            os.close(descriptor)

    def _become_rank(self, descriptors: Sequence[int]) -> NoReturn:
        status = 1
        try:
            os.setsid()  # a group of its own, which is killed as a whole
            with contextlib.suppress(OSError, AttributeError):  # not Linux
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._driver.close()
            strays.mark()
            rank.main(*descriptors)
            status = 0
        except BaseException:  # a rank must never return to the server's loop
            sys.excepthook(*sys.exc_info())
        finally:
            rank.leave(status)

    def _reap(self) -> None:
        for pid in list(self._numbers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                number = self._numbers.pop(pid)
                _kill(pid)  # what is left of its group
                strays.kill(self._numbers)
                with contextlib.suppress(OSError):  # the driver has ended; its end of file is read next
                    messages.send_ended(
                        self._driver, messages.Ended(number, os.waitstatus_to_exitcode(status))
                    )


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
