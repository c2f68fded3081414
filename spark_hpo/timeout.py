"""Calls with a time limit, for functions that have none of their own."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def _thread(target: Callable[[], None]) -> Thread:
    return Thread(target=target, name="spark_hpo-call", daemon=True)


def call_within(
    limit_s: float, function: Callable[[], T], *, thread: Callable[[Callable[[], None]], Thread] = _thread
) -> T:
    """Call a function in a thread, which continues in the background if the function takes too long.

    Args:
        thread: makes the thread; by default a daemon thread.

    Raises:
        TimeoutError: the function takes longer. Its own exceptions are raised too.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as exc:  # whatever it is, it is raised in the caller's thread
            errors.append(exc)

    worker = thread(run)
    worker.start()
    worker.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {limit_s:.0f} s")
    return results[0]
