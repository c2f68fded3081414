"""The ranks of one assignment: who they are, how they meet, what they reduce."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore  # dist has them, but does not export them

from spark_hpo.trial import Meeting

_PARTING_LIMIT = timedelta(seconds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """Where the ranks of a study meet: a store on the driver, or one that rank 0 opens for each attempt."""

    host: str | None  # of the store on the driver; None: there is none
    port: int = 0
    timeout_s: float  # for meeting, and for every collective operation after it


class RendezvousServer:
    """The store on the driver. One serves a whole study: every attempt has its own prefix of keys."""

    def __init__(self, host: str, *, timeout_s: float) -> None:
        # Port 0: the store picks a free one, and nobody else can take it in between.
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        self.address = Rendezvous(host=host, port=self._store.port, timeout_s=timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One rank's place among the ranks of its assignment."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_distributed(self) -> bool:
        return self.size > 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks, in double precision; the same on every rank."""
        if not self.is_distributed:
            return list(values)
        # MPS and some others know no float64, and NCCL knows no CPU tensors.
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the values of rank 0, in place."""
        if self.is_distributed:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The tensors of every rank, by rank, on the CPU. Shapes must be equal on all ranks."""
        if not self.is_distributed:
            return [dict(tensors)]
        ranks: list[dict[str, Tensor]] = [{} for _ in range(self.size)]
        for name, tensor in tensors.items():
            parts = [torch.empty_like(tensor, device=self.device) for _ in range(self.size)]
            dist.all_gather(parts, tensor.to(self.device).contiguous())
            for rank, part in zip(ranks, parts, strict=True):
                rank[name] = part.cpu()
        return ranks


@contextlib.contextmanager
def meet(rendezvous: Rendezvous, meeting: Meeting | None, *, rank: int, size: int) -> Iterator[TCPStore]:
    """The store of an attempt's ranks: the driver's, or rank 0's own, which is there until all have left.

    Raises:
        torch.distributed.DistError: the store cannot be reached.
    """
    timeout = timedelta(seconds=rendezvous.timeout_s)
    if rendezvous.host is not None:
        yield TCPStore(rendezvous.host, rendezvous.port, is_master=False, timeout=timeout)
        return
    assert meeting is not None, "the backend brings ranks together when the driver does not"
    store = _open_store(meeting, timeout) if rank == 0 else None
    # Rank 0 comes even when it has no store: Spark would keep the others waiting for ever.
    host, _, port = _gather(meeting, f"{meeting.host} {store.port}" if store is not None else "")[
        0
    ].partition(" ")
    if not port:
        raise dist.DistStoreError(f"rank 0 could not open a store under its own address, {meeting.host}")
    if store is None:
        store = TCPStore(host, int(port), is_master=False, timeout=timeout)
    try:
        yield store
    finally:
        with contextlib.suppress(dist.DistError):  # a peer that has died says no goodbye
            store.set(f"left/{rank}", "")
            if rank == 0:
                store.wait([f"left/{peer}" for peer in range(size)], _PARTING_LIMIT)


def _gather(meeting: Meeting, text: str) -> Sequence[str]:
    try:
        return meeting.gather(text)
    except Exception as exc:  # whatever Spark raises: a rank is lost
        raise dist.DistStoreError(f"the ranks did not meet: {exc}") from exc


def _open_store(meeting: Meeting, timeout: timedelta) -> TCPStore | None:
    with contextlib.suppress(dist.DistError):
        return TCPStore(meeting.host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    return None


@contextlib.contextmanager
def join(
    rendezvous: Rendezvous | None,
    meeting: Meeting | None = None,
    *,
    key: str,
    rank: int,
    size: int,
    device: torch.device,
) -> Iterator[World]:
    """Meet the other ranks of an assignment, and part from them again.

    Args:
        meeting: needed when the rendezvous is not on the driver.
        key: the same for all ranks of one attempt, and for no other.

    Raises:
        torch.distributed.DistError: the others did not come in time.
    """
    world = World(rank=rank, size=size, device=device)
    if not world.is_distributed:
        yield world
        return
    assert rendezvous is not None, "several ranks need a rendezvous"
    timeout = timedelta(seconds=rendezvous.timeout_s)
    with meet(rendezvous, meeting, rank=rank, size=size) as store:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(key, store),
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
        try:
            yield world
        finally:
            # Also after an error: the peers then see a closed connection instead of waiting for the timeout.
            dist.destroy_process_group()
