"""The driver's side of the fork server: starts it, asks it for processes, and hears how they end."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from spark_hpo.backend.local import messages

_END_TIMEOUT_S = 5.0


class ServerProcess:
    """A fork server that runs.

    A trace: number = fork(program, connection); kill(number); next_ended() -> Ended(number, -9)
    """

    def __init__(self, preloaded: Sequence[str], environment: Mapping[str, str], temporary: str = "") -> None:
        """
        Args:
            preloaded: names of the modules that it imports before its first fork.
            environment: of the server and its processes, beside this process's own.
            temporary: a folder that it deletes when this process has ended.
        """
        self.connection, theirs = socket.socketpair()
        """Readable when a process, or the server, has ended."""
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "spark_hpo.backend.local.fork_server",
                    str(theirs.fileno()),
                    temporary,
                    *preloaded,
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_python_path()), **environment},
                start_new_session=True,  # Ctrl-C is for the driver alone
            )
        self._num_forked = 0

    def fork(self, program: int, connection: int) -> int:
        """Ask for a process that runs `rank.main` with these descriptors, and return its number.

        Raises:
            OSError: the server has ended.
        """
        messages.send_request(self.connection, messages.FORK, self._num_forked, program, connection)
        self._num_forked += 1
        return self._num_forked - 1

    def kill(self, number: int) -> None:
        """Ask for the end of a process and of those that it has started."""
        with contextlib.suppress(OSError):  # the server has ended, and so have its processes
            messages.send_request(self.connection, messages.KILL, number)

    def next_ended(self) -> messages.Ended | None:
        """Wait for the end of a process; None: the server has ended."""
        return messages.receive_ended(self.connection)

    def close(self) -> None:
        """End the server and its processes. Idempotent."""
        self.connection.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _python_path() -> list[str]:
    """Return the path of this process, without folders that hold only a part of this package.

    A model puts such a folder first when MLflow loads it.
    """
    package = Path(__file__).parents[2]

    def is_ours(folder: str) -> bool:
        other = Path(folder, package.name)
        return not other.is_dir() or other.samefile(package)

    return [folder for folder in sys.path if folder and is_ours(folder)]
