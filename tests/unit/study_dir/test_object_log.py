"""`ObjectLog`: lines become segments, and no line is lost or duplicated on the way."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from spark_hpo.errors import StorageError
from spark_hpo.study_dir import storage as storage_module
from spark_hpo.study_dir.storage import ObjectLog, Storage

NAME = "journal/000001"


class CountingStorage(Storage):
    """Counts requests, and calls hooks around changes and after listings."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reads = self.listings = self.changes = 0
        self.before: Callable[[int], None] = lambda change: None
        self.after: Callable[[int], None] = lambda change: None
        self.after_listing: Callable[[], None] = lambda: None

    def read(self, name: str) -> bytes | None:
        self.reads += 1
        return super().read(name)

    def names(self, folder: str, *, hidden: bool = False) -> list[str]:
        self.listings += 1
        found = super().names(folder, hidden=hidden)
        self.after_listing()
        return found

    def write(self, name: str, data: bytes) -> None:
        self._change(lambda: super(CountingStorage, self).write(name, data))

    def delete(self, name: str) -> None:
        self._change(lambda: super(CountingStorage, self).delete(name))

    def _change(self, call: Callable[[], None]) -> None:
        self.changes += 1
        self.before(self.changes)
        call()
        self.after(self.changes)


class Killed(BaseException):
    """Stands for kill -9: the package does not catch it."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_LINES_PER_SEGMENT", 4)


def text(number: int) -> bytes:
    return f"line {number}\n".encode()


def append(log: ObjectLog, numbers: range) -> None:
    for number in numbers:
        log.append(f"line {number}")


def read(url: str) -> list[bytes]:
    return Storage(url).log(NAME).lines()


def kill_at(change: int) -> Callable[[int], None]:
    def hook(now: int) -> None:
        if now == change:
            raise Killed

    return hook


@pytest.mark.parametrize("on", ["objects", "a mount that cannot append"])
def test_object_log_keeps_the_order_of_lines_in_few_objects(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: str
) -> None:
    monkeypatch.setattr(storage_module, "_NO_APPEND", (str(tmp_path),))
    place = url if on == "objects" else str(tmp_path / "study")
    log = Storage(place).log(NAME)
    assert isinstance(log, ObjectLog)
    append(log, range(600))
    assert len(Storage(place).names(NAME)) == 2 + 600 % 256
    assert read(place) == [text(number) for number in range(600)]
    log.close()
    assert Storage(place).names(NAME) == [
        "000000001-000000256.jsonl",
        "000000257-000000512.jsonl",
        "000000513-000000600.jsonl",
    ]
    assert read(place) == [text(number) for number in range(600)]


def test_object_log_reads_each_segment_in_one_request(url: str) -> None:
    append(ObjectLog(Storage(url), NAME), range(10_000))
    watched = CountingStorage(url)
    assert len(watched.log(NAME).lines()) == 10_000
    assert watched.reads == 10_000 // 256 + 10_000 % 256
    assert watched.listings == 1


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.usefixtures("short_segments")
def test_object_log_of_a_writer_killed_at_any_step_is_complete(url: str, when: str) -> None:
    """Every line whose `append` has returned is read back; the line in flight may be too."""
    steps = 0
    while True:
        steps += 1
        place = f"{url}/{steps}"
        storage = CountingStorage(place)
        setattr(storage, when, kill_at(steps))
        log = ObjectLog(storage, NAME)
        durable = 0
        try:
            for number in range(11):
                log.append(f"line {number}")
                durable += 1
            log.close()
        except Killed:
            found = read(place)
            assert found[:durable] == [text(number) for number in range(durable)]
            assert found[durable:] in ([], [text(durable)])
        else:
            break
    # Each line is written and deleted once, and there are three segments.
    assert steps - 1 == 11 + 11 + 3


@pytest.mark.usefixtures("short_segments")
def test_object_log_is_read_completely_while_it_is_sealed(url: str) -> None:
    writer = ObjectLog(Storage(url), NAME)
    append(writer, range(7))
    reader = CountingStorage(url)
    grows = iter([range(7, 9), range(9, 14)])  # both seal lines that the reader has just listed
    reader.after_listing = lambda: append(writer, next(grows, range(0)))
    found = reader.log(NAME).lines()
    assert found == [text(number) for number in range(len(found))]
    assert len(found) >= 7
    assert reader.listings == 3


@pytest.mark.usefixtures("short_segments")
def test_object_log_whose_objects_disappear_is_an_error_with_its_name(url: str) -> None:
    append(ObjectLog(Storage(url), NAME), range(2))
    reader = CountingStorage(url)
    listing = reader.names(NAME)
    reader.names = lambda folder, hidden=False: listing  # type: ignore[method-assign]
    Storage(url).delete(f"{NAME}/000000001.json")
    with pytest.raises(StorageError, match=NAME):
        reader.log(NAME).lines()


@pytest.mark.usefixtures("short_segments")
def test_object_log_keeps_a_line_whose_write_seemed_to_fail(url: str) -> None:
    storage = CountingStorage(url)
    log = ObjectLog(storage, NAME)
    append(log, range(2))

    def lose_the_reply(change: int) -> None:
        if change == 3:
            raise StorageError("no reply")

    storage.after = lose_the_reply
    with pytest.raises(StorageError):
        log.append("line 2")
    seen = read(url)
    assert seen == [text(number) for number in range(3)]
    append(log, range(3, 12))
    log.close()
    assert read(url) == [text(number) for number in range(12)]


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("fails", [5, 7])  # writing the segment; deleting the second of its lines
def test_object_log_warns_when_a_segment_cannot_be_written(
    url: str, fails: int, caplog: pytest.LogCaptureFixture
) -> None:
    storage = CountingStorage(url)

    def refuse(change: int) -> None:
        if change == fails:
            raise StorageError("delete: not allowed")

    storage.before = refuse
    with caplog.at_level(logging.WARNING, "spark_hpo"):
        append(ObjectLog(storage, NAME), range(6))
    assert "delete: not allowed" in caplog.text
    assert read(url) == [text(number) for number in range(6)]
