import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spark_hpo.errors import LeaseError
from spark_hpo.study_dir.lease import Lease, is_held
from spark_hpo.study_dir.storage import Storage


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def test_lease_is_refused_while_its_holder_is_alive(storage: Storage) -> None:
    Lease.acquire(storage)
    with pytest.raises(LeaseError, match=r"locked by pid \d+ on "):
        Lease.acquire(storage)


def test_is_held_without_taking_the_lease(storage: Storage) -> None:
    assert not is_held(storage)
    lease = Lease.acquire(storage)
    assert is_held(storage)
    lease.check()  # it still holds the lease
    lease.release()
    assert not is_held(storage)


def test_lease_that_was_released_is_acquired_with_the_next_epoch(storage: Storage) -> None:
    first = Lease.acquire(storage)
    first.release()
    assert Lease.acquire(storage).epoch == first.epoch + 1


def test_lease_that_expired_is_taken_over_and_its_holder_notices(storage: Storage) -> None:
    clock = Clock()
    first = Lease.acquire(storage, duration_s=60, clock=clock)
    clock.now += 61
    second = Lease.acquire(storage, duration_s=60, clock=clock)
    with pytest.raises(LeaseError, match="lost the study"):
        first.check()
    second.check()
    first.release()  # does nothing, because the lease is lost
    second.check()


def test_lease_that_is_renewed_does_not_expire(storage: Storage) -> None:
    clock = Clock()
    first = Lease.acquire(storage, duration_s=60, clock=clock)
    for _ in range(5):
        clock.now += 40
        first.renew()
    with pytest.raises(LeaseError):
        Lease.acquire(storage, duration_s=60, clock=clock)


def test_lease_of_a_killed_driver_on_this_machine_is_free_at_once(storage: Storage) -> None:
    program = (
        "import sys, os, signal; from spark_hpo.study_dir.lease import Lease; "
        "from spark_hpo.study_dir.storage import Storage;"
        "Lease.acquire(Storage(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, storage.url], check=False, timeout=60)
    assert Lease.acquire(storage).epoch == 2


def test_lease_skips_an_epoch_that_was_created_without_a_lease(storage: Storage) -> None:
    storage.create("epochs/000001", b"")
    assert Lease.acquire(storage).epoch == 2


def test_lease_file_that_is_torn_is_ignored(storage: Storage) -> None:
    storage.write("lease.json", b'{"epoch": ')
    assert Lease.acquire(storage, least_epoch=4).epoch == 4
    assert json.loads(storage.read("lease.json") or b"")["epoch"] == 4


def test_lease_of_a_driver_that_stalls_while_acquiring_it_is_refused(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without file locks, the slower of two drivers finds out."""
    original = Lease._write
    taken: list[Lease] = []

    def stall(lease: Lease) -> None:
        if not taken and lease.storage is storage:  # a lease of another test may be renewed meanwhile
            monkeypatch.setattr(Lease, "_write", original)
            taken.append(Lease._acquire(storage, 1, 60.0, Clock()))
        original(lease)

    monkeypatch.setattr(Lease, "_write", stall)
    with pytest.raises(LeaseError, match="another driver has just started"):
        Lease._acquire(storage, 1, 60.0, Clock())
    assert taken[0].epoch == 2


def test_lease_is_renewed_in_the_background(storage: Storage) -> None:
    lease = Lease.acquire(storage, duration_s=0.6)
    lease.keep_alive()
    deadline = time.monotonic() + 10
    first = json.loads(storage.read("lease.json") or b"")["expires_at"]
    while json.loads(storage.read("lease.json") or b"")["expires_at"] == first:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lease.release()
    Lease.acquire(storage)


def test_lease_that_is_released_during_a_renewal_stays_released(tmp_path: Path) -> None:
    class SlowStorage(Storage):
        """Renewals are slow: their writes wait to be let through."""

        writing, may_write = threading.Event(), threading.Event()

        def write(self, name: str, data: bytes) -> None:
            if threading.current_thread().name == "spark_hpo-lease":
                self.writing.set()
                assert self.may_write.wait(60)
            super().write(name, data)

    storage = SlowStorage(tmp_path)
    lease = Lease.acquire(storage, duration_s=0.6)
    before = set(threading.enumerate())
    lease.keep_alive()
    assert storage.writing.wait(60)
    [renewing] = set(threading.enumerate()) - before
    releasing = threading.Thread(target=lease.release)
    releasing.start()
    releasing.join(0.2)
    storage.may_write.set()
    releasing.join(60)
    renewing.join(60)
    assert json.loads(storage.read("lease.json") or b"")["released"]
    Lease.acquire(storage)


def test_lease_of_another_pid_namespace_holds_until_it_expires(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pods with one host name: a pid of one means nothing in the other."""
    Lease.acquire(storage)
    record = json.loads(storage.read("lease.json") or b"")
    boot, _, namespace = record["machine"].partition(":")
    for other in (f"{boot}:{int(namespace) + 1}", f"not-{boot}:{namespace}", ""):
        storage.write("lease.json", json.dumps({**record, "pid": 2**22 + 1, "machine": other}).encode())
        with pytest.raises(LeaseError):
            Lease.acquire(storage)
    storage.write("lease.json", json.dumps({**record, "pid": 2**22 + 1}).encode())
    Lease.acquire(storage)  # a pid of this namespace that does not exist


@pytest.mark.parametrize("shift_s", [-3600, 3600])
@pytest.mark.parametrize("kind", ["local", "memory"])
def test_lease_of_another_machine_does_not_depend_on_its_clock(
    tmp_path: Path, kind: str, shift_s: int
) -> None:
    storage = Storage(tmp_path if kind == "local" else f"memory://{tmp_path}")
    Lease.acquire(storage, clock=lambda: time.time() + shift_s)
    record = {**json.loads(storage.read("lease.json") or b""), "machine": "another"}
    storage.write("lease.json", json.dumps(record).encode())
    assert is_held(storage)
    with pytest.raises(LeaseError):
        Lease.acquire(storage)
    if kind == "local":
        os.utime(tmp_path / "lease.json", (time.time() - 61,) * 2)
        assert not is_held(storage)
        assert Lease.acquire(storage).epoch == 2
        assert not list(tmp_path.glob(".tmp-*"))


def test_lease_of_a_later_version_is_read(storage: Storage) -> None:
    Lease.acquire(storage)
    record = json.loads(storage.read("lease.json") or b"")
    storage.write("lease.json", json.dumps({**record, "colour": "red"}).encode())
    assert is_held(storage)
