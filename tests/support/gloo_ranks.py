"""Runs the ranks of an assignment as processes that are connected by gloo, without Spark."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any

import cloudpickle

from spark_hpo.backend.base import merge_reports
from spark_hpo.train.rank import RankSpec
from spark_hpo.trial import Assignment, Report

LIMIT_S = 120.0

_context = multiprocessing.get_context("forkserver")
# Importing these takes seconds, so the ranks are forked from a server that has imported them.
_context.set_forkserver_preload(["spark_hpo.train.worker", "torch._dynamo", "torch.distributed.fsdp"])


def run_ranks(spec: RankSpec, assignment: Assignment, ranks: int = 2) -> Report:
    """Run an assignment on several ranks, and return its report as a backend would."""
    return merge_reports(reports_of_ranks(spec, assignment, ranks), seconds=0.0)


def reports_of_ranks(spec: RankSpec, assignment: Assignment, ranks: int = 2) -> Sequence[Report]:
    """Run an assignment on several ranks, and return their reports.

    Args:
        spec: with the address of a `RendezvousServer`.
    """
    # By value: the module of a test need not be importable in the processes.
    sent = cloudpickle.dumps((spec, assignment))
    with _context.Pool(ranks, initializer=_limit_threads) as pool:
        answers = [pool.apply_async(_run, (sent, rank, ranks)) for rank in range(ranks)]
        return [answer.get(LIMIT_S) for answer in answers]


def _limit_threads() -> None:
    import torch

    torch.set_num_threads(1)


def _run(sent: bytes, rank: int, ranks: int) -> Any:
    from spark_hpo.train.worker import run_rank

    spec, assignment = cloudpickle.loads(sent)
    return run_rank(spec, assignment, rank=rank, world_size=ranks)
