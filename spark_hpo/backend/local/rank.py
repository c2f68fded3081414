"""The code of a rank's process: receives its orders, runs the rank, and sends its report."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pickle
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from spark_hpo.backend.base import RankFunction
from spark_hpo.trial import Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What one rank has to do."""

    assignment: Assignment
    rank: int
    world_size: int
    gpus: tuple[int, ...]
    environment: Mapping[str, str]  # to be added


@dataclass(frozen=True, slots=True)
class Program:
    """What all ranks of a backend run."""

    path: tuple[str, ...]  # of modules, sys.path
    run_rank: bytes  # a pickled RankFunction, which may need the path


def main(program: int, connection: int) -> None:
    """Run a rank.

    Args:
        program: descriptor of a file with a pickled `Program`.
        connection: descriptor of a socket, which yields pickled `Orders` and takes the report as JSON.
    """
    sys.stdout = sys.stderr  # the driver's standard output is the result of the study
    os.dup2(2, 1)
    with socket.socket(fileno=connection) as peer:
        orders: Orders = pickle.loads(_received(peer))
        os.environ.update(orders.environment)
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
        program: Program = pickle.loads(content)
    sys.path[:] = program.path
    run_rank: RankFunction = pickle.loads(program.run_rank)
    return run_rank
