"""A standalone Spark cluster on loopback, and a Python on its workers that lacks the package."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pyspark
import pytest

from tests.support.class_archive import java_options

SPARK = Path(pyspark.__file__).parent
START_LIMIT_S = 60.0
END_LIMIT_S = 20.0
_PR_SET_PDEATHSIG = 1
GPUS = ["2", "5"]  # of each worker
# Small heaps: a cluster of tests shares its machine. Executors inherit the options of Java from their worker.
_ENVIRONMENT = {
    "SPARK_DAEMON_MEMORY": "256m",
    "SPARK_LOCAL_IP": "127.0.0.1",
    "SPARK_HOME": str(SPARK),
    "JDK_JAVA_OPTIONS": java_options(),
}


def _end_with_the_tests() -> None:
    """Make Linux kill this process when the tests end, for whatever reason."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """A process with a log, in a session of its own."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ENVIRONMENT, **(environment or {})},
                cwd=log.parent,
                start_new_session=True,
                preexec_fn=_end_with_the_tests,
            )

    def wait_for(self, pattern: str) -> str:
        """Wait for a line of the log, and return the first group of the match."""
        deadline = time.monotonic() + START_LIMIT_S
        while (found := re.search(pattern, self.log.read_text(errors="replace"))) is None:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.log.read_text()[-3000:]}"
            time.sleep(0.05)
        return found.group(1)

    def kill(self) -> None:
        """Kill the process and its children, and wait for their end."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            family = [*parent.children(recursive=True), parent]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait(END_LIMIT_S)
        psutil.wait_procs(family, timeout=END_LIMIT_S)


class StandaloneCluster:
    """One master and its workers. Each has fake GPUs, which a discovery script announces."""

    def __init__(self, folder: Path, *, cores: int = 2, memory: str = "1g") -> None:
        self._folder = folder
        self._cores = cores
        self._memory = memory
        self._number = 0
        self.gpu_script = folder / "gpus.sh"
        self.gpu_script.write_text(
            "#!/bin/sh\necho '" + json.dumps({"name": "gpu", "addresses": GPUS}) + "'\n"
        )
        self.gpu_script.chmod(0o755)
        self._properties = folder / "worker.conf"
        self._properties.write_text(
            f"spark.worker.resource.gpu.amount {len(GPUS)}\n"
            f"spark.worker.resource.gpu.discoveryScript {self.gpu_script}\n"
        )
        self._servers: list[Server] = []
        self.workers: list[Server] = []
        master = self._start("master", "master.Master", "--host", "127.0.0.1", "--port", "0")
        self.url = master.wait_for(r"Starting Spark master at (spark://\S+)")

    def add_worker(self) -> Server:
        self._number += 1
        name = f"worker-{self._number}"
        worker = self._start(
            name,
            "worker.Worker",
            *("--host", "127.0.0.1", "--cores", str(self._cores), "--memory", self._memory),
            *("--properties-file", str(self._properties), "--work-dir", str(self._folder / name), self.url),
        )
        worker.wait_for(r"(Successfully registered with master)")
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        for server in reversed(self._servers):
            server.kill()

    def _start(self, name: str, main: str, *arguments: str) -> Server:
        command = [str(SPARK / "bin/spark-class"), f"org.apache.spark.deploy.{main}", "--webui-port", "0"]
        server = Server([*command, *arguments], self._folder / f"{name}.log")
        self._servers.append(server)
        return server


@contextlib.contextmanager
def standalone_cluster(folder: Path, *, workers: int = 2, cores: int = 2) -> Iterator[StandaloneCluster]:
    cluster = StandaloneCluster(folder, cores=cores)
    try:
        for _ in range(workers):
            cluster.add_worker()
        yield cluster
    finally:
        cluster.close()


def bare_python(folder: Path) -> Path:
    """Return an interpreter with all installed packages except for spark_hpo.

    Paths in a .pth file are put on the path; the .pth files that lie there, among them the one of an
    editable installation, are not looked at.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    target = folder / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (target / "installed.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("-packages")) + "\n"
    )
    done = subprocess.run(
        [python, "-c", "import torch, pyarrow, pyspark, spark_hpo"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        timeout=START_LIMIT_S,
        check=False,
    )
    assert "No module named 'spark_hpo'" in done.stderr, done.stderr
    return python


@contextlib.contextmanager
def connect_server(folder: Path, python: Path, **settings: str) -> Iterator[str]:
    """Start a Spark Connect server with two task slots, and return its address. `python` runs its tasks."""
    if not list((SPARK / "jars").glob("spark-connect_*.jar")):
        pytest.skip("the package of Spark 3.5 has no Connect server in it")
    settings = {
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": "0",
        "spark.ui.enabled": "false",
        "spark.python.worker.reuse": "false",
        "spark.task.maxFailures": "1",
        **settings,
    }
    options = [f"--conf={key}={value}" for key, value in settings.items()]
    main = "org.apache.spark.sql.connect.service.SparkConnectServer"
    server = Server(
        [str(SPARK / "bin/spark-submit"), "--master", "local[2]", "--class", main, *options],
        folder / "connect.log",
        {"PYSPARK_PYTHON": str(python), "SPARK_DAEMON_MEMORY": "768m"},
    )
    try:
        yield "sc://" + server.wait_for(r"Spark Connect server started at: (\S+)").replace(
            "0.0.0.0", "127.0.0.1"
        )
    finally:
        server.kill()
