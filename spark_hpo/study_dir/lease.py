"""The lease: one driver writes a study."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import psutil

from spark_hpo.errors import LeaseError, StorageError
from spark_hpo.study_dir.storage import Storage

logger = logging.getLogger(__name__)

_NAME = "lease.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The driver that has, or had, a study's lease."""

    epoch: int  # counts the drivers that this study has had
    host: str
    pid: int
    started_at: float  # of the process, so that a reused pid is not taken for it
    expires_at: float  # wall clock, seconds since 1970
    released: bool = False

    def is_alive(self, now: float) -> bool:
        """Whether the study is still its own. Of a driver on another machine, as far as its lease runs."""
        if self.released or self.host == "":
            return False
        if self.host == socket.gethostname():
            # On its own machine a killed driver is known at once: no need to sit out its lease.
            try:
                process = psutil.Process(self.pid)
                if (
                    process.status() == psutil.STATUS_ZOMBIE
                    or abs(process.create_time() - self.started_at) > 1
                ):
                    return False
            except psutil.NoSuchProcess:
                return False
        return now < self.expires_at

    @classmethod
    def read(cls, storage: Storage) -> Holder | None:
        """The one in a study directory; None: there was none yet. Takes nothing from it."""
        data = storage.read(_NAME)
        try:
            return cls(**json.loads(data)) if data else None
        except (ValueError, TypeError):
            return None  # torn by a store without atomic writes: the epochs of the journal still count


def is_held(storage: Storage) -> bool:
    """Whether a driver works on the study now. Takes nothing from it."""
    holder = Holder.read(storage)
    return holder is not None and holder.is_alive(time.time())


class Lease:
    """The right to write a study, held from `acquire` to `release`.

    Each holder has an epoch, one more than the last. A driver that was stopped past `duration_s` loses the
    lease to the next one; it finds out at its next `check`, and what it has written since is ignored
    because it carries the old epoch.
    """

    def __init__(
        self, storage: Storage, holder: Holder, duration_s: float, clock: Callable[[], float]
    ) -> None:
        self._storage = storage
        self._holder = holder
        self._duration_s = duration_s
        self._clock = clock
        self._released = threading.Event()

    @property
    def epoch(self) -> int:
        return self._holder.epoch

    @classmethod
    def acquire(
        cls,
        storage: Storage,
        *,
        least_epoch: int = 1,
        duration_s: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> Lease:
        """Take the lease, at `least_epoch` or above.

        Raises:
            LeaseError: another driver holds it, or took it in the same moment.
        """
        with storage.locked("lease.lock"):
            return cls._acquire(storage, least_epoch, duration_s, clock)

    @classmethod
    def _acquire(
        cls, storage: Storage, least_epoch: int, duration_s: float, clock: Callable[[], float]
    ) -> Lease:
        now = clock()
        current = Holder.read(storage)
        if current is not None and current.is_alive(now):
            raise LeaseError(
                f"{storage.url}: the driver with pid {current.pid} on {current.host} writes this study "
                f"(its lease runs {current.expires_at - now:.0f} s more); wait for it, stop it, "
                "or choose another study_dir"
            )
        epoch = max(least_epoch, current.epoch + 1 if current else 1)
        # Two drivers that start together race for this name, and only one can create it.
        while not storage.create(f"epochs/{epoch:06d}", socket.gethostname().encode()):
            if Holder.read(storage) != current:
                raise LeaseError(f"{storage.url}: another driver has just started on this study; wait for it")
            epoch += 1  # left by a driver that died between the name and the lease
        holder = Holder(
            epoch=epoch,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=psutil.Process().create_time(),
            expires_at=now + duration_s,
        )
        lease = cls(storage, holder, duration_s, clock)
        lease._write()
        # Where nothing can be locked, a driver that was slower than the next one finds out here.
        epochs = [int(name) for name in storage.names("epochs") if name.isdecimal()]
        if max(epochs) > epoch:
            raise LeaseError(f"{storage.url}: another driver has just started on this study; start again")
        lease.check()
        return lease

    def keep_alive(self) -> None:
        """Renew in the background until `release`. A lost lease is not renewed: `check` tells."""
        threading.Thread(target=self._renew_again_and_again, name="spark_hpo-lease", daemon=True).start()

    def _renew_again_and_again(self) -> None:
        while not self._released.wait(self._duration_s / 6):
            try:
                self.renew()
            except LeaseError:
                return
            except StorageError as exc:  # an outage: there is time for another attempt
                logger.warning("the lease of the study could not be renewed: %s", exc)

    def renew(self) -> None:
        """Prolong the lease, when a third of it has passed."""
        if self._holder.expires_at - self._clock() < self._duration_s * 2 / 3:
            self.check()
            self._holder = replace(self._holder, expires_at=self._clock() + self._duration_s)
            self._write()

    def check(self) -> None:
        """Make sure that no other driver has taken over.

        Raises:
            LeaseError: one has.
        """
        current = Holder.read(self._storage)
        if current is None or current.epoch != self.epoch or current.pid != self._holder.pid:
            other = f"pid {current.pid} on {current.host}" if current else "somebody who removed the lease"
            raise LeaseError(f"{self._storage.url}: this driver has lost the study to {other}; it stops here")

    def release(self) -> None:
        """Let the next driver start at once. Never raises when the lease is lost already."""
        self._released.set()
        current = Holder.read(self._storage)
        if current is not None and current.epoch == self.epoch:
            self._holder = replace(self._holder, released=True)
            self._write()

    def _write(self) -> None:
        self._storage.write(_NAME, json.dumps(asdict(self._holder)).encode())
