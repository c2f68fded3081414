"""Sharded checkpoints: every rank writes its part of a state, and any number of ranks can load it.

`torch.distributed.checkpoint` plans which rank writes and reads what.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    MetadataIndex,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch.distributed.tensor import DTensor

from spark_hpo.errors import CheckpointError, SparkHpoError, StorageError, TrialError
from spark_hpo.study_dir import manifest
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import state_tree
from spark_hpo.train.checkpoints.sharded_files import Content, Reader, Writer
from spark_hpo.train.rendezvous.world import World

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """This rank's part of a state, ready to be written."""

    skeleton: Any  # the state without its tensors
    tensors: dict[str, Tensor]  # describe what is sharded, and how
    local: Mapping[str, Tensor]  # what this rank has of them


def take(state: Mapping[str, Any], copy: Callable[[Mapping[str, Tensor]], Any] = dict) -> Snapshot:
    """Return a snapshot of a state.

    Args:
        copy: called with the tensors of this rank. By default they must not change until they are written.

    Raises:
        TrialError: the state holds another object.
    """
    skeleton, tensors = state_tree.split(state)
    state_tree.check_loadable(skeleton)
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise TrialError(f"a sharded checkpoint cannot hold {key!r}, which is not a dense tensor")
    local = {key: one.to_local() if isinstance(one, DTensor) else one for key, one in tensors.items()}
    return Snapshot(skeleton=skeleton, tensors=tensors, local=copy(local))


def save(storage: Storage, path: str, state: Mapping[str, Any], world: World) -> None:
    """Save a state whose tensors may be sharded over the ranks (DTensor). Every rank must call this.

    Each rank writes one part. The manifest at `path` comes last, so the checkpoint is whole or does not
    exist. A checkpoint that was there before is replaced, and its parts are deleted.

    Args:
        path: of the manifest; ends with `.json`.
        state: tensors and plain values in mappings and lists, with the same keys on all ranks. Plain values,
            and tensors that are not sharded, must be equal on all ranks: they are saved once.

    Raises:
        TrialError: the state holds another object.
        StorageError: a rank cannot write its part. All ranks raise it.
    """
    write(storage, path, take(state), world)


def write(
    storage: Storage,
    path: str,
    snapshot: Snapshot,
    world: World,
    *,
    group: dist.ProcessGroup | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Save a snapshot, as `save` does. Every rank must call this.

    Args:
        group: of all ranks, for a thread of its own; None: the default group.
        check: called before anything is written; what it raises on one rank, all ranks raise.
    """
    writer = Writer(storage, path, snapshot.skeleton, world.rank, check)
    try:
        with _translated(f"{storage.url}/{path}"):
            save_tensors(
                snapshot.tensors,
                storage_writer=writer,
                planner=_SnapshotPlanner(snapshot.local),
                process_group=group,
                no_dist=not world.is_distributed,
            )
    except BaseException:  # torch's CheckpointException is none of Exception's
        with contextlib.suppress(StorageError):  # a part that is left over does no harm
            storage.delete(manifest.part_path(path, writer.part))
        raise


class _SnapshotPlanner(DefaultSavePlanner):
    """Writes the copies of the tensors."""

    def __init__(self, local: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._local = local

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self._local[index.fqn]


def load(
    storage: Storage,
    path: str,
    state: MutableMapping[str, Any],
    world: World,
    *,
    like: Callable[[str], Tensor | None] = lambda key: None,
) -> None:
    """Load a checkpoint into a state, in place. Every rank must call this, with its own part of the state.

    Tensors of the state keep their device, and a DTensor its shards, whatever the number of ranks that have
    saved it. A tensor of the checkpoint that the state does not have is loaded whole onto the CPU, so an
    empty mapping becomes the whole state. Plain values become those of the checkpoint.

    Args:
        like: returns a DTensor by the key of a tensor that the state does not have, such as
            `optimizer/state/0/exp_avg`; if the shapes are equal, the tensor is sharded in the same way.

    Raises:
        CheckpointError: the checkpoint does not exist, is damaged, or does not fit the state. All ranks
            raise it.
        StorageError: it cannot be read. All ranks raise it.
    """
    content = _agreed(lambda: Content.read(storage, path), world, path)
    _, known = state_tree.split(state)
    targets: dict[str, Tensor] = {}
    for key, tensor in content.tensors.items():
        sharded, dtype = like(key), tensor.properties.dtype
        if key in known:
            targets[key] = known[key]
        elif isinstance(sharded, DTensor) and sharded.shape == tensor.size:
            targets[key] = torch.empty_like(sharded, dtype=dtype)
        else:
            targets[key] = torch.empty(tensor.size, dtype=dtype)
    with _translated(f"{storage.url}/{path}"):
        load_tensors(
            dict(targets),
            storage_reader=Reader(storage, path, content),
            planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            no_dist=not world.is_distributed,
        )
    loaded = state_tree.join(content.skeleton, targets)
    state.clear()
    state.update(loaded)


def load_whole(storage: Storage, path: str) -> dict[str, Any]:
    """Load a checkpoint onto the CPU of one process.

    Raises:
        CheckpointError: the checkpoint does not exist or is damaged.
        StorageError: it cannot be read.
    """
    state: dict[str, Any] = {}
    load(storage, path, state, World(rank=0, size=1, device=torch.device("cpu")))
    return state


def _agreed(read: Callable[[], T], world: World, path: str) -> T:
    """Return what `read` returns; if it fails on any rank, raise on all ranks."""
    error: SparkHpoError | None = None
    try:
        result = read()
    except SparkHpoError as exc:
        error = exc
    (failed,) = world.sum([float(error is not None)])
    if error is not None:
        raise error
    if failed:
        raise CheckpointError(f"{path}: another rank cannot read the checkpoint")
    return result


@contextlib.contextmanager
def _translated(place: str) -> Iterator[None]:
    """Raise the error of the first rank that has failed."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # with one rank
            yield
    except CheckpointException as exc:
        errors = [error for error, _ in exc.failures.values()]
        for error in errors:
            if not isinstance(error, Exception) or isinstance(error, SparkHpoError):
                raise error from exc
        raise CheckpointError(f"{place}: {errors[0]}") from exc
