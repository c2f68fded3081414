"""The folder of the node cache: a size-bounded set of entries with least-recently-used eviction."""

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_IN_USE = "in_use"
_RESERVED_SHARE = 0.05  # of the disk stays free, because Spark's shuffles and logs use it too
_ABANDONED_S = 3600.0  # age after which a half-created or half-deleted folder is removed


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Location and size limit of the cache on each machine."""

    folder: str | None = None  # None: the first of Spark's local folders, or the temporary folder
    max_bytes: int | None = None  # None: half of the space that is free or used by the cache


class CacheEntry:
    """A folder of files, shared with other processes. It is not evicted while a process has it open."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        os.close(self._lock)


class CacheFolder:
    """All cache entries of one user on one machine.

    Only the owner can read the folder. Symbolic links and folders of other users are refused.
    """

    def __init__(self, settings: CacheSettings) -> None:
        """
        Raises:
            OSError: the folder cannot be created, or it belongs to another user.
        """
        base = Path(settings.folder) if settings.folder else local_folder()
        self.path = private_folder(base, "cache")
        self._max_bytes = settings.max_bytes

    def open(self, key: str, files: Mapping[str, int], *, needed: int) -> CacheEntry | None:
        """Open the entry of this key, creating it if it does not exist.

        Args:
            files: size of each file in bytes, by name. New files are sparse and read as zeros.
            needed: bytes that the caller may write; older entries are evicted to make room for them.

        Returns:
            The entry, or None if the disk has too little space.
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

    def is_news(self, key: str) -> bool:
        """Return True to the first caller in an hour: each rank of each trial finds the same problem."""
        try:
            (self.path / f".told-{key}").mkdir()
        except FileExistsError:
            return False
        return True

    def _hold(self, path: Path) -> CacheEntry | None:
        """Open an entry and mark it as in use. Return None if it does not exist or is being evicted."""
        try:
            if path.is_symlink():
                raise PermissionError(f"{path} is a symbolic link")
            lock = open_no_follow(path / _IN_USE, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.utime(lock)  # records the time of last use
            if os.fstat(lock).st_ino == os.stat(path / _IN_USE).st_ino:
                return CacheEntry(path, lock)
        except OSError:
            pass
        os.close(lock)
        return None

    def _create(self, key: str, files: Mapping[str, int]) -> None:
        """Create an entry under a temporary name, then rename it: no process sees a partial entry."""
        working = Path(tempfile.mkdtemp(prefix=".new-", dir=self.path))
        for name, size in {_IN_USE: 0, **files}.items():
            with open(working / name, "xb", opener=open_no_follow) as file:
                file.truncate(size)
        try:
            working.rename(self.path / key)
        except OSError:  # another process created it first
            shutil.rmtree(working, ignore_errors=True)

    def _make_room(self, missing: int, *, keep: str) -> bool:
        """Evict the least recently used entries until `missing` bytes fit. Return False if they cannot."""
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
        """Delete the entries that no process has open and none has opened within `older_than_s` seconds.

        Args:
            dry_run: only report what would be deleted.

        Returns:
            The size in bytes of each deleted entry.
        """
        if not dry_run:
            self._sweep()
        freed, now = [], self._now()
        for path in self._oldest_first(keep=""):
            with contextlib.suppress(OSError):
                if now - (path / _IN_USE).stat().st_mtime >= older_than_s:
                    size = _allocated(path)
                    if self._evict(path, dry_run=dry_run):
                        freed.append(size)
        return freed

    def _now(self) -> float:
        """Return the time by the clock that dates the files of this folder, which may be on a file server."""
        with tempfile.TemporaryDirectory(prefix=".now-", dir=self.path) as new:
            return os.stat(new).st_mtime

    def _evict(self, path: Path, *, dry_run: bool = False) -> bool:
        """Delete an entry unless a process has it open. Return True if it was (or could be) deleted."""
        with contextlib.suppress(OSError), open(path / _IN_USE, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if dry_run:
                return True
            trash = Path(tempfile.mkdtemp(prefix=".old-", dir=self.path))
            path.rename(trash / path.name)
            shutil.rmtree(trash, ignore_errors=True)
            logger.info("node cache: evicted %s", path.name)
            return True
        return False

    def _sweep(self) -> None:
        """Delete folders left behind by processes that were killed while creating or deleting an entry."""
        now = self._now()
        for path in self.path.glob(".*"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(path)


def open_no_follow(path: str | Path, flags: int) -> int:
    """Open a cache file without following symbolic links, for `open(..., opener=open_no_follow)`.

    New files are readable by this user only.

    Raises:
        PermissionError: the path is a symbolic link.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise PermissionError(f"{path} is a symbolic link") from exc
        raise


def key_of(facts: Any) -> str:
    """Return the name of an entry: a hash of the facts that determine its contents and of the boot id.

    The boot id is included because, after a crash of the machine, a "ready" mark may have reached the disk
    before the data it refers to.
    """
    text = json.dumps([facts, _boot_id()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def private_folder(base: Path, purpose: str) -> Path:
    """Return a folder in `base` that only this user can read. It is created if it does not exist.

    Raises:
        OSError: the folder cannot be created, or it belongs to another user.
    """
    path = base / f"spark_hpo-{purpose}-{os.getuid()}"
    base.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{path} is not a directory owned by and private to this user")
    return path


def local_folder() -> Path:
    """Return the local disk that the cluster names, or the temporary folder."""
    for variable in ("SPARK_HPO_CACHE_DIR", "SPARK_LOCAL_DIRS", "LOCAL_DIRS"):
        if first := os.environ.get(variable, "").split(",")[0]:
            return Path(first)
    return Path(tempfile.gettempdir())


def _allocated(path: Path) -> int:
    """Return the bytes that all files below a folder occupy on disk; holes of sparse files do not count."""
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
        import psutil  # imported here because it is not needed where /proc exists

        return str(int(psutil.boot_time()))
