from pathlib import Path

import pytest

from spark_hpo.study_dir.retention import BEST, Owner, Retention, Role
from spark_hpo.study_dir.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path)
    for name in ("a", "b", "c"):
        storage.write(f"checkpoints/0/{name}", b"")
    return storage


def left(storage: Storage) -> list[str]:
    return storage.names("checkpoints/0")


def test_sweep_deletes_checkpoints_without_an_owner(storage: Storage) -> None:
    retention = Retention(storage)
    retention.keep(Owner(Role.TRIAL, 0), "checkpoints/0/a")
    retention.sweep()
    assert left(storage) == ["a"]


def test_checkpoint_is_deleted_with_its_last_owner(storage: Storage) -> None:
    retention = Retention(storage)
    retention.keep(Owner(Role.TRIAL, 0), "checkpoints/0/a")
    retention.keep(BEST, "checkpoints/0/a")
    retention.sweep()
    retention.keep(Owner(Role.TRIAL, 0), None)
    assert left(storage) == ["a"]
    retention.keep(BEST, None)
    assert left(storage) == []


def test_new_checkpoint_of_an_owner_replaces_the_old_one(storage: Storage) -> None:
    retention = Retention(storage)
    retention.keep(Owner(Role.TRIAL, 0), "checkpoints/0/a")
    retention.sweep()
    storage.write("checkpoints/0/b", b"")
    retention.keep(Owner(Role.TRIAL, 0), "checkpoints/0/b")
    retention.keep(Owner(Role.TRIAL, 0), "checkpoints/0/b")
    assert left(storage) == ["b"]


def test_retention_deletes_nothing_before_sweep(storage: Storage) -> None:
    retention = Retention(storage)
    retention.keep(Owner(Role.TRIAL, 0), "checkpoints/0/a")
    retention.keep(Owner(Role.TRIAL, 0), "checkpoints/0/b")
    retention.keep(Owner(Role.TRIAL, 0), None)
    assert left(storage) == ["a", "b", "c"]


def test_release_without_a_checkpoint_does_nothing(storage: Storage) -> None:
    retention = Retention(storage)
    retention.keep(Owner(Role.TRIAL, 0), "checkpoints/0/a")
    retention.sweep()
    retention.keep(Owner(Role.TRIAL, 7), None)
    assert left(storage) == ["a"]
