"""The ranks of one assignment: who they are, how they meet, what they reduce."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from spark_hpo.errors import BackendError
from spark_hpo.train.rendezvous import frames
from spark_hpo.train.rendezvous.store import StoreClient
from spark_hpo.train.rendezvous.store_server import StoreServer
from spark_hpo.trial import Meeting

_PARTING_LIMIT = timedelta(seconds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """Where the ranks of a study meet: a store on the driver, or one that rank 0 opens for each attempt."""

    host: str | None  # of the store on the driver; None: there is none
    port: int = 0
    timeout_s: float  # for meeting, and for every collective operation after it
    key: bytes = field(default_factory=partial(secrets.token_bytes, frames.KEY_BYTES), repr=False)
    """What ranks prove to the store, and it to them. Spark brings it to them, and nobody else has it."""


class RendezvousServer:
    """The store on the driver. One serves a whole study: every attempt has a group of keys of its own."""

    def __init__(self, host: str, *, timeout_s: float, bind: str = "") -> None:
        """
        Args:
            host: under which executors reach this machine.
            bind: the address to listen on; empty: the host's own.

        Raises:
            BackendError: it is none of this machine's.
        """
        rendezvous = Rendezvous(host=host, timeout_s=timeout_s)
        try:
            self._store = StoreServer(bind or host, rendezvous.key, keep_s=timeout_s)
        except OSError as exc:
            raise BackendError(
                f"{bind or host}: ranks cannot meet there, because this process cannot listen on it "
                f"({exc.strerror or exc}): set spark.driver.bindAddress, or resources.rendezvous: spark"
            ) from exc
        self.address = replace(rendezvous, port=self._store.port)

    def close(self) -> None:
        """Give the port back. Idempotent."""
        self._store.close()


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
def meet(
    rendezvous: Rendezvous, meeting: Meeting | None, *, key: str, rank: int, size: int
) -> Iterator[StoreClient]:
    """The store of an attempt's ranks: the driver's, or rank 0's own, which is there until all have left.

    Raises:
        torch.distributed.DistError: the store cannot be reached.
    """
    timeout = timedelta(seconds=rendezvous.timeout_s)
    with contextlib.ExitStack() as stack:
        host, port = rendezvous.host, rendezvous.port
        if host is None:
            assert meeting is not None, "the backend brings ranks together when the driver does not"
            server = _open_store(rendezvous, meeting) if rank == 0 else None
            if server is not None:
                stack.callback(server.close)
            host, port = _exchange(meeting, server)
        store = StoreClient(host, port, rendezvous.key, group=key, timeout=timeout)
        stack.callback(store.close)
        try:
            yield store
        finally:
            if rendezvous.host is None:
                _part(store, rank=rank, size=size)


def _exchange(meeting: Meeting, server: StoreServer | None) -> tuple[str, int]:
    """Where rank 0's store is. Rank 0 comes even when it has none: Spark would keep the others waiting."""
    try:
        texts = meeting.gather(f"{meeting.host} {server.port}" if server is not None else "")
    except Exception as exc:  # whatever Spark raises: a rank is lost
        raise dist.DistStoreError(f"the ranks did not meet: {exc}") from exc
    host, _, port = texts[0].partition(" ")
    if not port:
        raise dist.DistStoreError(f"rank 0 could not open a store under its own address, {meeting.host}")
    return host, int(port)


def _open_store(rendezvous: Rendezvous, meeting: Meeting) -> StoreServer | None:
    with contextlib.suppress(OSError):
        return StoreServer(meeting.host, rendezvous.key, keep_s=rendezvous.timeout_s)
    return None


def _part(store: StoreClient, *, rank: int, size: int) -> None:
    """Leave the store of rank 0, which leaves last."""
    with contextlib.suppress(dist.DistError):  # a peer that has died says no goodbye
        store.set(f"left/{rank}", "")
        if rank == 0:
            store.wait([f"left/{peer}" for peer in range(size)], _PARTING_LIMIT)


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
    # This frame holds the store while torch does: torch keeps no reference to what Python is in it.
    with meet(rendezvous, meeting, key=key, rank=rank, size=size) as store:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
        try:
            yield world
        finally:
            # Also after an error: the peers then see a closed connection instead of waiting for the timeout.
            dist.destroy_process_group()
