"""Prefetching: compute the next result while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    """Like `map`, but compute the next result in a background thread while the current one is used.

    Results keep the order of the items, and at most one finished result is buffered. Closing the generator
    ends the thread.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="reader")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) == 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
