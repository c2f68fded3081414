"""A study directory in memory, for studies that end with the process."""

from __future__ import annotations

from spark_hpo.study_dir.storage import Log, Storage


class MemoryStorage(Storage):
    """Files by name. Nothing is durable, so nothing waits for a disk."""

    can_append = True

    def __init__(self) -> None:
        super().__init__("memory://replay")
        self._files: dict[str, bytes] = {}
        self._logs: dict[str, _MemoryLog] = {}

    def read(self, name: str) -> bytes | None:
        return self._files.get(name)

    def write(self, name: str, data: bytes) -> None:
        self._files[name] = data

    def create(self, name: str, data: bytes) -> bool:
        if name in self._files:
            return False
        self._files[name] = data
        return True

    def delete(self, name: str) -> None:
        self._files.pop(name, None)

    def names(self, folder: str, *, hidden: bool = False) -> list[str]:
        below = f"{folder}/"
        found = [*self._files, *(f"{name}.jsonl" for name in self._logs)]
        return sorted({name.removeprefix(below).split("/")[0] for name in found if name.startswith(below)})

    def log(self, name: str) -> Log:
        return self._logs.setdefault(name, _MemoryLog(self, name))


class _MemoryLog(Log):
    def __init__(self, storage: Storage, name: str) -> None:
        super().__init__(storage, name)
        self._lines: list[bytes] = []

    def append(self, line: str) -> None:
        self._lines.append(line.encode() + b"\n")

    def lines(self) -> list[bytes]:
        return list(self._lines)
