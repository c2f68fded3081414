"""The studies below some directories, read as they change."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from spark_hpo.errors import SparkHpoError, StorageError
from spark_hpo.redact import redact
from spark_hpo.report.serve.tally import Look, Tally
from spark_hpo.report.status import StudyState
from spark_hpo.report.study_reader import StudyReader
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.driver_settings import Settings
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.forecast_file import Forecast
from spark_hpo.study_dir.journal_logs import Tail
from spark_hpo.study_dir.lease import Holder
from spark_hpo.study_dir.storage import Storage

logger = logging.getLogger(__name__)

_DEFINITION = "study.json"
_DEPTH = 4  # folders below a directory in which studies are looked for
_MAX_FOLDERS = 2_000  # that are looked into
_SKIPPED = ("checkpoints", "journal", "mlruns", "mlartifacts", "node_modules", "__pycache__")
_HELD_EVENTS = 300_000  # of studies whose events stay in memory, about 1 GB at most

_WATCHED_S = 0.04  # between two looks at a study that a browser shows
_RUNNING_S, _ENDED_S = 1.0, 5.0  # at others
_REMOTE = 50.0  # times that, of an object store
_BUSY_SHARE = 0.25  # of the time may go into reading one study
_DISCOVERY_S = 3.0
_FRESH_S = 1.0  # a page may show what was read so long ago
_PATIENCE_S = 0.25  # a page waits so long for studies that are read for the first time
_LIMIT_S = 120.0  # and so long if it cannot do without


@dataclass(eq=False)
class Entry:
    """A study of the catalog."""

    storage: Storage
    id: str
    place: str  # of its directory, as people call it
    tally: Tally | None = None
    holder: Holder | None = None
    forecast: Forecast | None = None  # of that driver
    error: str | None = None  # why it cannot be read
    version: int = 0  # changes with everything that a page shows
    due: float = 0.0  # when to look again
    looked: float = 0.0
    reading: threading.Lock = field(default_factory=threading.Lock, repr=False)
    using: Any = field(default_factory=threading.RLock, repr=False)  # a lock, held while the tally is used
    drawing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._tail = Tail(self.storage)
        self._shown: Any = None
        self._settings_due = False

    @property
    def url(self) -> str:
        return redact(self.storage.url)

    @property
    def name(self) -> str:
        return self.tally.name if self.tally is not None else self.url.rstrip("/").rpartition("/")[2]

    @property
    def look(self) -> Look | None:
        with self.using:
            return None if self.tally is None else self.tally.look(self.holder, self.forecast)

    @property
    def is_read(self) -> bool:
        """False until it has been read for the first time."""
        return self.version > 0

    @property
    def is_running(self) -> bool:
        return self.holder is not None and self.holder.seems_alive()

    def refresh(self) -> bool:
        """Read what is new, and return whether anything that a page shows has changed."""
        if not self.reading.acquire(blocking=False):
            return False  # another thread is reading
        try:
            self.looked = time.monotonic()
            try:
                self._read()
                self.error = None
            except SparkHpoError as exc:
                self.error = str(exc)
            except OSError as exc:
                self.error = redact(str(exc))
            except Exception as exc:  # a journal may contain anything; the other studies are shown
                self.tally = None
                error = redact(f"it cannot be read: {exc!r}")
                if error != self.error:
                    logger.warning("%s: %s", self.url, error, exc_info=True)
                self.error = error
            state = None if self.tally is None else (self.tally.sequence, self.look and self.look.state)
            shown = (state, self.error)
            if shown == self._shown:
                return False
            self._shown, self.version = shown, self.version + 1
            return True
        finally:
            self.reading.release()

    def _read(self) -> None:
        tally = self.tally
        if tally is None:
            self._tail, tally = Tail(self.storage), Tally.begin(self.storage)
        # The lease is read first, so that a driver that ends meanwhile is shown as running, not as failed.
        holder = Holder.read(self.storage)
        events, is_new = self._tail.read()
        if is_new:
            tally = Tally.begin(self.storage)
        settings = tally.settings
        if self._settings_due and events:  # a driver writes them after it has opened the journal
            settings = Settings.load(self.storage)
        self._settings_due = any(event.kind is EventKind.OPENED for event in events)
        if tally is not self.tally:  # nobody else has seen it
            tally.add(events)
        forecast = self.forecast
        if forecast is None or events:  # a driver writes it after events
            forecast = Forecast.load(self.storage)
        with self.using:
            if tally is self.tally:
                tally.add(events)
            tally.settings = settings
            self.tally, self.holder, self.forecast = tally, holder, forecast


@dataclass(eq=False)
class Catalog:
    """All studies below some directories. A thread follows them while a browser shows any."""

    urls: Sequence[str]
    on_change: Callable[[Entry], None] = lambda entry: None
    watched: Callable[[], set[str] | None] = lambda: None  # ids on an open page; None: no page is open

    def __post_init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._readers: OrderedDict[str, tuple[StudyReader, int]] = OrderedDict()  # with its number of events
        self._readers_lock = threading.Lock()
        self._discovered = -_DISCOVERY_S
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_closed = False
        self.error: str | None = None  # a directory that cannot be read
        self._thread = threading.Thread(target=self._follow, name="spark_hpo-serve", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10.0)

    def wake(self) -> None:
        """Look at once, because a page was opened."""
        self._wake.set()

    def entries(self) -> list[Entry]:
        """Return all studies, those that run first, then by their last event; read at most a second ago.

        Large studies that have just been found may not be read yet.
        """
        self._discover()
        entries = self.known()
        self._wait_for(entries, _PATIENCE_S)
        deadline = time.monotonic() + _PATIENCE_S
        for entry in entries:
            if time.monotonic() < deadline:
                self._freshen(entry)
        return sorted(entries, key=_order)

    def known(self) -> list[Entry]:
        """Return the studies that were found so far, without reading anything."""
        return list(self._entries.values())

    def get(self, study_id: str, *, is_patient: bool = True) -> Entry | None:
        """Return a study, read at most a second ago.

        Args:
            is_patient: wait until it has been read for the first time, however large it is.
        """
        if study_id not in self._entries:
            self._discover()
        entry = self._entries.get(study_id)
        if entry is not None:
            self._wait_for([entry], _LIMIT_S if is_patient else _PATIENCE_S)
            self._freshen(entry)
        return entry

    def record(self, entry: Entry) -> StudyRecord:
        """Return the whole content of a study. Call it with the lock `drawing` of the entry.

        Raises:
            SparkHpoError: the study cannot be read.
        """
        with self._readers_lock:
            reader, _ = self._readers.pop(entry.id, (None, 0))
        if reader is None:
            assert entry.tally is not None
            reader = StudyReader(entry.storage, entry.tally.objective)
        record = reader.read(is_running=entry.is_running)
        with self._readers_lock:
            self._readers[entry.id] = reader, sum(len(driver.events) for driver in record.drivers)
            while len(self._readers) > 1 and sum(n for _, n in self._readers.values()) > _HELD_EVENTS:
                self._readers.popitem(last=False)
        return record

    def _wait_for(self, entries: Sequence[Entry], limit_s: float) -> None:
        """Wait until the thread has read these studies for the first time."""
        deadline = time.monotonic() + limit_s
        while self._thread.is_alive() and time.monotonic() < deadline:
            if all(entry.is_read for entry in entries):
                return
            self.wake()
            time.sleep(0.01)

    def _freshen(self, entry: Entry) -> None:
        if not entry.is_read and self._thread.is_alive():
            return
        if time.monotonic() - entry.looked > _FRESH_S * (1.0 if entry.storage.local else _REMOTE / 10):
            self._look(entry)

    def _look(self, entry: Entry) -> None:
        if entry.refresh():
            self.on_change(entry)

    def _follow(self) -> None:
        while not self._is_closed:
            watched = self.watched()
            if watched is None and self._discovered >= 0 and all(entry.is_read for entry in self.known()):
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._discover()
                for entry in list(self._entries.values()):
                    if time.monotonic() >= entry.due and not self._is_closed:
                        began = time.monotonic()
                        self._look(entry)
                        self._set_due(entry, time.monotonic() - began, entry.id in (watched or ()))
            except Exception:  # the page must live; the next round tries again
                logger.warning("cannot follow the studies", exc_info=True)
            self._wake.wait(_WATCHED_S if watched else _RUNNING_S / 4)
            self._wake.clear()

    def _set_due(self, entry: Entry, took_s: float, is_watched: bool) -> None:
        pause = _WATCHED_S if is_watched else _RUNNING_S if entry.is_running else _ENDED_S
        if not entry.storage.local:
            pause *= _REMOTE if is_watched else _REMOTE / 5
        entry.due = time.monotonic() + max(pause, took_s / _BUSY_SHARE)

    def _discover(self) -> None:
        with self._lock:
            if time.monotonic() - self._discovered < _DISCOVERY_S:
                return
            found: dict[str, Storage] = {}  # by place
            errors = []
            for url in self.urls:
                root = Storage(url).url
                try:
                    found |= {url.rstrip("/") + s.url.removeprefix(root): s for s in studies_below(url)}
                except (SparkHpoError, OSError) as exc:
                    errors.append(redact(str(exc)))
            self.error = "; ".join(errors) or None
            entries = {}
            for place, storage in found.items():
                study_id = hashlib.sha256(storage.url.encode()).hexdigest()[:12]
                entries[study_id] = self._entries.get(study_id) or Entry(storage, study_id, redact(place))
            if errors:  # a store may be unavailable for a moment
                entries = {**self._entries, **entries}
            self._entries = entries
            self._discovered = time.monotonic()


def studies_below(url: str) -> list[Storage]:
    """Return the study directories at or below a directory, a path or an fsspec URL.

    Raises:
        StorageError: the directory cannot be read.
    """
    found: list[Storage] = []
    waiting = [(Storage(url), 0)]
    looked = 0
    while waiting and looked < _MAX_FOLDERS:
        storage, depth = waiting.pop(0)
        looked += 1
        try:
            names, folders = storage.children()
        except StorageError:
            if depth == 0:
                raise
            continue  # a folder of somebody else
        if _DEFINITION in names:
            found.append(storage)
        elif depth < _DEPTH:
            inside = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
            waiting += [(Storage(f"{storage.url.rstrip('/')}/{name}"), depth + 1) for name in inside]
    return found


def _order(entry: Entry) -> tuple[bool, float, str]:
    look, tally = entry.look, entry.tally
    last = tally.latest[-1].time if tally is not None and tally.latest else 0.0
    return look is None or look.state is not StudyState.RUNNING, -last, entry.url
