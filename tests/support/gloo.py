"""Forks processes that form a group of ranks over gloo, without Spark."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from spark_hpo.train.rendezvous.world import World

_LIMIT_S = 60


def on_ranks(size: int, body: Callable[[World], Any]) -> list[Any]:
    """Return what `body` returns on each of `size` ranks. With one rank, call it in this process.

    Raises:
        AssertionError: a rank has raised an exception.
    """
    cpu = torch.device("cpu")
    if size == 1:
        return [body(World(rank=0, size=1, device=cpu))]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:

        def run(rank: int) -> None:
            torch.set_num_threads(1)  # the threads of the parent do not exist here
            try:
                dist.init_process_group(
                    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
                )
                results.put((rank, body(World(rank=rank, size=size, device=cpu)), None))
                dist.barrier()
                dist.destroy_process_group()
            except BaseException:  # whatever ends a rank: the test shows it
                results.put((rank, None, traceback.format_exc()))

        processes = [context.Process(target=run, args=(rank,)) for rank in range(size)]
        for process in processes:
            process.start()
        found = sorted((results.get(timeout=_LIMIT_S) for _ in processes), key=lambda result: result[0])
        for process in processes:
            process.join(_LIMIT_S)
    failures = [failure for _, _, failure in found if failure]
    assert not failures, "\n".join(failures)
    return [result for _, result, _ in found]
