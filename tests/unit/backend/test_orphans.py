"""Orphans: the children of a killed worker are killed, those of a running worker are not."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

# Like PySpark's daemon: it forks workers, and waits in a loop. Each worker starts a process. One is killed.
DAEMON = """
    import os, select, signal, subprocess, sys, time, types
    from spark_hpo.backend import strays
    from spark_hpo.backend.spark import orphans
    import psutil

    daemon = types.SimpleNamespace(select=select)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    orphans.adopt(daemon)
    reader, writer = os.pipe()

    def start():
        pid = os.fork()
        if pid == 0:
            strays.mark()
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            os.write(writer, f"{child.pid}\\n".encode())
            time.sleep(60)
        return pid

    def started():
        return int(os.read(reader, 20))

    def wait():
        if sys.argv[1] == "select":
            daemon.select.select([], [], [], 0.05)
        else:
            poller = daemon.select.poll()
            poller.register(0, daemon.select.POLLPRI)
            poller.poll(50)

    killed, its = start(), started()
    living, own = start(), started()
    os.kill(killed, signal.SIGKILL)
    until = time.monotonic() + 20
    while psutil.pid_exists(its) and time.monotonic() < until:
        wait()
    print(psutil.pid_exists(its), psutil.pid_exists(own), psutil.pid_exists(living))
    os.kill(living, signal.SIGKILL)
    while psutil.pid_exists(own) and time.monotonic() < until:
        wait()
    print(psutil.pid_exists(own))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="subreapers are a feature of Linux")
@pytest.mark.parametrize("how", ["select", "poll"])
def test_orphans_are_killed_with_the_worker_that_started_them(how: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(DAEMON), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "False True True\nFalse\n", done.stderr
