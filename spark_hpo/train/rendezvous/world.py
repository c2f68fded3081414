"""The ranks of one assignment: how they form a process group, and their collective operations."""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from spark_hpo.backend.base import BarrierContext
from spark_hpo.errors import BackendError
from spark_hpo.train.rendezvous import frames
from spark_hpo.train.rendezvous.interface import gloo_on_reachable_address
from spark_hpo.train.rendezvous.store import StoreClient
from spark_hpo.train.rendezvous.store_server import StoreServer

_LEAVE_TIMEOUT = timedelta(seconds=10)

# Destroying a gloo group of torch 2.7 joins a thread that may wait for the interpreter's lock, which the
# caller holds. 2.13 is safe, but takes 20 ms: two threads look every 10 ms whether they should end. So groups
# live as long as the process, which serves one assignment.
_SAFE_DESTRUCTION = (2, 13)
_kept: list[object] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """Address and key of the rendezvous store: one on the driver, or one that rank 0 opens per attempt."""

    host: str | None  # of the store on the driver; None: rank 0 opens a store
    port: int = 0
    ports: Sequence[int] = (0,)  # that a store of rank 0 may listen on; 0 is any free port
    timeout_s: float  # for connecting, and for every collective operation
    key: bytes = field(default_factory=partial(secrets.token_bytes, frames.KEY_BYTES), repr=False)
    """Authenticates ranks and store to each other. Sent to the ranks by Spark."""


class RendezvousServer:
    """The rendezvous store on the driver. One store serves a study, with a group of keys per attempt."""

    def __init__(self, host: str, *, timeout_s: float, bind: str = "", ports: Sequence[int] = (0,)) -> None:
        """
        Args:
            host: the name or address at which executors reach this machine.
            bind: the address to listen on; empty: that of `host`.
            ports: the ports to try, in this order; 0 is any free port.

        Raises:
            BackendError: the address does not belong to this machine, or all ports are taken.
        """
        rendezvous = Rendezvous(host=host, timeout_s=timeout_s)
        try:
            self._store = StoreServer(bind or host, rendezvous.key, keep_s=timeout_s, ports=ports)
        except OSError as exc:
            is_taken = exc.errno == errno.EADDRINUSE
            cure = "allow one port per study of this machine" if is_taken else "set spark.driver.bindAddress"
            raise BackendError(
                f"cannot open the rendezvous store of the ranks on {bind or host} ({exc.strerror or exc}): "
                f"{cure}, or set resources.rendezvous: spark"
            ) from exc
        self.address = replace(rendezvous, port=self._store.port)

    def has_met(self, key: str, size: int) -> bool:
        """Return whether all ranks of an attempt have connected to the store.

        Args:
            key: as in `init_group`.
            size: the number of ranks.
        """
        return self._store.most_members(key) >= size

    def close(self) -> None:
        """Close the store and release its port. Idempotent."""
        self._store.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One rank and its peers, with the collective operations that training needs.

    With one rank every operation returns its input.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_distributed(self) -> bool:
        return self.size > 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all ranks, in double precision and equal on every rank."""
        if not self.is_distributed:
            return list(values)
        # On the device, because NCCL cannot reduce CPU tensors.
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sum of each tensor over all ranks. Shapes must be equal on all ranks."""
        if not self.is_distributed:
            return list(tensors)
        # One message: the tensors of a model are many and small.
        joined = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(joined)
        parts = torch.split(joined, [tensor.numel() for tensor in tensors])
        return [part.view_as(like).to(like.dtype) for part, like in zip(parts, tensors, strict=True)]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of every rank with those of rank 0."""
        if self.is_distributed:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return the tensors of all ranks, by rank, on the CPU. Shapes must be equal on all ranks."""
        if not self.is_distributed:
            return [dict(tensors)]
        ranks: list[dict[str, Tensor]] = [{} for _ in range(self.size)]
        for name, tensor in tensors.items():
            parts = [torch.empty_like(tensor, device=self.device) for _ in range(self.size)]
            dist.all_gather(parts, tensor.to(self.device).contiguous())
            for rank, part in zip(ranks, parts, strict=True):
                rank[name] = part.cpu()
        return ranks

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Return on rank 0 the rows of all ranks, in the order of ranks, on the CPU; elsewhere no rows.

        Args:
            tensor: [rows, ...]; each rank may have another number of rows.
        """
        if not self.is_distributed:
            return tensor.cpu()
        counts = [int(n) for n in self.sum([len(tensor) * (rank == self.rank) for rank in range(self.size)])]
        padded = torch.zeros((max(counts), *tensor.shape[1:]), dtype=tensor.dtype, device=self.device)
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts] if self.rank == 0 else None
        dist.gather(padded, parts, dst=0)
        if parts is None:
            return tensor[:0].cpu()
        return torch.cat([part[:count].cpu() for part, count in zip(parts, counts, strict=True)])


@contextlib.contextmanager
def connect(
    rendezvous: Rendezvous, barrier: BarrierContext | None, *, key: str, rank: int, size: int
) -> Iterator[StoreClient]:
    """Connect to the store of an attempt's ranks: the driver's, or rank 0's, which closes when all have left.

    Raises:
        torch.distributed.DistError: the store cannot be reached.
    """
    timeout = timedelta(seconds=rendezvous.timeout_s)
    with contextlib.ExitStack() as stack:
        host, port = rendezvous.host, rendezvous.port
        if host is None:
            assert barrier is not None, "the backend passes a barrier when the driver serves no store"
            host, port = _exchange(barrier, _open_store(rendezvous, barrier, stack) if rank == 0 else "")
        store = StoreClient(host, port, rendezvous.key, group=key, timeout=timeout)
        stack.callback(store.close)
        try:
            yield store
        finally:
            if rendezvous.host is None:
                _leave(store, rank=rank, size=size)


def _exchange(barrier: BarrierContext, text: str) -> tuple[str, int]:
    """Return host and port of rank 0's store.

    Args:
        text: of rank 0, what `_open_store` returns.
    """
    try:
        texts = barrier.gather(f"{barrier.host} {text}")
    except Exception as exc:  # Spark raises many types when a rank is lost
        raise dist.DistStoreError(f"Spark's barrier failed: {exc}") from exc
    host, _, port = texts[0].partition(" ")
    if not port.isdecimal():
        raise dist.DistStoreError(f"rank 0 cannot open a rendezvous store on {host}: {port}")
    return host, int(port)


def _open_store(rendezvous: Rendezvous, barrier: BarrierContext, stack: contextlib.ExitStack) -> str:
    """Open a store until the stack closes, and return its port, or else the reason why there is none.

    Rank 0 sends the reason to the other ranks, because Spark would keep them waiting if it raised an error.
    """
    try:
        server = StoreServer(
            barrier.host, rendezvous.key, keep_s=rendezvous.timeout_s, ports=rendezvous.ports
        )
    except OSError as exc:
        return exc.strerror or str(exc)
    stack.callback(server.close)
    return str(server.port)


def _leave(store: StoreClient, *, rank: int, size: int) -> None:
    """Announce that this rank leaves. Rank 0 waits for the others, because it serves the store."""
    with contextlib.suppress(dist.DistError):  # a peer that has died does not announce it
        store.set(f"left/{rank}", "")
        if rank == 0:
            store.wait([f"left/{peer}" for peer in range(size)], _LEAVE_TIMEOUT)


@contextlib.contextmanager
def init_group(
    rendezvous: Rendezvous | None,
    barrier: BarrierContext | None = None,
    *,
    key: str,
    rank: int,
    size: int,
    device: torch.device,
) -> Iterator[World]:
    """Form a process group with the other ranks of an attempt, and destroy it at the end.

    Args:
        barrier: needed when the driver serves no rendezvous store.
        key: identifies the attempt; equal on all of its ranks.

    Raises:
        torch.distributed.DistError: the other ranks did not connect in time.
    """
    world = World(rank=rank, size=size, device=device)
    if not world.is_distributed:
        yield world
        return
    assert rendezvous is not None, "several ranks need a rendezvous"
    timeout = timedelta(seconds=rendezvous.timeout_s)
    # `store` must live as long as the group, because torch refers only to its C++ half.
    with (
        connect(rendezvous, barrier, key=key, rank=rank, size=size) as store,
        gloo_on_reachable_address(store.local_address),
    ):
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
        try:
            yield world
            if device.type != "cuda":
                _kept.append(dist.group.WORLD)
        finally:
            if tuple(map(int, torch.__version__.split(".")[:2])) < _SAFE_DESTRUCTION:
                _kept.append(dist.group.WORLD)
            # After an error, peers then see a closed connection at once, instead of a timeout.
            dist.destroy_process_group()
