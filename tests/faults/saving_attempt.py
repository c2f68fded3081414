"""A program that saves one checkpoint after the other until it is killed.

`python -m tests.faults.saving_attempt file|folder|sharded URL`. All tensors or files of checkpoint n have the
value n. A line is printed when checkpoint n is durable.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints.attempt_checkpoints import AttemptCheckpoints
from spark_hpo.train.rendezvous.world import World
from spark_hpo.trial import Assignment

NUMBERS = 2**20  # of each tensor
TENSORS = 8
FILES = 24


def assignment(attempt: int) -> Assignment:
    return Assignment(
        trial_id=4,
        attempt=attempt,
        params={},
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=9,
        checkpoint=None,
        seed=0,
    )


def state_of(kind: str, number: int, folder: Path, mesh: Any) -> dict[str, Any]:
    if kind == "folder":
        for name in range(FILES):
            (folder / f"{name}.bin").write_bytes(f"{number:4d} {name:4d}".encode() * 20_000)
        return {"function": folder, "number": number}
    tensors = {str(name): torch.full((NUMBERS,), float(number)) for name in range(TENSORS)}
    if kind == "sharded":
        from torch.distributed.tensor import Shard, distribute_tensor

        tensors = {name: distribute_tensor(one, mesh, [Shard(0)]) for name, one in tensors.items()}
    return {"model": tensors, "number": number}


def main(kind: str, url: str) -> None:
    rank, size, mesh = 0, 1, None
    if kind == "sharded":
        from torch.distributed.device_mesh import init_device_mesh

        size, store = 2, tempfile.mktemp()
        rank = int(os.fork() == 0)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
        mesh = init_device_mesh("cpu", (size,))
    world = World(rank=rank, size=size, device=torch.device("cpu"))
    checkpoints = AttemptCheckpoints(Storage(url), assignment(1), world)
    with tempfile.TemporaryDirectory() as name:
        for number in itertools.count(1):
            checkpoints.save_partial(state_of(kind, number, Path(name), mesh))
            checkpoints.wait()
            if rank == 0:
                print(number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
