"""The error tree, with the exit code that each error gives a job.

    SparkHpoError
    |-- ConfigError            2  a study file, a space or a call is wrong
    |   |-- SpaceError            a search space is invalid
    |   |-- CapacityError         the cluster has too few slots
    |   `-- TrackingError         the tracking server cannot be reached or refuses
    |       `-- TrackingOutage       it stopped responding; missing data can be written later
    |-- DataError              3  the table is missing, empty, or has wrong types
    |-- NoTrialSucceeded       4  every trial failed
    |   `-- TooManyFailures         too many trials failed
    |-- StudyInterrupted     130  stopped from outside; the message says how to resume
    |-- StorageError           1  the study directory cannot be read or written
    |   |-- JournalError          the journal is damaged or from a newer version
    |   |-- LeaseError            another driver owns the study
    |   `-- CheckpointError       a checkpoint is damaged or from another model
    |-- BackendError           1  Spark has stopped
    |-- TrialError             1  the code of one trial failed
    `-- TrialPruned            1  the code of one trial gave up; not a failure

Every message gives place, value, rule and cure, and contains no credentials. Foreign exceptions are
translated where they enter the package.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

from spark_hpo.redact import redact

_MAX_LISTED = 30  # names in a cure

_NO_VALUE = object()
_MAX_SHOWN = 80  # characters of a value in a message


class SparkHpoError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code = 1
    place = ""  # a file, a call or another place that the message begins with; see `located`

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))

    def __str__(self) -> str:
        return f"{self.place}: {super().__str__()}" if self.place else super().__str__()


_STORE_CLIENTS = frozenset({"adlfs", "aiobotocore", "azure", "botocore", "gcsfs", "google"})


def access_cure(exc: Exception) -> str | None:
    """Return the cure for an error of an object store's client, such as missing credentials, else None.

    An OSError has no cure here, because its text already names the problem.
    """
    if isinstance(exc, OSError) or type(exc).__module__.partition(".")[0] not in _STORE_CLIENTS:
        return None
    return (
        "Check the credentials that this process has in its environment "
        "(S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
    )


def cause(exc: Exception) -> Exception | None:
    """Return the exception to raise from: `exc`, or None if its text contains credentials."""
    return exc if redact(str(exc)) == str(exc) else None


class ConfigError(SparkHpoError):
    """A setting is wrong; nothing has been started.

    Raise it where the value is known, without the file. The reader of a section adds the section's name
    (`within`), and the edge of the program adds the place, once (`located`).

    A trace: ConfigError("must be an integer >= 2", key="reduction_factor", value=1, cure="Use 3 or 4")
        within "search", located in conf/tune.yaml
        -> "conf/tune.yaml: search.reduction_factor must be an integer >= 2 (got 1). Use 3 or 4."
    """

    exit_code = 2

    def __init__(self, rule: str = "", *, key: str = "", value: object = _NO_VALUE, cure: str = "") -> None:
        """
        Args:
            rule: what the value must be or what is wrong; without a key, the whole message.
            key: dotted name of the setting, relative to whoever raises.
            value: the value that was given; left out of the message where none is passed.
            cure: what to do, as a sentence.
        """
        super().__init__(rule)
        self.rule, self.key, self.value, self.cure = rule, key, value, cure
        self.errors: tuple[ConfigError, ...] = ()

    @classmethod
    def several(cls, errors: Sequence[ConfigError], *, cure: str = "") -> ConfigError:
        """Combine errors about different settings; the message has one line for each, then the cure."""
        if len(errors) == 1 and not cure:
            return errors[0]
        combined = cls(cure=cure)
        combined.errors = tuple(errors)
        return combined

    def __str__(self) -> str:
        if self.errors:
            return "\n".join([*map(str, self.errors), *([self.cure] if self.cure else [])])
        text = f"{self.key} {self.rule}" if self.key else self.rule
        if self.value is not _NO_VALUE:
            text = f"{text} (got {_shown(self.value)})"
        if self.place:
            text = f"{self.place}: {text}"
        if self.cure:
            end = "" if self.cure.endswith(("?", ".")) else "."
            text = f"{text.rstrip('.')}. {self.cure}{end}"
        return redact(text)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


@contextmanager
def within(section: str) -> Iterator[None]:
    """Put a section's name before the key of a ConfigError that is raised inside.

    A trace: key "low" within "[1]" within "options" -> "options[1].low"
    """
    try:
        yield
    except ConfigError as exc:
        for error in exc.errors or (exc,):
            dot = "." if error.key and not error.key.startswith("[") else ""
            error.key = f"{section}{dot}{error.key}"
        raise


@contextmanager
def located(place: str, kind: type[SparkHpoError] = ConfigError) -> Iterator[None]:
    """Give an error of this kind that is raised inside its place, a file or a call, unless it has one."""
    try:
        yield
    except kind as exc:
        for error in (exc.errors if isinstance(exc, ConfigError) else ()) or (exc,):
            error.place = error.place or redact(place)
        raise


class SpaceError(ConfigError):
    """A search space that means nothing: low above high, the log of a negative, an unknown type."""


class CapacityError(ConfigError):
    """An assignment needs more slots than the backend will ever have."""


class TrackingError(ConfigError):
    """The tracking server cannot be reached at the start, or refuses."""


class TrackingOutage(TrackingError):
    """The tracking server does not answer any more. What it lacks can be written when it does."""


class DataError(SparkHpoError):
    """The table is missing, empty, or not what the task expects."""

    exit_code = 3

    def __init__(self, message: str, *, file: str | None = None) -> None:
        """
        Args:
            file: of the table, where one is at fault.
        """
        super().__init__(message)
        self.file = file


class NoTrialSucceeded(SparkHpoError):
    """The budget is spent and every trial has failed."""

    exit_code = 4


class TooManyFailures(NoTrialSucceeded):
    """More trials have failed than a study that is worth going on with has."""


class StudyInterrupted(SparkHpoError):
    """Stopped from outside. All that was reported is in the journal."""

    exit_code = 130


class StorageError(SparkHpoError):
    """The study directory cannot be read or written."""


class JournalError(StorageError):
    """The journal is damaged before its last record, or was written by a newer version."""


class LeaseError(StorageError):
    """Another driver owns the study or has taken it over."""


class CheckpointError(StorageError):
    """A checkpoint is damaged or belongs to another model."""


class BackendError(SparkHpoError):
    """Spark has stopped. Everything that was reported is in the journal."""


class TrialError(SparkHpoError):
    """The code of one trial is wrong: the trial fails, and the study continues."""


class TrialPruned(SparkHpoError):
    """Raised by a training function to give up its trial, which ends as stopped and is never the best."""


def closest(name: object, names: Iterable[object]) -> str | None:
    """Return the valid name that is spelt most like `name`, or that it abbreviates; None if none is close.

    A trace: closest("lr", ["dropout", "learning_rate"]) -> "learning_rate"
    """
    text, valid = str(name), [str(valid) for valid in names]
    by_initials = (one for one in valid if len(text) > 1 and text == _initials(one))
    return next(iter(get_close_matches(text, valid, n=1)), None) or next(by_initials, None)


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def count(how_many: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{how_many:,} {noun}{'' if how_many == 1 else 's'}"


def number(value: float | None, digits: int = 4) -> str:
    """Format a number: `0.9876`, `1.2e-05`, `12,346`; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e12 else f"{value:.{digits}g}"


def suggestion(name: object, names: Iterable[object]) -> str:
    """Return the cure for an unknown name, as sentences.

    A trace: suggestion("hyperbnad", ["asha", "hyperband"])
        -> "Did you mean 'hyperband'? Valid names: asha, hyperband"
    """
    valid = [str(name) for name in names]
    guess = closest(name, valid)
    listed = ", ".join(valid[:_MAX_LISTED]) or "none"
    if len(valid) > _MAX_LISTED:
        listed += f" and {len(valid) - _MAX_LISTED} more"
    return f"Did you mean {guess!r}? Valid names: {listed}" if guess else f"Valid names: {listed}"
