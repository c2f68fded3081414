"""Runs ranks in fresh processes, forked as on executors from a parent that trains nothing."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from spark_hpo.train.rank import RankSpec
from spark_hpo.train.rendezvous.world import RendezvousServer
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Report

LIMIT_S = 240


@contextmanager
def fork_server(*modules: str) -> Iterator[Any]:
    """Start the parent of the ranks, with these modules imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *modules])
    yield partial(run_ranks, context)


def run_ranks(
    context: Any, spec: RankSpec, assignment: Assignment, *, world_size: int = 1
) -> list[Report | None]:
    """Return the report of each rank; None: its process was killed."""
    rendezvous = RendezvousServer("127.0.0.1", timeout_s=60)
    spec = replace(spec, rendezvous=rendezvous.address)
    pipes, processes = [], []
    try:
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(sender, spec, assignment, rank, world_size))
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        return [_received(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.join(LIMIT_S)
        rendezvous.close()


def done(reports: list[Report | None]) -> Report:
    """The report of rank 0, whose training has succeeded."""
    for report in reports:
        assert report is not None
        assert report.failure is None, report.failure.traceback
    first = reports[0]
    assert first is not None
    return first


def curve(*reports: Report) -> list[dict[str, float]]:
    return [dict(measurement.metrics) for report in reports for measurement in report.curve]


def _rank(sender: Connection, spec: RankSpec, assignment: Assignment, rank: int, world_size: int) -> None:
    sender.send(run_rank(spec, assignment, rank=rank, world_size=world_size))


def _received(pipe: Connection) -> Report | None:
    assert pipe.poll(LIMIT_S), "a rank does not report"
    try:
        report: Report = pipe.recv()
    except EOFError:
        return None
    return report
