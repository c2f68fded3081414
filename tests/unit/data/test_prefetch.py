import threading
from collections.abc import Iterator

import pytest

from spark_hpo.data.readers.prefetch import ahead


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(ahead(lambda n: n * n, range(50))) == [n * n for n in range(50)]


def test_prefetch_computes_one_result_ahead() -> None:
    started: list[int] = []
    second = threading.Event()

    def work(n: int) -> int:
        started.append(n)
        if n == 1:
            second.set()
        return n

    results = ahead(work, range(10))
    next(results)
    assert second.wait(10)
    results.close()  # type: ignore[attr-defined]
    assert started == [0, 1]


def test_prefetch_raises_errors_in_order_and_ends_its_thread() -> None:
    def work(n: int) -> int:
        if n == 2:
            raise ValueError("two")
        return n

    results: Iterator[int] = ahead(work, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert not [t for t in threading.enumerate() if t.name.startswith("reader")]
