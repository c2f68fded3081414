"""The code of a rank's process: receives its orders, runs the rank, and sends its report."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pickle
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, Self

from spark_hpo.backend.base import RankFunction
from spark_hpo.trial import Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """The work of one rank."""

    assignment: Assignment
    rank: int
    world_size: int
    gpus: Sequence[int]
    environment: Mapping[str, str]  # to be added
    path: Sequence[str]  # of modules, sys.path

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "assignment": self.assignment.to_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(**{**record, "assignment": Assignment.from_json(record["assignment"])})


def main(program: int, connection: int) -> None:
    """Run a rank.

    Args:
        program: descriptor of a file with a pickled `RankFunction`.
        connection: descriptor of a socket, which yields `Orders` and takes the report, both as JSON.
    """
    sys.stdout = sys.stderr  # the driver's standard output is the result of the study
    os.dup2(2, 1)
    with socket.socket(fileno=connection) as peer:
        orders = Orders.from_json(json.loads(_received(peer)))
        os.environ.update(orders.environment)
        sys.path[:] = orders.path
        run_rank = _load(program)
        report = run_rank(orders.assignment, rank=orders.rank, world_size=orders.world_size, gpus=orders.gpus)
        peer.sendall(json.dumps(report.to_json()).encode())


def leave(status: int) -> NoReturn:
    """End this process as PySpark ends workers: without exit functions, which are those of the server."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _received(peer: socket.socket) -> bytes:
    parts = []
    while part := peer.recv(2**16):
        parts.append(part)
    return b"".join(parts)


def _load(descriptor: int) -> RankFunction:
    with open(descriptor, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        run_rank: RankFunction = pickle.loads(content)
        return run_rank
