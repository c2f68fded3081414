"""A standalone Spark cluster whose machines are `Hosts`, and studies on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.study_run import StudyRun
from tests.support.hosts import Host, Hosts, hosts_of
from tests.support.standalone import SPARK, Server

DRIVER, WORKERS = "one", ("two", "three")
_MASTER_PORT, _WORKER_PORT, _DRIVER_PORT, _BLOCKS_PORT = 7077, 7078, 7079, 7080
STORE_PORTS = "40000-40001"  # of the rendezvous store on the driver
RANK_PORTS = "41000-42999"  # of gloo, and of a store of rank 0
# Of all that Spark listens on. Spark tries the ports after a port that is taken, 16 by default.
SPARK_PORTS = f"{_MASTER_PORT}-{_BLOCKS_PORT + 4}"


class HostsCluster:
    """A master on the first host, where drivers run too, and a worker with one slot on each other host."""

    def __init__(self, folder: Path, hosts: Hosts) -> None:
        self.hosts = hosts
        self._folder = folder
        self._servers: list[Server] = []
        master = self._start(hosts[DRIVER], "master.Master", "--port", str(_MASTER_PORT))
        self.url = master.wait_for(r"Starting Spark master at (spark://\S+)")
        workers = [
            self._start(
                *(hosts[name], "worker.Worker", "--port", str(_WORKER_PORT)),
                *("--cores", "1", "--memory", "1g", "--work-dir", str(folder / name), self.url),
            )
            for name in WORKERS
        ]
        for worker in workers:
            worker.wait_for(r"(Successfully registered with master)")

    def close(self) -> None:
        for server in self._servers:
            server.kill()

    def _start(self, host: Host, main: str, *arguments: str) -> Server:
        place = str(self.hosts.private_folder)  # of one host alone, like its local disk
        server = Server(
            [
                *host.command(self._folder),
                *(str(SPARK / "bin/spark-class"), f"org.apache.spark.deploy.{main}"),
                *("--host", host.address, "--webui-port", "0", *arguments),
            ],
            self._folder / f"{host.name}.log",
            {"SPARK_LOCAL_IP": host.address, "TMPDIR": place, "SPARK_HPO_CACHE_DIR": place},
        )
        self._servers.append(server)
        return server


class HostsStudy(StudyRun):
    """A study of `FaultyTask` whose driver runs on the first host."""

    def __init__(self, folder: Path, cluster: HostsCluster, **config: Any) -> None:
        driver = cluster.hosts[DRIVER]
        spark = {
            "spark.master": cluster.url,
            "spark.driver.host": driver.address,
            "spark.driver.port": str(_DRIVER_PORT),
            "spark.blockManager.port": str(_BLOCKS_PORT),
            "spark.executorEnv.OMP_NUM_THREADS": "1",
            **config.pop("spark", {}),
        }
        super().__init__(folder, spark=spark, **config)
        self.python = self.command
        self.command = (
            *driver.command(folder),
            *("env", f"SPARK_LOCAL_IP={driver.address}", *self.command),
        )

    def hosts_of_trial(self, trial_id: int) -> set[str]:
        """Return the names of the hosts that have trained a trial."""
        return {step.host for step in self.steps_of(trial_id)}


@contextlib.contextmanager
def cluster_of(folder: Path) -> Iterator[HostsCluster]:
    """Start a cluster whose workers accept connections only on the ports that `docs/cluster.md` lists."""
    with hosts_of(folder, (DRIVER, *WORKERS)) as hosts:
        for name in WORKERS:
            first, _, last = RANK_PORTS.partition("-")
            hosts[name].choose_ports_from(int(first), int(last))
            hosts[name].allow_ports(SPARK_PORTS, RANK_PORTS)
        cluster = HostsCluster(folder, hosts)
        try:
            yield cluster
        finally:
            hosts.close()  # kills everything at once
            cluster.close()
