"""Requests to the driver of a study: files in its directory, which the driver takes, answers and records.

A trace, in any process that can write the study directory:
    request("studies/adult", Verb.PAUSE) -> Answer(verb=PAUSE, reply=DONE, message="paused; 4 trials ...")
    request("studies/adult", Verb.DROP, {"trial": 17}) -> Answer(..., reply=REFUSED, message="trial 17 ...")
"""

from __future__ import annotations

import getpass
import json
import logging
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from spark_hpo.errors import ConfigError, StorageError, suggestion
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.lease import is_held
from spark_hpo.study_dir.storage import Storage

logger = logging.getLogger(__name__)

REQUESTS = "control/requests"
ANSWERS = "control/answers"
TIMEOUT_S = (
    30.0  # a driver that searches answers within 2 s; one that starts Spark or prepares a table, later
)

_ID = re.compile(r"\d{20}-[0-9a-f]{8}")  # nanoseconds since 1970, and a random part
_NUMBER_AS_TEXT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
_POLL_S, _REMOTE_POLL_S = 0.1, 0.5  # between two looks for an answer; on an object store
_LEASE_POLL_S = 2.0
_KEPT_ANSWERS_S = 3600.0  # those that nobody has waited for
_MOST_BYTES = 1_000_000


class Verb(StrEnum):
    """What a request asks the driver to do."""

    PAUSE = "pause"  # {}: save running trials and leave the slots to others
    RESUME = "resume"  # {}: undo pause and stop
    STOP = "stop"  # {"now": False}: end the search after the running assignments, or without them
    ADD = (
        "add"  # {"params": {"lr": 0.01}, "like": None}: a new trial; `like`: the trial with the other values
    )
    DROP = "drop"  # {"trial": 17}: train this trial no further
    EXTEND = "extend"  # {"budget": {"trials": "+50"}}: raise limits of the budget, by or to a number
    NARROW = "narrow"  # {"space": {"lr": [1e-4, 1e-2]}}: replace ranges, or the options of a choice


# A driver that starts later takes the others.
_NEEDS_DRIVER = (Verb.PAUSE, Verb.RESUME, Verb.STOP)


class Reply(StrEnum):
    """The fate of a request."""

    DONE = "done"
    REFUSED = "refused"  # nothing has changed
    QUEUED = "queued"  # not taken so far; the driver, or the next one, will take it


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a request, in a sentence for people."""

    verb: Verb
    reply: Reply
    message: str

    def to_json(self) -> dict[str, str]:
        return {"verb": self.verb, "reply": self.reply, "message": self.message}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as the driver reads it."""

    id: str
    verb: Verb
    arguments: Mapping[str, Any]
    by: str  # user and host, for the journal and the log

    @classmethod
    def new(cls, verb: Verb, arguments: Mapping[str, Any]) -> Request:
        number = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        return cls(id=number, verb=verb, arguments=checked(verb, arguments), by=_sender())

    @classmethod
    def parse(cls, number: str, data: bytes) -> Request:
        """Read the file of a request, which another user may have written.

        Raises:
            ConfigError: the file is not a request.
        """
        try:
            if len(data) > _MOST_BYTES:
                raise ValueError("too large")
            record = json.loads(data)
            verb, by = Verb(record["verb"]), str(record["by"])[:200]
            arguments = dict(record["arguments"])
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ConfigError(f"the request {number} cannot be read: {exc!r}") from exc
        return cls(id=number, verb=verb, arguments=checked(verb, arguments), by=by)


def request(
    directory: Storage | str | Path,
    verb: Verb | str,
    arguments: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Answer:
    """Ask the driver of a study to do something, and wait for its answer.

    Without a driver, `add`, `drop`, `extend` and `narrow` wait in the directory for the next one; the other
    verbs are refused.

    Args:
        directory: of the study.
        verb: what to do.
        arguments: of the verb, see `Verb`.
        timeout_s: how long to wait for the answer. A request that was not answered stays in the directory.

    Raises:
        ConfigError: there is no study, or the request makes no sense whatever the state of the study.
        StorageError: the directory cannot be read or written.
    """
    storage = directory if isinstance(directory, Storage) else Storage(directory)
    Definition.require(storage)
    try:
        asked = Request.new(Verb(verb), arguments or {})
    except ValueError:
        raise ConfigError("is not a valid verb", value=str(verb), cure=suggestion(verb, Verb)) from None
    if not is_held(storage):
        if asked.verb in _NEEDS_DRIVER:
            message = f"no driver works on {storage.url}, so there is nothing to {asked.verb}"
            return Answer(verb=asked.verb, reply=Reply.REFUSED, message=message)
        timeout_s = 0.0
    record = {"verb": asked.verb, "arguments": asked.arguments, "by": asked.by}
    storage.write(f"{REQUESTS}/{asked.id}.json", json.dumps(record).encode())
    return _wait(storage, asked, timeout_s)


def _wait(storage: Storage, asked: Request, timeout_s: float) -> Answer:
    file = f"{ANSWERS}/{asked.id}.json"
    deadline = time.monotonic() + timeout_s
    look_at_lease = time.monotonic() + _LEASE_POLL_S
    has_driver = timeout_s > 0
    while True:
        is_last = not has_driver or time.monotonic() >= deadline
        if (data := storage.read(file)) is not None:
            storage.delete(file)
            record = json.loads(data)
            return Answer(verb=asked.verb, reply=Reply(record["reply"]), message=str(record["message"]))
        if is_last:
            break
        if time.monotonic() >= look_at_lease:
            has_driver, look_at_lease = is_held(storage), time.monotonic() + _LEASE_POLL_S
        time.sleep(_REMOTE_POLL_S if storage.local is None else _POLL_S)
    if has_driver:
        message = (
            f"the driver has not answered for {timeout_s:.0f} s, because it is starting or ending; it takes "
            f"the request {asked.id} when it searches"
        )
    else:
        message = (
            f"no driver works on the study now; the next one takes the request {asked.id}. To start it: "
            f"spark-hpo resume {storage.url}"
        )
    return Answer(verb=asked.verb, reply=Reply.QUEUED, message=message)


@dataclass(eq=False)
class Inbox:
    """The requests in a study directory, for its driver. An outage of the storage delays them."""

    storage: Storage

    def __post_init__(self) -> None:
        self._is_out = False

    def waiting(self) -> list[Request]:
        """Return the requests that are not answered, in the order of their ids. Answers unreadable ones."""
        try:
            found = [self._read(name) for name in self.storage.names(REQUESTS)]
            self._is_out = False
        except StorageError as exc:
            if not self._is_out:
                logger.warning("cannot look for requests: %s", exc)
            self._is_out, found = True, []
        return [asked for asked in found if asked is not None]

    def answer(self, number: str, reply: Reply, message: str) -> None:
        """Answer a request, which the journal has already, and remove it."""
        record = {"reply": reply, "message": message}
        try:
            self.storage.write(f"{ANSWERS}/{number}.json", json.dumps(record).encode())
            self.storage.delete(f"{REQUESTS}/{number}.json")
        except StorageError as exc:  # the request is met again, found in the journal, and answered then
            logger.warning("cannot answer the request %s: %s", number, exc)

    def forget_old_answers(self) -> None:
        """Delete answers that nobody has waited for."""
        for name in self.storage.names(ANSWERS):
            number = name.removesuffix(".json")
            if not _ID.fullmatch(number) or time.time() - int(number[:20]) / 1e9 > _KEPT_ANSWERS_S:
                self.storage.delete(f"{ANSWERS}/{name}")

    def _read(self, name: str) -> Request | None:
        number = name.removesuffix(".json")
        if not _ID.fullmatch(number):
            return None
        data = self.storage.read(f"{REQUESTS}/{name}")
        if data is None:
            return None
        try:
            return Request.parse(number, data)
        except ConfigError as exc:
            self.answer(number, Reply.REFUSED, str(exc))
            return None


def checked(verb: Verb, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a verb, complete and of the right types.

    Raises:
        ConfigError: an argument is missing, unknown or of a wrong type.
    """
    defaults: dict[Verb, dict[str, Any]] = {Verb.STOP: {"now": False}, Verb.ADD: {"like": None}}
    found = {**defaults.get(verb, {}), **arguments}
    match verb, found:
        case ((Verb.PAUSE | Verb.RESUME), {**rest}) if not rest:
            return found
        case Verb.STOP, {"now": bool(), **rest} if not rest:
            return found
        case Verb.ADD, {"params": dict() as params, "like": None | int(), **rest} if not rest:
            if params or found["like"] is not None:
                return {**found, "params": _plain(params)}
            raise ConfigError("needs the values of a trial", key="add", cure="Write key=value, or --like 17")
        case Verb.DROP, {"trial": int(), **rest} if not rest and not isinstance(found["trial"], bool):
            return found
        case Verb.EXTEND, {"budget": dict() as budget, **rest} if budget and not rest:
            return {"budget": {_limit(key): _amount(key, value) for key, value in budget.items()}}
        case Verb.NARROW, {"space": dict() as space, **rest} if space and not rest:
            for key, value in space.items():
                if not isinstance(value, list | tuple):
                    raise ConfigError("must be a list", key=key, value=value, cure=f"Write {key}=[low,high]")
            return {"space": {str(key): list(map(_plain, value)) for key, value in space.items()}}
    raise ConfigError(f"does not take these arguments: {found}", key=verb)


def _plain(value: Any) -> Any:
    """Return the number for a text such as `1e-4`, which YAML does not read as one; also inside mappings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return float(value) if isinstance(value, str) and _NUMBER_AS_TEXT.fullmatch(value) else value


def _limit(key: object) -> str:
    name = str(key).removeprefix("budget.")
    if name not in ("trials", "resource", "seconds"):
        known = ("budget.trials", "budget.resource", "budget.seconds")
        raise ConfigError("is not a limit of the budget", key=str(key), cure=suggestion(key, known))
    return name


def _amount(key: object, value: object) -> str | int | float:
    """Return a limit: a number, or a text such as `+50`, which is added to the present one."""
    text = str(value).strip()
    try:
        number = float(text)
        is_whole = number == int(number)
    except (ValueError, OverflowError):
        number, is_whole = 0.0, False
    needs_whole = str(key).removeprefix("budget.") != "seconds"
    if isinstance(value, bool) or number <= 0 or (needs_whole and not is_whole):
        noun = "a whole number" if needs_whole else "a number"
        raise ConfigError(
            f"must be {noun} above 0, or +N to add to the present limit", key=str(key), value=value
        )
    shown = int(number) if is_whole else number
    return f"+{shown}" if text.startswith("+") else shown


def _sender() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no name, as in some containers
        user = "?"
    return f"{user}@{socket.gethostname()}"
