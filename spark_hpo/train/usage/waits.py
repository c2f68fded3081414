"""Measures how long the steps of a rank wait for data."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_current = threading.local()  # `waits`: of the rank that runs in this thread
_patching = threading.Lock()


class DataWaits:
    """Divides the time of a rank's loops over batches: waiting for the next batch, and using it.

    Only the thread that creates it is measured: a thread that reads ahead keeps no step waiting. Iterators
    inside of each other, such as a DataLoader over the batches of `ctx.batches`, are measured once.

    A trace: a batch after 3 s, a step of 1 s, a batch after 1 s, a step of 5 s, the end:
        waited_s -> 4, stepped_s -> 6
    """

    def __init__(
        self,
        gpu_work: Callable[[], Callable[[], bool]] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            gpu_work: marks the work that the GPU has been given so far, and returns what tells if it is done.
                While the GPU is at work, no step waits. None: the rank uses the CPU.
        """
        self.waited_s = 0.0
        self.stepped_s = 0.0
        self.batches = 0
        self._gpu_work = gpu_work
        self._clock = clock
        self._thread = threading.get_ident()
        self._is_waiting = False
        self._given_at: float | None = None  # when the batch in use was given out; None: no loop runs

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and measure."""
        source = iter(batches)
        try:
            while True:
                yield self.take(
                    source.__next__
                )  # in no variable, which would keep it while the next one is read
        except StopIteration:
            return
        finally:  # also of a loop that breaks
            if self._given_at is not None and threading.get_ident() == self._thread:
                self.stepped_s += self._clock() - self._given_at
                self._given_at = None

    def take(self, fetch: Callable[[], T]) -> T:
        """Return the batch that `fetch` returns, and measure. An exception of it ends the loop."""
        if self._is_waiting or threading.get_ident() != self._thread:
            return fetch()
        is_done = self._gpu_work and self._gpu_work()
        began = self._clock()
        if self._given_at is not None:
            self.stepped_s += began - self._given_at
        self._is_waiting, self._given_at = True, None
        try:
            batch = fetch()
            self.batches += 1
            self._given_at = began
        finally:
            self._is_waiting = False
            now = self._clock()
            if is_done is None or is_done():
                self.waited_s += now - began
            else:
                self.stepped_s += now - began
            if self._given_at is not None:
                self._given_at = now
        return batch

    @contextmanager
    def of_data_loaders(self) -> Iterator[None]:
        """Measure every DataLoader of torch that this thread iterates, such as those of a Trainer."""
        _patch_data_loaders()
        before = getattr(_current, "waits", None)
        _current.waits = self
        try:
            yield
        finally:
            _current.waits = before


def gpu_work(device: torch.device) -> Callable[[], Callable[[], bool]] | None:
    """Return the argument of `DataWaits` for a device; None: it is the CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call] # missing in torch

    def mark() -> Callable[[], bool]:
        event.record(torch.cuda.current_stream(device))
        return event.query

    return mark


def _patch_data_loaders() -> None:
    """Make iterators of DataLoaders call the `DataWaits` of their thread. Idempotent.

    torch has no hook for this, and a DataLoader is all that Lightning, transformers and functions with a loop
    of their own have in common.
    """
    from torch.utils.data import dataloader

    kind: Any = getattr(dataloader, "_BaseDataLoaderIter", None)
    with _patching:
        if kind is None or getattr(kind.__next__, "is_timed", False):
            return
        fetch = kind.__next__

        @wraps(fetch)
        def timed(iterator: Any) -> Any:
            waits: DataWaits | None = getattr(_current, "waits", None)
            return fetch(iterator) if waits is None else waits.take(lambda: fetch(iterator))

        timed.is_timed = True  # type: ignore[attr-defined]
        kind.__next__ = timed
