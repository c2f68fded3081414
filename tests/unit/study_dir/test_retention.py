from pathlib import Path

import pytest

from spark_hpo.study_dir.retention import BEST, Owner, Retention
from spark_hpo.study_dir.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path)
    for name in ("a", "b", "c"):
        storage.write(f"checkpoints/0/{name}", b"")
    return storage


def left(storage: Storage) -> list[str]:
    return storage.names("checkpoints/0")


def test_what_nobody_owns_is_swept(storage: Storage) -> None:
    retention = Retention(storage)
    retention.keep(Owner.trial(0), "checkpoints/0/a")
    retention.sweep()
    assert left(storage) == ["a"]


def test_a_checkpoint_goes_with_its_last_owner(storage: Storage) -> None:
    retention = Retention(storage)
    retention.keep(Owner.trial(0), "checkpoints/0/a")
    retention.keep(BEST, "checkpoints/0/a")
    retention.sweep()
    retention.release(Owner.trial(0))
    assert left(storage) == ["a"]
    retention.release(BEST)
    assert left(storage) == []


def test_a_new_checkpoint_supersedes_the_old_one(storage: Storage) -> None:
    retention = Retention(storage)
    retention.keep(Owner.trial(0), "checkpoints/0/a")
    retention.sweep()
    storage.write("checkpoints/0/b", b"")
    retention.keep(Owner.trial(0), "checkpoints/0/b")
    retention.keep(Owner.trial(0), "checkpoints/0/b")
    assert left(storage) == ["b"]


def test_a_replay_deletes_nothing_until_it_is_over(storage: Storage) -> None:
    retention = Retention(storage)
    retention.keep(Owner.trial(0), "checkpoints/0/a")
    retention.keep(Owner.trial(0), "checkpoints/0/b")
    retention.release(Owner.trial(0))
    assert left(storage) == ["a", "b", "c"]


def test_releasing_what_is_not_kept_changes_nothing(storage: Storage) -> None:
    retention = Retention(storage)
    retention.keep(Owner.trial(0), "checkpoints/0/a")
    retention.sweep()
    retention.release(Owner.trial(7))
    assert left(storage) == ["a"]
