"""What executors are asked. These functions travel there."""

from __future__ import annotations

import importlib.util
import platform
import socket
import sys
from importlib import metadata
from typing import Any

from spark_hpo.study_dir.storage import Storage

_CONNECT_S = 10.0


def who_are_you(
    packages: tuple[str, ...], driver: tuple[str, int] | None, count_gpus: bool
) -> dict[str, Any]:
    """Python, packages, and whether the driver is in reach."""
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
        "gpus": _gpus() if count_gpus else 0,
    }


def leave_a_file(storage: Storage, name: str) -> dict[str, str]:
    """Write a file, for the driver to see. It deletes it."""
    storage.write(name, socket.gethostname().encode())
    return {"host": socket.gethostname()}


def _reach(host: str, port: int) -> str:
    """Why the driver cannot be reached; nothing: it can."""
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return ""
    except OSError as exc:
        return exc.strerror or str(exc) or type(exc).__name__


def _gpus() -> int:
    if importlib.util.find_spec("torch") is None:
        return 0
    torch = importlib.import_module("torch")  # only where GPUs are asked for: it takes seconds
    return int(torch.cuda.device_count())
