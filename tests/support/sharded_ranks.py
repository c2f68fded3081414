"""A program for test_sharded_checkpoint: two ranks save a model sharded by FSDP2; one and three load it.

Its ranks are forked, because importing FSDP takes seconds. It prints one line of JSON.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from spark_hpo.errors import CheckpointError
from spark_hpo.study_dir import manifest
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import sharded
from spark_hpo.train.rendezvous.world import World

PATH = "checkpoints/trial-000001/000003-1.json"
ROWS = 6

_groups = itertools.count()

multiprocessing.set_start_method("fork")


def ranks(size: int, body: Callable[[World], Any], folder: str) -> list[Any]:
    """Return what `body` returns on each rank."""
    results = multiprocessing.Queue()  # type: ignore[var-annotated]

    store = f"file://{folder}/store-{next(_groups)}"

    def one(rank: int) -> None:
        try:
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
            results.put((rank, body(World(rank=rank, size=size, device=torch.device("cpu")))))
            dist.barrier()
        except BaseException:  # whatever ends a rank: the test shows it
            results.put((rank, traceback.format_exc()))
        sys.stdout.flush()

    processes = [multiprocessing.Process(target=one, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    return [found[rank] for rank in range(size)]


def build(world: World, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model whose widths no number of ranks divides."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.BatchNorm1d(7), nn.Linear(7, 1))
    mesh = init_device_mesh("cpu", (world.size,))
    for layer in (model[0], model[3]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    rows = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(1))
    loss = (model(rows) - rows.sum(dim=1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "generators": [{"cpu": torch.full((3,), float(rank))} for rank in range(world.size)],
        "resource": 0,
    }


def summed(state: dict[str, Any]) -> dict[str, float]:
    """The sum of each tensor of the model and its optimizer, over all ranks."""
    named = dict(state["model"].items())
    for name, values in state["optimizer"]["state"].items():
        named |= {f"{name}.{key}": value for key, value in values.items()}
    full = {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in named.items()
    }
    return {name: float(value.double().sum()) for name, value in full.items()}


def main(folder: str, url: str) -> None:
    storage = Storage(url)

    def save(world: World) -> Any:
        model, optimizer = build(world, seed=0)
        for _ in range(3):
            step(model, optimizer)
        state = {**state_of(model, optimizer, world), "resource": 3, "names": ("a", None)}
        sharded.save(storage, PATH, {**state, "resource": 2}, world)
        sharded.save(storage, PATH, state, world)
        return {"sums": summed(state), "next": step(model, optimizer)}

    def load(world: World) -> Any:
        model, optimizer = build(world, seed=world.size)
        state = state_of(model, optimizer, world)
        sharded.load(storage, PATH, state, world)
        shards = [p.to_local().numel() for p in model.parameters()]
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
        model.load_state_dict(state["model"])
        return {
            "sums": summed(state_of(model, optimizer, world)),
            "next": step(model, optimizer),
            "resource": state["resource"],
            "names": state["names"],
            "generators": len(state["generators"]),
            "shard": sum(shards),
        }

    def load_damaged(world: World) -> Any:
        model, optimizer = build(world, seed=0)
        try:
            sharded.load(storage, PATH, state_of(model, optimizer, world), world)
        except CheckpointError as exc:
            return str(exc)

    def save_on_full_disk(world: World) -> Any:
        model, optimizer = build(world, seed=0)
        broken = storage if world.rank == 0 else Storage(f"{folder}/a-file")
        try:
            sharded.save(broken, PATH, state_of(model, optimizer, world), world)
        except Exception as exc:  # the test names the type that it expects
            return type(exc).__name__

    saved = ranks(2, save, folder)
    before = storage.read(PATH)
    names = storage.names(PATH.rpartition("/")[0])
    whole = sharded.load_whole(storage, PATH)
    result = {
        "saved": saved,
        "names": names,
        "whole": {name: float(value.double().sum()) for name, value in whole["model"].items()},
        "one": ranks(1, load, folder),
        "three": ranks(3, load, folder),
    }
    with open(f"{folder}/a-file", "w"):
        pass
    result["failed"] = ranks(2, save_on_full_disk, folder)
    result["unchanged"] = storage.read(PATH) == before and storage.names(PATH.rpartition("/")[0]) == names
    found = manifest.read(storage, PATH)
    assert found is not None
    part = manifest.part_path(PATH, found.parts[1])
    data = bytearray(storage.read(part) or b"")
    data[5] ^= 1
    storage.write(part, bytes(data))
    result["damaged"] = ranks(2, load_damaged, folder)
    storage.delete(part)
    result["missing"] = ranks(2, load_damaged, folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
