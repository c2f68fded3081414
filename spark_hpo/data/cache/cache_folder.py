"""The folder of the node cache: entries of files, one writer each at birth, bounded in size, oldest out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_IN_USE = "in_use"
_RESERVED_SHARE = 0.05  # of the disk, which is never filled: Spark's shuffles and logs live there too
_ABANDONED_S = 3600.0  # a folder half made, or half deleted, that nobody has touched for so long


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Where decoded tables are kept on each machine, and how much of its disk they may take."""

    folder: str | None = None  # None: the first of Spark's local folders, or the temporary folder
    max_bytes: int | None = None  # None: half of what is free or taken by the cache


class CacheEntry:
    """A folder of files that other processes may use at the same time. Never evicted while it is open."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        os.close(self._lock)


class CacheFolder:
    """All entries of one machine and user.

    It is readable for its owner alone, and symbolic links and folders of others are refused.
    """

    def __init__(self, settings: CacheSettings) -> None:
        """
        Raises:
            OSError: there is no such folder and it cannot be made, or it is not ours.
        """
        base = Path(settings.folder) if settings.folder else _local_folder()
        self.path = base / f"spark_hpo-cache-{os.getuid()}"
        self._max_bytes = settings.max_bytes
        base.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{self.path} is not a folder of this user's alone")

    def open(self, key: str, files: Mapping[str, int], *, needed: int) -> CacheEntry | None:
        """The entry of this key, made when there is none.

        Args:
            files: sizes in bytes, by name. They are made sparse, of zeros.
            needed: bytes of it that the caller may write; room is made for so many.

        Returns:
            None where the disk is too short for it.
        """
        while True:
            entry = self._hold(self.path / key)
            missing = needed - (_allocated(entry.path) if entry else 0)
            if missing > 0 and not self._make_room(missing, keep=key):
                if entry is not None:
                    entry.close()
                return None
            if entry is not None:
                return entry
            self._create(key, files)

    def _hold(self, path: Path) -> CacheEntry | None:
        """The entry, marked as in use; None where there is none, or it is just being evicted."""
        try:
            if path.is_symlink():
                raise PermissionError(f"{path} is a symbolic link")
            lock = unlinked(path / _IN_USE, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.utime(lock)  # when it was last used
            if os.fstat(lock).st_ino == os.stat(path / _IN_USE).st_ino:
                return CacheEntry(path, lock)
        except OSError:
            pass
        os.close(lock)
        return None

    def _create(self, key: str, files: Mapping[str, int]) -> None:
        """Make an entry under a name of its own, and rename it: nobody sees half of one."""
        working = Path(tempfile.mkdtemp(prefix=".new-", dir=self.path))
        for name, size in {_IN_USE: 0, **files}.items():
            with open(working / name, "xb", opener=unlinked) as file:
                file.truncate(size)
        try:
            working.rename(self.path / key)
        except OSError:  # another was first
            shutil.rmtree(working, ignore_errors=True)

    def _make_room(self, missing: int, *, keep: str) -> bool:
        """Evict what was used longest ago until `missing` bytes fit. False: they do not."""
        self._sweep()
        for victim in [*self._oldest_first(keep), None]:
            disk = shutil.disk_usage(self.path)
            taken = _allocated(self.path)
            most = self._max_bytes if self._max_bytes is not None else (disk.free + taken) // 2
            if taken + missing <= most and missing <= disk.free - _RESERVED_SHARE * disk.total:
                return True
            if victim is not None:
                self._evict(victim)
        return False

    def _oldest_first(self, keep: str) -> Sequence[Path]:
        used: list[tuple[float, Path]] = []
        for path in self.path.iterdir():
            if not path.name.startswith(".") and path.name != keep:
                with contextlib.suppress(OSError):
                    used.append(((path / _IN_USE).stat().st_mtime, path))
        return [path for _, path in sorted(used)]

    def evict_unused(self, older_than_s: float, *, dry_run: bool = False) -> list[int]:
        """Delete the entries that no process has open, and that none has opened for so long.

        Args:
            dry_run: only count.

        Returns the bytes of each.
        """
        if not dry_run:
            self._sweep()
        freed = []
        for path in self._oldest_first(keep=""):
            with contextlib.suppress(OSError):
                if time.time() - (path / _IN_USE).stat().st_mtime >= older_than_s:
                    size = _allocated(path)
                    if self._evict(path, dry_run=dry_run):
                        freed.append(size)
        return freed

    def _evict(self, path: Path, *, dry_run: bool = False) -> bool:
        """Delete an entry, unless a process has it open. Returns whether none has."""
        with contextlib.suppress(OSError), open(path / _IN_USE, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if dry_run:
                return True
            trash = Path(tempfile.mkdtemp(prefix=".old-", dir=self.path))
            path.rename(trash / path.name)
            shutil.rmtree(trash, ignore_errors=True)
            logger.info("node cache: %s was evicted", path.name)
            return True
        return False

    def _sweep(self) -> None:
        """Delete what processes have left that were killed while they made or deleted an entry."""
        for path in self.path.glob(".*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(path)


def unlinked(path: str | Path, flags: int) -> int:
    """Open a file of the cache, for `open(..., opener=unlinked)`: new ones are this user's alone.

    Raises:
        PermissionError: it is a symbolic link, which leads who knows where.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise PermissionError(f"{path} is a symbolic link") from exc
        raise


def key_of(facts: Any) -> str:
    """The name of an entry: of what it is made from, and of this start of the machine.

    After a crash of the machine, a mark may have reached the disk before the data that it vouches for.
    """
    text = json.dumps([facts, _boot_id()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _local_folder() -> Path:
    """A local disk that survives the application, where the cluster names one."""
    for variable in ("SPARK_HPO_CACHE_DIR", "SPARK_LOCAL_DIRS", "LOCAL_DIRS"):
        if first := os.environ.get(variable, "").split(",")[0]:
            return Path(first)
    return Path(tempfile.gettempdir())


def _allocated(path: Path) -> int:
    """Bytes on disk of all files below a folder; those of sparse files as far as they are written."""
    return sum(found.st_blocks * 512 for found in _stats(path))


def _stats(path: Path) -> Iterator[os.stat_result]:
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield os.lstat(os.path.join(folder, name))


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        import psutil  # here: where there is a /proc, training needs no more than torch and pyarrow

        return str(int(psutil.boot_time()))
