"""The lease: the right of one driver to write a study."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

import psutil

from spark_hpo.errors import LeaseError, StorageError
from spark_hpo.study_dir.storage import Storage

logger = logging.getLogger(__name__)

_NAME = "lease.json"
_CLOCKS_DIFFER_S = 86_400.0  # at most, between two machines


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The driver that holds a study's lease, or held it last."""

    epoch: int  # 1 for the first driver of the study, and one more for each later one
    host: str
    pid: int
    started_at: float  # of the process, because pids are reused
    expires_at: float  # wall clock, seconds since 1970
    duration_s: float = 60.0  # from the last renewal to `expires_at`
    machine: str = ""  # where the pid means this process, see `_machine`; earlier versions wrote none
    released: bool = False

    def is_alive(self, storage: Storage, clock: Callable[[], float] = time.time) -> bool:
        """Return whether the driver still holds the study; on another machine, until the lease expires.

        Args:
            storage: the study directory from which the holder was read.
            clock: the clock of this machine.
        """
        if self.released:
            return False
        if self.machine == _machine():
            return clock() < self.expires_at and self._has_process()
        if clock() - self.expires_at > _CLOCKS_DIFFER_S:
            return False  # a copy of the study directory looks new to the storage
        # The clocks of two machines may differ, so the age of the lease comes from the storage.
        age = storage.age(_NAME)
        return clock() < self.expires_at if age is None else age < self.duration_s

    def seems_alive(self, clock: Callable[[], float] = time.time) -> bool:
        """Return the same without writing to the storage, for clocks that differ by less than a lease."""
        if self.released:
            return False
        if self.machine == _machine():
            return clock() < self.expires_at and self._has_process()
        return clock() < self.expires_at + self.duration_s

    def _has_process(self) -> bool:
        """Return whether the process runs: a killed driver does not have to be waited for."""
        try:
            process = psutil.Process(self.pid)
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            return not is_zombie and abs(process.create_time() - self.started_at) <= 1
        except psutil.NoSuchProcess:
            return False

    @classmethod
    def read(cls, storage: Storage) -> Holder | None:
        """Read the holder from a study directory; None if the study never had one. Never writes."""
        data = storage.read(_NAME)
        try:
            record = json.loads(data) if data else None
            return record and cls(**{key: record[key] for key in record.keys() & _FIELDS})
        except (ValueError, TypeError, AttributeError):
            return None  # torn by a store without atomic writes: the epochs of the journal still count


_FIELDS = {field.name for field in fields(Holder)}


@cache
def _machine() -> str:
    """Identify the running system and the namespace in which its process ids are unique.

    A host name does not: pods on the host's network, and containers with a fixed host name, share it. On
    Linux the boot id tells systems apart, and the pid namespace tells containers on one system apart.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # another system than Linux, where containers do not share the kernel
        return f"{socket.gethostname()}:{psutil.boot_time():.0f}"


def is_held(storage: Storage) -> bool:
    """Return whether a driver works on the study now. Writes nothing that stays."""
    holder = Holder.read(storage)
    return holder is not None and holder.is_alive(storage)


@dataclass(eq=False)
class Lease:
    """The right to write a study, held from `acquire` to `release`.

    Each holder has an epoch, one more than the one before. A driver that was suspended for longer than
    `duration_s` loses the lease to the next driver and learns so at its next `check`. What it has written in
    the meantime is ignored, because it carries the old epoch.
    """

    storage: Storage
    holder: Holder
    duration_s: float
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self._writing = threading.Lock()  # a renewal in flight must not undo the release
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def epoch(self) -> int:
        return self.holder.epoch

    @classmethod
    def acquire(
        cls,
        storage: Storage,
        *,
        least_epoch: int = 1,
        duration_s: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> Lease:
        """Take the lease with an epoch of `least_epoch` or above.

        Raises:
            LeaseError: another driver holds the lease, or took it at the same moment.
        """
        with storage.locked("lease.lock"):
            return cls._acquire(storage, least_epoch, duration_s, clock)

    @classmethod
    def _acquire(
        cls, storage: Storage, least_epoch: int, duration_s: float, clock: Callable[[], float]
    ) -> Lease:
        current = Holder.read(storage)
        if current is not None and current.is_alive(storage, clock):
            raise LeaseError(
                f"{storage.url}: the study is locked by pid {current.pid} on {current.host} (if that driver "
                f"has died, for at most {current.duration_s:.0f} s). Wait for that driver, stop it, or use "
                "another study_dir"
            )
        epoch = max(least_epoch, current.epoch + 1 if current else 1)
        # Two drivers that start together race for this name, and only one of them can create it.
        while not storage.create(f"epochs/{epoch:06d}", socket.gethostname().encode()):
            if Holder.read(storage) != current:
                raise LeaseError(f"{storage.url}: another driver has just started on this study; wait for it")
            epoch += 1  # left by a driver that died after it created the name, before it wrote the lease
        holder = Holder(
            epoch=epoch,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            started_at=psutil.Process().create_time(),
            expires_at=clock() + duration_s,
            duration_s=duration_s,
        )
        lease = cls(storage, holder, duration_s, clock)
        lease._write()
        # Without file locks, a driver that was slower than the next one finds out here.
        epochs = [int(name) for name in storage.names("epochs") if name.isdecimal()]
        if max(epochs) > epoch:
            raise LeaseError(f"{storage.url}: another driver has just started on this study; start again")
        lease.check()
        return lease

    def keep_alive(self) -> None:
        """Renew the lease in the background until `release`. Ends when the lease is lost."""
        self._thread = threading.Thread(target=self._keep_renewing, name="spark_hpo-lease", daemon=True)
        self._thread.start()

    def _keep_renewing(self) -> None:
        while not self._released.wait(self.duration_s / 6):
            try:
                self.renew()
            except LeaseError:
                return
            except StorageError as exc:  # an outage: several attempts fit into the duration of the lease
                logger.warning("could not renew the lease of the study: %s", exc)

    def renew(self) -> None:
        """Extend the lease when a third of it has passed."""
        with self._writing:
            if self._released.is_set():
                return
            if self.holder.expires_at - self.clock() < self.duration_s * 2 / 3:
                self.check()
                self.holder = replace(self.holder, expires_at=self.clock() + self.duration_s)
                self._write()

    def check(self) -> None:
        """Make sure that no other driver has taken over.

        Raises:
            LeaseError: another driver has.
        """
        current = Holder.read(self.storage)
        if current is None or current.epoch != self.epoch or current.pid != self.holder.pid:
            other = f"pid {current.pid} on {current.host}" if current else "a process that removed lease.json"
            raise LeaseError(f"{self.storage.url}: this driver has lost the study to {other} and stops")

    def release(self) -> None:
        """Let the next driver start at once. Does nothing if the lease is lost already."""
        self._released.set()
        with self._writing:
            current = Holder.read(self.storage)
            if current is not None and current.epoch == self.epoch:
                self.holder = replace(self.holder, released=True)
                self._write()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self) -> None:
        self.storage.write(_NAME, json.dumps(asdict(self.holder)).encode())
