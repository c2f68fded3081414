"""Functions that the doctor runs on executors."""

from __future__ import annotations

import importlib.util
import platform
import socket
import sys
from importlib import metadata
from typing import Any

from spark_hpo.study_dir.storage import Storage

_CONNECT_S = 10.0


def executor_info(
    packages: tuple[str, ...], driver: tuple[str, int] | None, count_gpus: bool
) -> dict[str, Any]:
    """Return what an executor has, and whether it reaches the driver."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "?" if importlib.util.find_spec(name) is not None else ""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": versions,
        "driver": None if driver is None else _reach(*driver),
        "ports": _free_ports(),
        "gpus": count_visible_gpus() if count_gpus else 0,
    }


def write_file(storage: Storage, name: str) -> dict[str, str]:
    """Write a file, which the driver reads and deletes."""
    storage.write(name, socket.gethostname().encode())
    return {"host": socket.gethostname()}


def _free_ports() -> list[int]:
    """Return the first and the last port that the kernel gives to sockets; [] on other systems than Linux."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            return [int(port) for port in file.read().split()]
    except OSError:
        return []


def _reach(host: str, port: int) -> str:
    """The reason why the driver cannot be reached; empty: it can."""
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return ""
    except OSError as exc:
        return exc.strerror or str(exc) or type(exc).__name__


def count_visible_gpus() -> int:
    if importlib.util.find_spec("torch") is None:
        return 0
    torch = importlib.import_module("torch")  # takes seconds, so only if GPUs are wanted
    return int(torch.cuda.device_count())
