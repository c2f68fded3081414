"""A cluster that runs nothing, for tests of what its settings decide."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any


class FixedCluster:
    """A cluster that has settings only."""

    spark: Any = SimpleNamespace()
    driver_host = None

    def __init__(self, **settings: str) -> None:
        self._settings = {f"spark.{key.replace('_', '.')}": value for key, value in settings.items()}

    def setting(self, key: str, default: str = "") -> str:
        return self._settings.get(key, default)

    def can_grow(self) -> bool:
        return False

    def num_task_slots(self, profile: Any) -> int:
        return 1

    def thread(self, target: Any, *args: object) -> Any:
        raise NotImplementedError

    def use_pool(self, name: str) -> None: ...

    def tag(self, *tags: str, description: str) -> None: ...

    def cancel(self, tag: str) -> None: ...

    def running_jobs(self, tag: str) -> None: ...

    def ship(self, file: Path) -> None: ...
