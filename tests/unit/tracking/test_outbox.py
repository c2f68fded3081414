"""The outbox of all that is sent to services."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from spark_hpo.tracking import outbox
from spark_hpo.tracking.outbox import Outbox


class Service:
    """Takes values while it is open, and fails otherwise."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, Any]] = []
        self.failures = 0
        self.open = threading.Event()

    def __call__(self, key: Any, value: Any) -> None:
        if not self.open.is_set():
            self.failures += 1
            raise OSError("is down")
        self.taken.append((key, value))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.01)


def test_outbox_sends_in_the_order_of_keys_and_only_the_latest_value_of_each() -> None:
    service, said = Service(), []
    box = Outbox(
        "test",
        service,
        on_outage=lambda error: said.append(str(error)),
        on_return=lambda: said.append("back"),
        at_end=lambda: said.append("end"),
    )
    for key, value in (("a", 1), ("b", 2), ("a", 3)):
        assert box.put(key, value)
    assert box.wait(0.1) == 2
    assert service.failures > 1
    service.open.set()
    assert box.wait(20) == 0
    assert service.taken == [("a", 3), ("b", 2)]
    assert box.close(20) == 0
    assert said == ["is down", "back", "end"]


def test_outbox_gives_up_what_it_is_told_and_takes_a_later_value_of_the_same_key() -> None:
    service = Service()
    box = Outbox("test", service, gives_up=lambda key, error, attempts: key == "bad" and attempts == 3)
    box.put("bad", 1)
    assert box.wait(20) == box.num_given_up == 1
    assert service.failures == 3
    service.open.set()
    box.put("bad", 2)
    assert box.close(20) == 0
    assert service.taken == [("bad", 2)]


def test_outbox_takes_no_more_keys_than_its_limit_and_ends_with_what_is_missing() -> None:
    box = Outbox("test", Service(), limit=2)
    assert [box.put(key, 0) for key in ("a", "b", "c", "a")] == [True, True, False, True]
    assert box.close(0.05) == 2
    assert box.close(0.05) == 2
